//! The stage `settle`: deletes stale UDP entries of conntrack, which would still send clients to
//! endpoints that are gone. The stage cannot be undone.

use std::net::SocketAddr;

use crate::apply::conntrack;
use crate::error::Result;
use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::Services;
use crate::node::conntrack::{ConntrackSocket, UdpServices};
use crate::plan::change::Irreversible;
use crate::plan::playbook::Settle;
use crate::run::execution::Execution;
use crate::run::payload::StepRef;
use crate::run::preview::{Previewed, Previewer};
use crate::run::stage::{Stage, Undo};
use crate::state::ipvs::Protocol;
use crate::state::stage::{RunStage, StageName};

/// Deleted conntrack entries cannot be restored, so nothing undoes the stage.
pub(super) const UNDO: Option<Undo> = None;

/// The stage `settle` with the options of the playbook.
pub(super) fn stage(options: Settle) -> Box<dyn Stage> {
    Box::new(options)
}

impl Stage for Settle {
    fn name(&self) -> RunStage {
        RunStage::Playbook(StageName::Settle)
    }

    fn preview(&self, _: &Previewer<'_>) -> Previewed {
        Previewed::line("forgets stale UDP connections to services; cannot be undone")
    }

    fn run(&self, execution: &mut Execution<'_>) -> Result<()> {
        let to = execution.migration()?.modes.to;
        let task = Task::Settle;
        execution.context.sink.started(&task);
        let now = execution.context.observe_objects()?;
        let mut conntrack = ConntrackSocket::open()?;
        let mut cleared = 0;
        for entry in conntrack.stale(&udp_backends(&mode::of(to).services(&now)))? {
            cleared += usize::from(conntrack::delete(&mut conntrack, &entry)?);
        }
        let step = StepRef::new(StageName::Settle.name(), 1);
        step.note(&mut execution.journal, Irreversible::Conntrack { cleared })?;
        execution.context.sink.finished(&task, Outcome::Settled { deleted: cleared });
        Ok(())
    }
}

/// The UDP services that have an address of their own (not NodePorts), with their endpoints.
fn udp_backends(services: &Services) -> UdpServices {
    let udp = services.iter().filter(|(key, _)| key.protocol == Protocol::Udp);
    udp.filter_map(|(key, service)| {
        Some((SocketAddr::new(key.address()?, key.port), service.backends.clone()))
    })
    .collect()
}
