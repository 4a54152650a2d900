//! Keeps the bridge of a run while somebody waits for kube-proxy.

use std::cell::{Cell, RefCell};
use std::panic;
use std::thread;
use std::time::Duration;

use crate::apply;
use crate::apply::conntrack::clear_stale;
use crate::error::Result;
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::Services;
use crate::kube_proxy::stale_entries::ServiceDestinations;
use crate::node;
use crate::run::Context;
use crate::run::bridge::files::script_file;
use crate::run::bridge::follow::EndpointFollower;
use crate::state::kube_proxy::Mode;
use crate::state::{Family, NodeState};
use crate::store::run::Run;

/// The pause between two looks at the bridge while something else is waited for.
const PAUSE: Duration = Duration::from_millis(200);

/// What follows the API server for a run, once one of its stages has begun to.
pub(in crate::run) type Follower = RefCell<Option<EndpointFollower>>;

/// Keeps the bridge of a run while somebody waits for kube-proxy.
pub(in crate::run) struct Keeper<'a> {
    context: &'a Context<'a>,
    run: &'a Run,
    base: &'a NodeState,
    follower: &'a Follower,
    has_failed: Cell<bool>,
}

impl<'a> Keeper<'a> {
    /// `base` is the node state before the run. Begins to follow the API server, unless `follower`
    /// does so already.
    pub(in crate::run) fn new(
        context: &'a Context<'a>,
        run: &'a Run,
        base: &'a NodeState,
        follower: &'a Follower,
    ) -> Keeper<'a> {
        if follower.borrow().is_none() {
            follower.replace(EndpointFollower::start(context, run, base, false));
        }
        Keeper { context, run, base, follower, has_failed: Cell::new(false) }
    }

    /// Loads the bridge where it is gone, and with the endpoints that the API has by now. Where the
    /// first fails, only warns, and tries no more: kube-proxy may serve without it, and nothing that
    /// waits for kube-proxy must end because of the bridge.
    pub(in crate::run) fn keep(&self) {
        if self.has_failed.get() {
            return;
        }
        if let Err(e) = ensure(self.context, self.run, self.base) {
            self.has_failed.set(true);
            self.context.sink.warning(format!(
                "the bridge cannot be loaded ({e}): services fail until kube-proxy serves"
            ));
            return;
        }
        if let Some(follower) = &mut *self.follower.borrow_mut() {
            follower.follow(self.context, self.run, self.base);
        }
    }

    /// Does `work`, which waits for kube-proxy, in a thread beside, and keeps the bridge meanwhile.
    pub(in crate::run) fn beside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.follower.borrow().is_none() {
            return work();
        }
        thread::scope(|scope| {
            let work = scope.spawn(work);
            while !work.is_finished() {
                self.keep();
                thread::sleep(PAUSE);
            }
            work.join().unwrap_or_else(|cause| panic::resume_unwind(cause))
        })
    }

    /// Those of `services` that the API still has, each with those of its endpoints that it still has;
    /// none if the API has not answered.
    pub(in crate::run) fn still_served(&self, services: &Services) -> Option<Services> {
        if let Some(follower) = &mut *self.follower.borrow_mut() {
            follower.read(self.context);
        }
        let follower = self.follower.borrow();
        Some(follower.as_ref()?.services()?.still_served(services))
    }

    /// Takes out of the bridge what the mode `to` does not serve `now`, where the API does not tell.
    pub(in crate::run) fn drop_unserved(&self, now: &NodeState, to: Mode) {
        if let Some(follower) = &mut *self.follower.borrow_mut() {
            follower.drop_unserved(self.context, self.run, self.base, now, to);
        }
    }
}

/// Loads the bridge of the run where it is not loaded, as the run's folder has it: somebody has deleted
/// it, or an undo needs it again. Does nothing in a run without a bridge.
///
/// A connection that was begun while nobody served keeps an entry of conntrack that misses its service,
/// so such entries are deleted. `base` is the node state before the run.
///
/// # Errors
/// When the bridge or conntrack cannot be read, or the kernel refuses the bridge.
fn ensure(context: &Context<'_>, run: &Run, base: &NodeState) -> Result<()> {
    let folder = context.store.folder(&run.id);
    let mut missing: Vec<Family> =
        Family::ALL.into_iter().filter(|family| folder.contains(&script_file(*family))).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let loaded = node::bridge::loaded()?;
    missing.retain(|family| !loaded.contains(family));
    if missing.is_empty() {
        return Ok(());
    }
    let task = Task::LoadBridge;
    context.sink.started(&task);
    for family in missing {
        apply::bridge::load(context.tools, &folder.read(&script_file(family))?)?;
    }
    let services = run.modes().map(|modes| mode::of(modes.from).services(base)).unwrap_or_default();
    clear_stale(&ServiceDestinations::new(&services, &base.links, &base.ipvs))?;
    context.sink.finished(&task, Outcome::BridgeLoaded { frontends: services.len() });
    Ok(())
}
