//! Keeps Services and EndpointSlices as the API server has them, in threads that only read.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use super::access::ApiAccess;
use super::failure::ApiFailure;
use super::read::{ApiChange, FOLLOWED, MOST, list, watch};
use super::transport::ApiClient;
use crate::error::Result;
use crate::state::api_objects::{ApiObject, ApiService, ApiSlice};

/// The pause before a request that failed is made again, the first time and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How often a pause is looked at for whether all has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Reads the credentials: before each request, because they rotate.
type ReadAccess = dyn Fn() -> Result<ApiAccess> + Send + Sync;

/// The namespace and the name of an object.
type ObjectName = (String, String);

/// Services and EndpointSlices, as they are at one moment.
pub struct ApiObjects<'a> {
    services: &'a BTreeMap<ObjectName, ApiService>,
    slices: &'a BTreeMap<ObjectName, ApiSlice>,
}

impl ApiObjects<'_> {
    /// All Services.
    pub fn services(&self) -> impl Iterator<Item = &ApiService> {
        self.services.values()
    }

    /// All EndpointSlices.
    pub fn slices(&self) -> impl Iterator<Item = &ApiSlice> {
        self.slices.values()
    }
}

/// Reads Services and EndpointSlices of an API server until it is dropped.
pub struct ApiReader(Arc<Shared>);

struct Shared {
    has_ended: AtomicBool,
    state: Mutex<ReaderState>,
}

#[derive(Default)]
struct ReaderState {
    /// How often anything has changed.
    changes: u64,
    services: ObjectCache<ApiService>,
    slices: ObjectCache<ApiSlice>,
}

/// What is kept of one kind.
struct ObjectCache<T> {
    /// The objects; none until they have been listed once.
    objects: Option<BTreeMap<ObjectName, T>>,
    /// Since when they are not followed, and why.
    failing: Option<(Instant, ApiFailure)>,
}

impl<T> Default for ObjectCache<T> {
    fn default() -> ObjectCache<T> {
        ObjectCache { objects: None, failing: None }
    }
}

/// A kind of objects that is followed.
trait Followed: ApiObject + DeserializeOwned + Send + 'static {
    /// Where the API server has it.
    const PATH: &'static str;

    /// What is kept of it.
    fn cache(state: &mut ReaderState) -> &mut ObjectCache<Self>
    where
        Self: Sized;
}

impl Followed for ApiService {
    const PATH: &'static str = "/api/v1/services";

    fn cache(state: &mut ReaderState) -> &mut ObjectCache<ApiService> {
        &mut state.services
    }
}

impl Followed for ApiSlice {
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";

    fn cache(state: &mut ReaderState) -> &mut ObjectCache<ApiSlice> {
        &mut state.slices
    }
}

impl ApiReader {
    /// Begins to read, with the credentials that `access` gives.
    ///
    /// # Errors
    /// The system's, if no thread can be started.
    pub fn start(
        access: impl Fn() -> Result<ApiAccess> + Send + Sync + 'static,
    ) -> std::io::Result<ApiReader> {
        let state = Mutex::new(ReaderState::default());
        let shared = Arc::new(Shared { has_ended: AtomicBool::new(false), state });
        let reader = ApiReader(Arc::clone(&shared));
        let access: Arc<ReadAccess> = Arc::new(access);
        spawn::<ApiService>(&shared, &access)?;
        spawn::<ApiSlice>(&shared, &access)?;
        Ok(reader)
    }

    /// What `take` makes of all objects, and how often these have changed by now; none unless all have
    /// been listed, and something has changed after the first `known` changes.
    pub fn read<R>(&self, known: u64, take: impl FnOnce(ApiObjects<'_>) -> R) -> Option<(u64, R)> {
        let state = self.0.lock();
        if state.changes <= known {
            return None;
        }
        let (services, slices) = (state.services.objects.as_ref()?, state.slices.objects.as_ref()?);
        Some((state.changes, take(ApiObjects { services, slices })))
    }

    /// Since when the objects are not followed, and why; none while they are, and before the first
    /// answer is due.
    pub fn failure(&self) -> Option<(Instant, ApiFailure)> {
        let state = self.0.lock();
        let both = [&state.services.failing, &state.slices.failing];
        both.into_iter().flatten().min_by_key(|(since, _)| *since).cloned()
    }
}

impl Drop for ApiReader {
    fn drop(&mut self) {
        self.0.has_ended.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, ReaderState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Sleeps, but not past the end of the reader.
    fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.has_ended() && Instant::now() < end {
            thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        }
    }

    fn failed<T: Followed>(&self, failure: ApiFailure) {
        let mut state = self.lock();
        let failing = &mut T::cache(&mut state).failing;
        let since = failing.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *failing = Some((since, failure));
    }

    fn follows<T: Followed>(&self) {
        T::cache(&mut self.lock()).failing = None;
    }

    fn replace<T: Followed>(&self, objects: Vec<T>) {
        let objects = objects.into_iter().map(|object| (name_of(&object), object)).collect();
        let mut state = self.lock();
        state.changes += 1;
        let cache = T::cache(&mut state);
        cache.objects = Some(objects);
        cache.failing = None;
    }

    fn change<T: Followed>(&self, change: ApiChange<T>) -> Result<(), ApiFailure> {
        let mut state = self.lock();
        state.changes += 1;
        let Some(objects) = &mut T::cache(&mut state).objects else { return Ok(()) };
        match change {
            ApiChange::Is(object) => objects.insert(name_of(&object), object),
            ApiChange::Deleted(object) => objects.remove(&name_of(&object)),
        };
        if objects.len() > MOST { Err(ApiFailure::TooLarge) } else { Ok(()) }
    }
}

fn name_of(object: &impl ApiObject) -> ObjectName {
    let metadata = object.metadata();
    (metadata.namespace.clone(), metadata.name.clone())
}

fn spawn<T: Followed>(shared: &Arc<Shared>, access: &Arc<ReadAccess>) -> std::io::Result<()> {
    let (shared, access) = (Arc::clone(shared), Arc::clone(access));
    let work = move || follow::<T>(&shared, &*access);
    thread::Builder::new().name("api".into()).spawn(work).map(drop)
}

/// Follows one kind until the reader ends.
fn follow<T: Followed>(shared: &Shared, access: &ReadAccess) {
    let (mut connection, mut version, mut pause) = (None, None, FIRST_PAUSE);
    while !shared.has_ended() {
        let began = Instant::now();
        match step::<T>(shared, access, &mut connection, &mut version) {
            Ok(()) => {
                pause = FIRST_PAUSE;
                // A server that ends each watch at once is not to be asked without end.
                shared.pause(FIRST_PAUSE.saturating_sub(began.elapsed()));
            }
            Err(failure) => {
                // What the server has forgotten is listed anew, and so is what is not understood.
                if !matches!(failure, ApiFailure::Timeout | ApiFailure::Unreachable(_)) {
                    version = None;
                }
                if failure != ApiFailure::Expired || pause > FIRST_PAUSE {
                    shared.failed::<T>(failure);
                }
                connection = None;
                shared.pause(pause);
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        }
    }
}

/// Lists the objects if no version is known, and watches them for some seconds.
fn step<T: Followed>(
    shared: &Shared,
    access: &ReadAccess,
    connection: &mut Option<(ApiAccess, ApiClient)>,
    version: &mut Option<String>,
) -> Result<(), ApiFailure> {
    let access = access().map_err(|e| ApiFailure::Credentials(e.to_string()))?;
    let (_, client) = match connection.take() {
        Some(known) if known.0 == access => connection.insert(known),
        _ => {
            let client = ApiClient::new(&access)?;
            connection.insert((access, client))
        }
    };
    if version.is_none() {
        let listed = list::<T>(client, T::PATH, &[FOLLOWED])?;
        shared.replace(listed.objects);
        *version = Some(listed.version);
    }
    let from = version.clone().unwrap_or_default();
    watch::<T>(client, T::PATH, &from, &mut || shared.follows::<T>(), &mut |change, now| {
        if let Some(change) = change {
            shared.change(change)?;
        }
        *version = Some(now);
        Ok(())
    })
}
