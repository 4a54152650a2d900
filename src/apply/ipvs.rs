//! Removes and adds ipvs virtual servers one by one, because a flush would remove those of other
//! programs too.

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, RealServerRef};
use crate::state::ipvs::VirtualServer;

pub(super) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    server: &VirtualServer,
) -> Result<()> {
    let command = kernel.writer(Tool::Ipvsadm)?;
    let selector = server.service.selector();
    let command = match direction {
        Direction::Remove => command.args(["-D"]).args(selector.split(' ')),
        Direction::Add => command.args(["-R"]).stdin(server.render()),
    };
    command.run().map(|_| ()).map_err(|e| Error { kind: Kind::Kernel, ..e })
}

/// Messages with which ipvsadm fails if kube-proxy has already removed the real server or its
/// virtual server.
const GONE: [&str; 3] = ["No such destination", "No such service", "Service not defined"];

pub(super) fn apply_real(
    kernel: &Kernel<'_>,
    direction: Direction,
    server: &RealServerRef,
) -> Result<()> {
    let RealServerRef { service, real } = server;
    let verb = match direction {
        Direction::Remove => "-d",
        Direction::Add => "-a",
    };
    let mut words = format!("{verb} {} -r {}", service.selector(), real.address);
    if direction == Direction::Add {
        words += &format!(" {}", real.options());
    }
    let command = kernel.writer(Tool::Ipvsadm)?.args(words.split(' '));
    command.run().map(|_| ()).map_err(|e| {
        let first = GONE.iter().any(|message| e.cause.contains(message));
        let kind = if first { Kind::LostRace } else { Kind::Kernel };
        Error { kind, ..e }
    })
}
