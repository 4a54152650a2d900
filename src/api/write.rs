//! Creates, patches and deletes objects of the API server. Only `apply` may call this.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::failure::ApiFailure;
use super::read::parse;
use super::transport::{ApiClient, ApiWrite};
use crate::state::kubernetes::{JsonPatch, ObjectRef};

/// The name by which the API server remembers who wrote a field.
const MANAGER: (&str, &str) = ("fieldManager", "proxyshift");

/// Whether a write is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// The server admits and validates it, and keeps nothing.
    DryRun,
    /// It is kept.
    Kept,
}

impl Persistence {
    fn query(self) -> Vec<(&'static str, &'static str)> {
        match self {
            Persistence::DryRun => vec![MANAGER, ("dryRun", "All")],
            Persistence::Kept => vec![MANAGER],
        }
    }
}

/// Creates `object` as `named`, and returns it as the server has it then.
///
/// # Errors
/// [`ApiStatus::Conflict`](super::ApiStatus) if there is one of that name; and as any request.
pub fn create<T: DeserializeOwned>(
    client: &ApiClient,
    named: &ObjectRef,
    object: &impl Serialize,
    persistence: Persistence,
) -> Result<T, ApiFailure> {
    let body = serde_json::to_vec(object).map_err(|e| ApiFailure::Malformed(e.to_string()))?;
    let path = named.kind.collection(named.namespace.as_deref());
    parse(&client.change(&path, &persistence.query(), &ApiWrite::Create(&body))?)
}

/// Patches an object, and returns it as the server has it then.
///
/// # Errors
/// [`ApiStatus::Invalid`](super::ApiStatus) if a test of the patch fails; and as any request.
pub fn patch<T: DeserializeOwned>(
    client: &ApiClient,
    object: &ObjectRef,
    patch: &JsonPatch,
    persistence: Persistence,
) -> Result<T, ApiFailure> {
    let body = serde_json::to_vec(patch).map_err(|e| ApiFailure::Malformed(e.to_string()))?;
    parse(&client.change(&object.path(), &persistence.query(), &ApiWrite::Patch(&body))?)
}

/// Deletes the object, if it still has this uid.
///
/// # Errors
/// [`ApiStatus::Conflict`](super::ApiStatus) if the object of this name is another by now; and as any
/// request.
pub fn delete(
    client: &ApiClient,
    object: &ObjectRef,
    uid: &str,
    persistence: Persistence,
) -> Result<(), ApiFailure> {
    let options = json!({
        "kind": "DeleteOptions", "apiVersion": "v1",
        "preconditions": {"uid": uid},
    });
    let query: &[_] = if persistence == Persistence::DryRun { &[("dryRun", "All")] } else { &[] };
    let body = options.to_string();
    client.change(&object.path(), query, &ApiWrite::Delete(body.as_bytes())).map(drop)
}
