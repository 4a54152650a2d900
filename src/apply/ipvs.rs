//! ipvs virtual servers, one by one: a flush would take those of others along.

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::commands::Command;
use crate::node::tools::Tool;
use crate::plan::edit::Direction;
use crate::state::ipvs::VirtualServer;

pub(super) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    server: &VirtualServer,
) -> Result<()> {
    let command = Command::new(kernel.tools.tool(Tool::Ipvsadm)?);
    let selector = server.service.selector();
    let command = match direction {
        Direction::Remove => command.args(["-D"]).args(selector.split(' ')),
        Direction::Add => command.args(["-R"]).stdin(server.render()),
    };
    command.run().map(|_| ()).map_err(|e| Error { kind: Kind::Kernel, ..e })
}
