//! Connections through virtual servers that are about to go.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::node::tools::Tool;
use crate::plan::edit::{Direction, Edit, Target};
use crate::run::Context;
use crate::state::ipvs::{Listing, Service};

/// How often they are counted.
const INTERVAL: Duration = Duration::from_millis(500);

/// Waits up to `patience` until no connection runs through the virtual servers that `edits` remove;
/// says how many are cut.
///
/// # Errors
/// When ipvsadm fails.
pub(super) fn wait(context: &Context<'_>, edits: &[Edit], patience: Duration) -> Result<()> {
    let going: Vec<Service> = edits.iter().filter_map(removed).collect();
    if going.is_empty() {
        return Ok(());
    }
    let task = "waiting for connections through ipvs to end";
    context.sink.started(task);
    let start = Instant::now();
    let open = loop {
        let open = open(context, &going)?;
        if open == 0 || start.elapsed() >= patience {
            break open;
        }
        std::thread::sleep(INTERVAL);
    };
    context.sink.finished(task, format!("{open} are open"));
    if open > 0 {
        let text = format!("{open} connections through ipvs end with its virtual servers");
        context.sink.warning(text);
    }
    Ok(())
}

fn removed(edit: &Edit) -> Option<Service> {
    match &edit.target {
        Target::VirtualServer(server) if edit.direction == Direction::Remove => {
            Some(server.service)
        }
        _ => None,
    }
}

/// How many connections are active through these virtual servers.
fn open(context: &Context<'_>, going: &[Service]) -> Result<u64> {
    let listed = context.tools.command(Tool::Ipvsadm)?.args(["-L", "-n"]).run()?.stdout;
    let listing = Listing::parse("ipvsadm -L -n", &listed)?;
    let servers = listing.servers.iter().filter(|s| going.contains(&s.service));
    Ok(servers.flat_map(|s| &s.reals).map(|real| real.active).sum())
}
