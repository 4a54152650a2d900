//! Writes to a cluster, and the Lease that keeps a second administrator from writing meanwhile.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::write::{Persistence, create, delete, patch};
use crate::api::{ApiClient, ApiFailure, ApiStatus, read};
use crate::clock;
use crate::cluster::intent::{ClusterWrite, WriteAction};
use crate::state::kubernetes::{ApiKind, JsonPatch, LEASE, MANAGED_BY, ObjectMeta, ObjectRef};

/// How long a Lease holds that is not renewed, in seconds: longer than any request takes.
pub const LEASE_SECONDS: u64 = 45;

/// Has the server admit and validate a write, and keep nothing. Returns what it would keep.
///
/// # Errors
/// As the server says.
pub fn dry_run(client: &ApiClient, write: &ClusterWrite) -> Result<Value, ApiFailure> {
    perform(client, write, Persistence::DryRun)
}

/// As [`dry_run`], for an object that nobody is to make.
///
/// # Errors
/// As the server says.
pub fn dry_run_object(
    client: &ApiClient,
    named: &ObjectRef,
    object: &Value,
) -> Result<Value, ApiFailure> {
    create(client, named, object, Persistence::DryRun)
}

/// Writes.
///
/// # Errors
/// As the server says.
pub fn write(client: &ApiClient, write: &ClusterWrite) -> Result<(), ApiFailure> {
    perform(client, write, Persistence::Kept).map(drop)
}

fn perform(
    client: &ApiClient,
    write: &ClusterWrite,
    persistence: Persistence,
) -> Result<Value, ApiFailure> {
    match &write.action {
        WriteAction::Create(object) => create(client, &write.object, object, persistence),
        WriteAction::Patch { patch: by, .. } => patch(client, &write.object, by, persistence),
    }
}

/// A Lease that this process holds. Others wait, or are refused.
pub struct LeaseHold<'c> {
    client: &'c ApiClient,
    object: ObjectRef,
    holder: String,
    current: FoundLease,
}

/// A Lease as the server has it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct FoundLease {
    metadata: ObjectMeta,
    spec: Value,
}

impl FoundLease {
    /// Who holds it.
    pub fn holder(&self) -> &str {
        self.spec["holderIdentity"].as_str().unwrap_or_default()
    }
}

/// The Lease of a namespace.
fn lease_in(namespace: &str) -> ObjectRef {
    ObjectRef::new(ApiKind::Lease, namespace, LEASE)
}

/// The Lease of a namespace, if there is one.
///
/// # Errors
/// As the server says.
pub fn find_lease(client: &ApiClient, namespace: &str) -> Result<Option<FoundLease>, ApiFailure> {
    read::read_if_there(client, &lease_in(namespace))
}

impl<'c> LeaseHold<'c> {
    /// Takes the Lease of a namespace that was `found`; none if somebody else was faster.
    ///
    /// # Errors
    /// As the server says.
    pub fn take(
        client: &'c ApiClient,
        namespace: &str,
        holder: &str,
        found: Option<&FoundLease>,
    ) -> Result<Option<LeaseHold<'c>>, ApiFailure> {
        let object = lease_in(namespace);
        let taken = match found {
            Some(found) => patch(client, &object, &taking(found, holder), Persistence::Kept),
            None => {
                let lease = json!({
                    "apiVersion": object.kind.api_version(), "kind": "Lease",
                    "metadata": {"name": object.name, "namespace": object.namespace,
                                 "labels": {MANAGED_BY.0: MANAGED_BY.1}},
                    "spec": spec(holder),
                });
                create(client, &object, &lease, Persistence::Kept)
            }
        };
        match taken {
            Ok(current) => Ok(Some(LeaseHold { client, object, holder: holder.into(), current })),
            Err(failure) if is_lost(&failure) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Renews it. False if somebody else has taken it.
    ///
    /// # Errors
    /// As the server says.
    pub fn renew(&mut self) -> Result<bool, ApiFailure> {
        let by = taking(&self.current, &self.holder);
        match patch(self.client, &self.object, &by, Persistence::Kept) {
            Ok(current) => self.current = current,
            Err(failure) if is_lost(&failure) || failure.is_not_found() => return Ok(false),
            Err(failure) => return Err(failure),
        }
        Ok(true)
    }

    /// Gives it back. One that cannot be given back ends by itself.
    pub fn release(self) {
        let uid = &self.current.metadata.uid;
        let _ = delete(self.client, &self.object, uid, Persistence::Kept);
    }
}

/// Takes a Lease that is as it was found.
fn taking(found: &FoundLease, holder: &str) -> JsonPatch {
    JsonPatch::of_uid(&found.metadata.uid)
        .test(&["spec"], found.spec.clone())
        .replace(&["spec"], spec(holder))
}

/// Whether another has written before.
fn is_lost(failure: &ApiFailure) -> bool {
    matches!(failure.status(), Some(ApiStatus::Conflict | ApiStatus::Invalid))
}

fn spec(holder: &str) -> Value {
    // The API has times of Leases with six digits of a second.
    let now = clock::now().replace('Z', ".000000Z");
    json!({"holderIdentity": holder, "leaseDurationSeconds": LEASE_SECONDS,
           "acquireTime": now, "renewTime": now})
}
