//! Leads the writes to a cluster: reads, has the server try each write, takes the Lease, writes, and
//! verifies. Each write leaves a cluster in which all kube-proxies run on, so the same command goes on
//! where one ended.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use crate::api::{ApiClient, ApiFailure, ApiStatus, read};
use crate::apply::cluster::{
    FoundLease, LEASE_SECONDS, LeaseHold, dry_run, dry_run_object, find_lease, write,
};
use crate::clock;
use crate::cluster::admission::{AdmissionChange, changes_of_pod, changes_of_write};
use crate::cluster::intent::{
    ClusterWrite, Intent, WriteAction, config_maps_read, decide, names_taken,
};
use crate::cluster::refusal::ClusterRefusal;
use crate::cluster::state::{ClusterState, original_of};
use crate::cluster::{ConfigLocation, excludes, requires};
use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::interrupt;
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::{
    ApiKind, ClusterPod, ConfigMapObject, DaemonSet, MANAGED_BY, MODE_LABEL, ObjectRef, SELECTOR,
};
use crate::store::journal::crash_if_requested;
use crate::yaml;

/// How long the controller of DaemonSets may take to see what was written.
const SETTLE: Duration = Duration::from_secs(30);

/// How often what is left is written. What admission adds to the original comes into ours only once it is
/// there.
const ROUNDS: usize = 3;

/// The pause before what is waited for is read again.
const PAUSE: Duration = Duration::from_secs(1);

/// A DaemonSet by its namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonSetName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What admission made of an object.
pub struct Admitted {
    /// The object.
    pub object: ObjectRef,
    /// What is not as it was sent.
    pub changes: Vec<AdmissionChange>,
}

/// The error for a request about `object` that failed.
pub fn api_error(object: impl ToString, failure: &ApiFailure) -> Error {
    let kind = match failure.status() {
        Some(ApiStatus::Unauthorized | ApiStatus::Forbidden) => Kind::Permission,
        Some(ApiStatus::NotFound) => Kind::NotFound,
        Some(ApiStatus::Conflict) => Kind::LostRace,
        _ => Kind::Blocked,
    };
    let error = Error::new(kind, object.to_string(), failure);
    match failure.status() {
        Some(ApiStatus::Forbidden) => {
            error.hint("docs/cluster.md has the Role that these credentials need")
        }
        Some(ApiStatus::Conflict) => error.hint("somebody else writes too: run it again"),
        Some(ApiStatus::Invalid) => error.hint(
            "if a policy denies it, except kube-proxy's DaemonSets; else it was changed meanwhile: run \
             it again",
        ),
        _ => error,
    }
}

/// Reads what the cluster has of kube-proxy; with `to`, whatever has a name that an arrangement for that
/// mode would take, too.
///
/// # Errors
/// When the API server cannot be read, and when the DaemonSet is not found.
pub fn read_state(
    client: &ApiClient,
    named: Option<&DaemonSetName>,
    to: Option<Mode>,
) -> Result<ClusterState> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |failure: ApiFailure| api_error(what, &failure)
    };
    let original: DaemonSet = match named {
        Some(DaemonSetName { namespace, name }) => {
            let object = ObjectRef::new(ApiKind::DaemonSet, namespace, name);
            read::read(client, &object).map_err(failed(&object.to_string()))?
        }
        None => {
            let selector = format!("{}={}", SELECTOR.0, SELECTOR.1);
            let selectors = [("labelSelector", selector.as_str())];
            let all = read::list_of_kind(client, ApiKind::DaemonSet, None, &selectors);
            original_of(all.map_err(failed("DaemonSets"))?)
                .map_err(|refusal| refusal.error("kube-proxy"))?
        }
    };
    let namespace = Some(original.metadata.namespace.as_str());
    let ours = format!("{}={},{MODE_LABEL}", MANAGED_BY.0, MANAGED_BY.1);
    let of_ours = [("labelSelector", ours.as_str())];
    let mut state = ClusterState {
        ours: read::list_of_kind(client, ApiKind::DaemonSet, namespace, &of_ours)
            .map_err(failed("DaemonSets"))?,
        nodes: read::list_of_kind(client, ApiKind::Node, None, &[]).map_err(failed("Nodes"))?,
        ..ClusterState::default()
    };
    let config_maps: Vec<ConfigMapObject> =
        read::list_of_kind(client, ApiKind::ConfigMap, namespace, &of_ours)
            .map_err(failed("ConfigMaps"))?;
    let used = state.ours.iter().filter_map(|ours| ConfigLocation::of(ours).ok());
    let used: Vec<String> = used.map(|location| location.config_map).collect();
    for name in config_maps_read(&original).into_iter().chain(used) {
        let object = ObjectRef::new(ApiKind::ConfigMap, &original.metadata.namespace, name);
        let found = read::read_if_there::<ConfigMapObject>(client, &object);
        let found = found.map_err(failed(&object.to_string()))?;
        state.config_maps.extend(found.map(|found| (object.name, found)));
    }
    let config_maps = config_maps.into_iter().map(|found| (found.metadata.name.clone(), found));
    state.config_maps.extend(config_maps);
    for object in to.into_iter().flat_map(|to| names_taken(&original, to)) {
        let found = read::read_if_there(client, &object).map_err(failed(&object.to_string()))?;
        state.others.extend(found.map(|found| (object, found)));
    }
    let pods: Vec<ClusterPod> =
        read::list_of_kind(client, ApiKind::Pod, namespace, &[]).map_err(failed("Pods"))?;
    let uids: BTreeSet<&str> =
        std::iter::once(&original).chain(&state.ours).map(|d| d.metadata.uid.as_str()).collect();
    let is_theirs = |pod: &ClusterPod| {
        pod.metadata.controller().is_some_and(|owner| uids.contains(owner.uid.as_str()))
    };
    state.pods = pods.into_iter().filter(is_theirs).collect();
    state.kubeadm_version = kubeadm_version(client)?;
    state.original = original;
    Ok(state)
}

/// The version of the cluster, as kubeadm keeps it; none of a cluster that is not kubeadm's.
fn kubeadm_version(client: &ApiClient) -> Result<Option<String>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ClusterConfiguration {
        kubernetes_version: Option<String>,
    }
    let object = ObjectRef::new(ApiKind::ConfigMap, "kube-system", "kubeadm-config");
    let found = read::read_if_there::<ConfigMapObject>(client, &object);
    let found = found.map_err(|failure| api_error(&object, &failure))?;
    let text = found.and_then(|mut found| found.data.remove("ClusterConfiguration"));
    let parsed = text.map(|t| yaml::parse::<ClusterConfiguration>(&object.name, &t)).transpose()?;
    Ok(parsed.and_then(|parsed| parsed.kubernetes_version))
}

/// Has the server try each write, and a Pod of our DaemonSet, and keep nothing. Returns what admission
/// made of them.
///
/// # Errors
/// When the server refuses one; and [`Kind::Blocked`] when admission changes what must hold.
pub fn try_on_server(client: &ApiClient, intent: &Intent) -> Result<Vec<Admitted>> {
    let mut all = Vec::new();
    for write in &intent.writes {
        let returned =
            dry_run(client, write).map_err(|failure| api_error(&write.object, &failure))?;
        must_hold(write, &returned, intent)?;
        let changes = changes_of_write(write, &returned);
        all.push(Admitted { object: write.object.clone(), changes });
    }
    let [(of_original, original), (named, ours)] = &intent.pods;
    let admit = |named: &ObjectRef, pod: &Value| {
        dry_run_object(client, named, pod).map_err(|failure| api_error(named, &failure))
    };
    let (admitted, usual) = (admit(named, ours)?, admit(of_original, original)?);
    if !requires(&admitted["spec"], intent.to) {
        return Err(
            ClusterRefusal::Admission(format!("the affinity of {named}")).error("admission")
        );
    }
    let changes = changes_of_pod((ours, &admitted), (original, &usual));
    all.push(Admitted { object: named.clone(), changes });
    all.retain(|admitted| !admitted.changes.is_empty());
    Ok(all)
}

/// Whether what the server would keep is what a node verifies.
fn must_hold(write: &ClusterWrite, returned: &Value, intent: &Intent) -> Result<()> {
    if write.object.kind != ApiKind::DaemonSet {
        return Ok(());
    }
    let spec = &returned["spec"];
    let pods = &spec["template"]["spec"];
    let is_original = write.object == intent.original;
    let has_affinity =
        if is_original { excludes(pods, intent.to) } else { requires(pods, intent.to) };
    let what = if !has_affinity {
        "affinity"
    } else if spec["updateStrategy"]["type"] != "OnDelete" {
        "updateStrategy"
    } else {
        return Ok(());
    };
    let object = write.object.to_string();
    Err(ClusterRefusal::Admission(format!("the {what} of {object}")).error("admission"))
}

/// Writes what `approved` says, under the Lease, and verifies that all is there and every pod as before.
///
/// # Errors
/// [`Kind::Lock`] while another administrator holds the Lease, [`Kind::LostRace`] if the cluster has
/// changed since `approved` was decided; and [`Kind::NotRolledBack`] once anything is written: the same
/// command goes on then.
pub fn prepare(
    client: &ApiClient,
    named: Option<&DaemonSetName>,
    approved: &Intent,
    sink: &dyn Sink,
) -> Result<()> {
    let namespace = approved.original.namespace.clone().unwrap_or_default();
    let mut lease = take_lease(client, &namespace, sink)?;
    let result = write_all(client, named, approved, &mut lease, sink);
    lease.release();
    result
}

fn write_all(
    client: &ApiClient,
    named: Option<&DaemonSetName>,
    approved: &Intent,
    lease: &mut LeaseHold<'_>,
    sink: &dyn Sink,
) -> Result<()> {
    let before = read_state(client, named, Some(approved.to))?;
    let intent = decided(&before, approved.to)?;
    if intent.writes != approved.writes {
        let cause = "has changed since this was shown";
        return Err(Error::new(Kind::LostRace, approved.original.to_string(), cause)
            .hint("run it again, and look again"));
    }
    let mut written = 0;
    let mut writes = intent.writes;
    for _ in 0..ROUNDS {
        for one in &writes {
            let partly = |error: Error| if written == 0 { error } else { unfinished(error) };
            interrupt::check(&one.object.to_string()).map_err(partly)?;
            let is_held =
                lease.renew().map_err(|failure| partly(api_error("the Lease", &failure)))?;
            if !is_held {
                let cause = "another administrator has taken it";
                return Err(partly(Error::new(Kind::Lock, "the Lease", cause)));
            }
            crash_if_requested(&format!("before:write:{}", written + 1));
            write(client, one).map_err(|failure| partly(api_error(&one.object, &failure)))?;
            written += 1;
            crash_if_requested(&format!("after:write:{written}"));
            let is_new = matches!(one.action, WriteAction::Create(_));
            sink.note(format!("{} is {}", one.object, if is_new { "made" } else { "changed" }));
        }
        let state = read_state(client, named, Some(approved.to)).map_err(unfinished)?;
        writes = decided(&state, approved.to).map_err(unfinished)?.writes;
        if writes.is_empty() {
            break;
        }
    }
    verify_written(client, named, &before, approved.to).map_err(unfinished)
}

/// An error after something was written.
fn unfinished(error: Error) -> Error {
    let cause = format!("not all is written: {}", error.cause);
    Error::new(Kind::NotRolledBack, error.object, cause)
        .hint("every kube-proxy runs on; the same command goes on where this ended")
}

/// What is to be written now.
fn decided(state: &ClusterState, to: Mode) -> Result<Intent> {
    let object = state.original.metadata.reference(ApiKind::DaemonSet).to_string();
    decide(state, to, true).map_err(|refusals| refused(&object, &refusals))
}

/// The error for all reasons not to write.
pub fn refused(object: &str, refusals: &[ClusterRefusal]) -> Error {
    match refusals {
        [one] => one.error(object),
        several => {
            let all: Vec<String> = several.iter().map(ToString::to_string).collect();
            let first = several.first().map(|refusal| refusal.error(object));
            let hint = first.and_then(|error| error.hint).unwrap_or_default();
            Error::new(Kind::Blocked, object, all.join("; and ")).hint(hint)
        }
    }
}

/// Waits until the controller of DaemonSets has seen the original as it is now, and verifies that no pod
/// has ended because of it.
fn verify_written(
    client: &ApiClient,
    named: Option<&DaemonSetName>,
    before: &ClusterState,
    to: Mode,
) -> Result<()> {
    let until = Instant::now() + SETTLE;
    let state = loop {
        let state = read_state(client, named, Some(to))?;
        let original = &state.original;
        if original.status.observed_generation >= original.metadata.generation {
            break state;
        }
        let object = original.metadata.reference(ApiKind::DaemonSet).to_string();
        if Instant::now() > until {
            let cause = "its controller has not seen the change: is kube-controller-manager up?";
            return Err(Error::new(Kind::Blocked, object, cause));
        }
        interrupt::check(&object)?;
        thread::sleep(PAUSE);
    };
    let left = decided(&state, to)?.writes;
    if let Some(write) = left.first() {
        return Err(Error::new(Kind::LostRace, write.object.to_string(), "was changed meanwhile"));
    }
    let alive = |state: &ClusterState| -> BTreeSet<(String, String)> {
        let pods = state.pods.iter().filter(|pod| pod.is_alive());
        pods.map(|pod| (pod.spec.node_name.clone(), pod.metadata.uid.clone())).collect()
    };
    let now = alive(&state);
    // Where the original came back beside ours, that one was to end.
    let moved = |node: &str| {
        let of_node = state.nodes.iter().find(|found| found.metadata.name == node);
        of_node.is_none_or(|found| found.metadata.labels.contains_key(MODE_LABEL))
    };
    let ended = alive(before).into_iter().find(|pod| !now.contains(pod) && !moved(&pod.0));
    match ended {
        Some((node, _)) => {
            let cause = "its kube-proxy has ended meanwhile";
            Err(Error::new(Kind::Contested, format!("node {node}"), cause))
        }
        None => Ok(()),
    }
}

/// Takes the Lease: at once if nobody holds it, or a process of this machine that is gone; else once it
/// was not renewed for its time, whatever the clocks say.
fn take_lease<'c>(
    client: &'c ApiClient,
    namespace: &str,
    sink: &dyn Sink,
) -> Result<LeaseHold<'c>> {
    let failed = |failure: ApiFailure| api_error("the Lease kube-system/proxyshift", &failure);
    let me = holder(std::process::id());
    let mut watched: Option<(FoundLease, Instant)> = None;
    loop {
        let found = find_lease(client, namespace).map_err(failed)?;
        let is_free = match (&found, &watched) {
            (None, _) => true,
            (Some(found), _) if is_gone(found.holder()) => true,
            (Some(found), Some((before, since))) if found == before => {
                since.elapsed() > Duration::from_secs(LEASE_SECONDS)
            }
            (Some(found), Some(_)) => {
                let cause = format!("another administrator is at it: {}", found.holder());
                return Err(Error::new(Kind::Lock, format!("Lease {namespace}/proxyshift"), cause)
                    .hint("wait until that is done"));
            }
            (Some(found), None) => {
                sink.note(format!(
                    "{} holds the Lease: waiting up to {LEASE_SECONDS} s for it to end",
                    found.holder()
                ));
                false
            }
        };
        let take = || LeaseHold::take(client, namespace, &me, found.as_ref()).map_err(failed);
        if is_free && let Some(hold) = take()? {
            return Ok(hold);
        }
        if let Some(found) = found.filter(|_| watched.is_none()) {
            watched = Some((found, Instant::now()));
        }
        interrupt::check("the Lease")?;
        thread::sleep(PAUSE);
    }
}

/// What names a process of this machine, and of this boot.
fn holder(pid: u32) -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{host}/{}/{}/{pid}", clock::boot_id().trim(), namespace.display())
}

/// Whether the holder is a process of this machine that is gone.
fn is_gone(name: &str) -> bool {
    let Some(pid) = name.rsplit('/').next().and_then(|pid| pid.parse::<u32>().ok()) else {
        return false;
    };
    let raw = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    let is_alive = raw.is_some_and(|pid| {
        !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    });
    name == holder(pid) && !is_alive
}
