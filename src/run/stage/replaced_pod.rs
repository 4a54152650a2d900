//! The stage `upgrade` on a node of kube-proxy's DaemonSet: an administrator has changed the image, the
//! strategy OnDelete holds it back, and the node deletes its own pod.
//!
//! The rules of the old process stay while no kube-proxy runs, and the new one takes them over, so no bridge
//! is needed.

use std::time::Duration;

use crate::apply::kube_proxy::{let_in, undo_update};
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::node::kube_proxy_controller::{find_update, pod_of, pods_of_node};
use crate::node::processes;
use crate::plan::change::{Change, Edit};
use crate::run::controller::only_process;
use crate::run::execution::{Execution, UndoContext};
use crate::run::payload::{StepRef, replay};
use crate::run::preview::Previewer;
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::kubernetes::{ClusterPod, PodUpdate};
use crate::state::stage::StageName;
use crate::store::journal;

/// How long an undo waits for a pod, and for the API server.
const UNDO_WITHIN: Duration = Duration::from_secs(120);
const ASK_WITHIN: Duration = Duration::from_secs(10);

/// What the stage would do, in a sentence.
pub(super) fn preview(previewer: &Previewer<'_>) -> Result<String> {
    let process = only_process(previewer.state)?;
    if !previewer.live {
        return Ok("deletes kube-proxy's pod, if another image waits in its DaemonSet".to_owned());
    }
    let update = find_update(process, previewer.to())?;
    Ok(format!("deletes pod {}, which {update} makes anew: {}", update.pod, update.changes()))
}

/// Replaces the pod. Goes on where a run that is resumed has begun to.
pub(super) fn replace(execution: &mut Execution<'_>, timeout: Duration) -> Result<()> {
    let context = execution.context;
    let mode = execution.migration()?.modes.to;
    let lines = journal::read(&context.store.folder(&execution.run.id))?;
    let step = StepRef::new(StageName::Upgrade.name(), 1);
    let update = match begun(&replay(lines)?.begun) {
        Some(update) => {
            update.verify()?;
            update.clone()
        }
        None => {
            let update = find_update(only_process(&context.observe_owners()?)?, mode)?;
            let change = Change::PodReplaced(Box::new(update.clone()));
            step.begin::<Edit>(&mut execution.journal, change)?;
            update
        }
    };
    let task = Task::ReplacePod { pod: update.pod.clone() };
    context.sink.started(&task);
    let pid = let_in(&update, timeout)?;
    step.mark_done(&mut execution.journal)?;
    context.sink.finished(&task, Outcome::Replaced);
    context.sink.note(format!("{} (pid {pid})", update.changes()));
    Ok(())
}

/// The update that a run has begun to let in.
fn begun(changes: &[Change]) -> Option<&PodUpdate> {
    changes.iter().rev().find_map(|change| match change {
        Change::PodReplaced(update) => Some(&**update),
        _ => None,
    })
}

/// Takes the update back as far as this node can: of the old version only an administrator can have a pod
/// made, by the image in the DaemonSet. Once it is there again, the node deletes its pod once more.
///
/// # Errors
/// [`Kind::NotRolledBack`] when no kube-proxy runs.
pub(in crate::run) fn undo(undo: &mut UndoContext<'_>) -> Result<()> {
    let Some(update) = begun(&undo.replay.begun) else { return Ok(()) };
    let undone = undo_if_permitted(undo, update);
    let runs = !processes::pids(PROGRAM)?.is_empty();
    undo.serves = runs;
    match undone {
        Ok(()) => Ok(()),
        // The version is the administrator's, so a kube-proxy that runs is as far as an undo goes.
        Err(e) if runs => {
            undo.context.sink.warning(e.to_string());
            Ok(())
        }
        Err(e) => Err(Error { kind: Kind::NotRolledBack, ..e }),
    }
}

fn undo_if_permitted(undo: &UndoContext<'_>, update: &PodUpdate) -> Result<()> {
    let set = update.read_daemon_set()?;
    let pods = pods_of_node(&update.kubeconfig, &update.node, ASK_WITHIN)?;
    let is_made = |pod: &&_| is_made_by(pod, update);
    let running = processes::pids(PROGRAM)?.into_iter().find_map(|pid| pod_of(pid, &pods));
    let alive = pods.iter().filter(|pod| pod.is_alive()).find(is_made);
    // A pod that is being deleted may run for a while yet.
    let running = running.filter(|pod| is_made(pod) && pod.is_alive());
    let Some(present) = running.or(alive) else {
        let cause = format!("has no pod on Node {}: is it scheduled?", update.node);
        return Err(Error::new(Kind::Blocked, update.to_string(), cause));
    };
    if present.spec.images() == update.from {
        return Ok(());
    }
    if set.pod_spec().images() == update.from {
        let task = Task::ReplacePod { pod: present.metadata.name.clone() };
        undo.context.sink.started(&task);
        undo_update(update, present, UNDO_WITHIN)?;
        undo.context.sink.finished(&task, Outcome::Replaced);
        return Ok(());
    }
    let cause = format!(
        "its template has other images ({}), so pod {} keeps them, and is {}; once an administrator \
         has put the old ones back there, this node takes them by the same playbook, or by \
         `proxyshift rollback` if this run is not undone",
        update.changes(),
        present.metadata.name,
        present.progress()
    );
    Err(Error::new(Kind::Blocked, update.to_string(), cause))
}

fn is_made_by(pod: &ClusterPod, update: &PodUpdate) -> bool {
    pod.metadata.controller().is_some_and(|owner| owner.uid == update.daemon_set_uid)
}
