//! Lists the objects of a kind, and watches what becomes of them
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/>).

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::failure::{ApiFailure, ApiRefusal, ApiStatus};
use super::transport::ApiClient;
use crate::state::api_objects::ApiObject;
use crate::state::kubernetes::{ApiKind, ObjectRef};

/// How many objects a page of a list has.
const PAGE: &str = "500";

/// How long a page may take.
const PAGE_DEADLINE: Duration = Duration::from_secs(15);

/// How long a whole list may take.
const LIST_DEADLINE: Duration = Duration::from_secs(120);

/// The largest page that is read, and the largest list, in bytes. A list of 5,000 Services has 8 MB.
const PAGE_LIMIT: u64 = 32 << 20;
const LIST_LIMIT: u64 = 512 << 20;

/// How many objects are kept of a kind.
pub(super) const MOST: usize = 200_000;

/// How long the server keeps a watch open, in seconds; and how long we do. A server that is gone says
/// nothing, so this is how long that takes to be noticed.
const WATCH: &str = "4";
const WATCH_DEADLINE: Duration = Duration::from_secs(7);

/// The largest change that is read, and how much of one watch, in bytes. No object has more than
/// 1.5 MiB (etcd).
const CHANGE_LIMIT: u64 = 4 << 20;
const WATCH_LIMIT: u64 = 64 << 20;

/// The longest version of an object.
const LONGEST_VERSION: usize = 64;

/// Which Services and EndpointSlices: those that kube-proxy follows.
pub(super) const FOLLOWED: (&str, &str) =
    ("labelSelector", "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name");

/// All objects of a kind, and the version of which they are.
pub(super) struct ListedObjects<T> {
    pub(super) objects: Vec<T>,
    pub(super) version: String,
}

/// What became of an object.
pub(super) enum ApiChange<T> {
    /// It is new, or is now so.
    Is(T),
    /// It was deleted.
    Deleted(T),
}

#[derive(Deserialize)]
struct ListPage<T> {
    metadata: PageMetadata,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    #[serde(default)]
    r#continue: String,
}

#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

#[derive(Deserialize)]
struct Changed<T> {
    object: T,
}

#[derive(Deserialize)]
struct ServerError {
    code: u16,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: VersionOnly,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionOnly {
    resource_version: String,
}

/// Reads one object.
///
/// # Errors
/// Without an answer, and for an answer that is no such object or too large.
/// [`ApiFailure::is_not_found`] tells that there is none.
pub fn read<T: DeserializeOwned>(client: &ApiClient, object: &ObjectRef) -> Result<T, ApiFailure> {
    parse(&client.get_object(&object.path())?)
}

/// Reads one object; none if there is none.
///
/// # Errors
/// As [`read`], but for an object that is not there.
pub fn read_if_there<T: DeserializeOwned>(
    client: &ApiClient,
    object: &ObjectRef,
) -> Result<Option<T>, ApiFailure> {
    match read(client, object) {
        Ok(object) => Ok(Some(object)),
        Err(failure) if failure.is_not_found() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Lists the objects of a kind: in `namespace`, or in all namespaces and of kinds that have none; those
/// that `selectors` select, such as `("labelSelector", "k8s-app=kube-proxy")`.
///
/// # Errors
/// Without an answer, and for an answer that is no such list or too large.
pub fn list_of_kind<T: DeserializeOwned>(
    client: &ApiClient,
    kind: ApiKind,
    namespace: Option<&str>,
    selectors: &[(&str, &str)],
) -> Result<Vec<T>, ApiFailure> {
    list(client, &kind.collection(namespace), selectors).map(|listed| listed.objects)
}

/// Lists all objects at `path` that `selectors` select.
///
/// # Errors
/// Without an answer, and for an answer that is no list or too large.
pub(super) fn list<T: DeserializeOwned>(
    client: &ApiClient,
    path: &str,
    selectors: &[(&str, &str)],
) -> Result<ListedObjects<T>, ApiFailure> {
    let (began, mut room) = (Instant::now(), LIST_LIMIT);
    let (mut objects, mut token) = (Vec::new(), String::new());
    loop {
        let mut query = vec![("limit", PAGE)];
        query.extend(selectors);
        if !token.is_empty() {
            query.push(("continue", &token));
        }
        let mut body = client.get(path, &query, PAGE_DEADLINE)?;
        let mut text = Vec::new();
        let limit = PAGE_LIMIT.min(room);
        body.as_reader().take(limit + 1).read_to_end(&mut text)?;
        let size = text.len() as u64;
        if size > limit {
            return Err(ApiFailure::TooLarge);
        }
        room -= size;
        let page: ListPage<T> = parse(&text)?;
        objects.extend(page.items.unwrap_or_default());
        if objects.len() > MOST {
            return Err(ApiFailure::TooLarge);
        }
        token = page.metadata.r#continue;
        if token.is_empty() {
            return Ok(ListedObjects {
                objects,
                version: version(page.metadata.resource_version)?,
            });
        }
        if began.elapsed() > LIST_DEADLINE {
            return Err(ApiFailure::Timeout);
        }
    }
}

/// Watches what becomes of the objects at `path` after the version `from`, until the server ends the
/// watch. `opened` is called once the server has begun to answer, `take` with each change and the
/// version of then.
///
/// # Errors
/// Without an answer, and for an answer that is no list of changes or too large;
/// [`ApiFailure::Expired`] if the server has forgotten that version.
pub(super) fn watch<T: DeserializeOwned + ApiObject>(
    client: &ApiClient,
    path: &str,
    from: &str,
    opened: &mut dyn FnMut(),
    take: &mut dyn FnMut(Option<ApiChange<T>>, String) -> Result<(), ApiFailure>,
) -> Result<(), ApiFailure> {
    let query = [
        FOLLOWED,
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", WATCH),
        ("resourceVersion", from),
    ];
    let body = client.get(path, &query, WATCH_DEADLINE)?;
    opened();
    let mut lines = BufReader::new(body.into_reader().take(WATCH_LIMIT));
    loop {
        let mut line = Vec::new();
        let length = lines.by_ref().take(CHANGE_LIMIT + 1).read_until(b'\n', &mut line)?;
        if length as u64 > CHANGE_LIMIT {
            return Err(ApiFailure::TooLarge);
        }
        let is_whole = line.last() == Some(&b'\n');
        if line.trim_ascii().is_empty() {
            if is_whole {
                continue;
            }
            let is_used_up = lines.into_inner().limit() == 0;
            return if is_used_up { Err(ApiFailure::TooLarge) } else { Ok(()) };
        }
        let Typed { r#type } = parse(&line)?;
        match r#type.as_str() {
            "ADDED" | "MODIFIED" => {
                let Changed::<T> { object } = parse(&line)?;
                let version = version(object.metadata().resource_version.clone())?;
                take(Some(ApiChange::Is(object)), version)?;
            }
            "DELETED" => {
                let Changed::<T> { object } = parse(&line)?;
                let version = version(object.metadata().resource_version.clone())?;
                take(Some(ApiChange::Deleted(object)), version)?;
            }
            "BOOKMARK" => {
                let Changed::<Versioned> { object } = parse(&line)?;
                take(None, version(object.metadata.resource_version)?)?;
            }
            "ERROR" => {
                let Changed::<ServerError> { object } = parse(&line)?;
                return Err(match object.code {
                    410 => ApiFailure::Expired,
                    code => ApiFailure::Refused(ApiRefusal {
                        status: ApiStatus::of(code),
                        whose: client.whose().to_owned(),
                        message: String::new(),
                        retry_after: None,
                    }),
                });
            }
            _ => return Err(ApiFailure::Malformed("a change of a kind that is not known".into())),
        }
    }
}

/// A version as the server gave it, which goes into the next request.
fn version(text: String) -> Result<String, ApiFailure> {
    let is_one = (1..=LONGEST_VERSION).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_one { Ok(text) } else { Err(ApiFailure::Malformed("a version that is none".into())) }
}

/// Parses JSON. The error has a position and no word of the text.
pub(super) fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, ApiFailure> {
    serde_json::from_slice(text).map_err(|e| {
        let what = match serde_json::from_slice::<IgnoredAny>(text) {
            Ok(_) => "other JSON than that of the kind",
            Err(_) => "no JSON",
        };
        let cause = format!("{what}, at line {} column {}", e.line(), e.column());
        ApiFailure::Malformed(cause)
    })
}
