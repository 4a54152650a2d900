//! Open connections through virtual servers that are about to be removed.

use std::time::Duration;

use crate::error::Result;
use crate::event::{Outcome, Task};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, Edit, Target};
use crate::run::Context;
use crate::run::wait::{Poll, poll};
use crate::state::ipvs::{Listing, VirtualServerId};

/// How many virtual servers are named in a message.
const NAMED: usize = 5;

/// Waits up to `timeout` until no connection runs through the virtual servers that `edits` remove.
/// Afterwards warns of the connections that are still open, because the edits will cut them.
/// `keep_waiting` is called in between and may end the wait.
///
/// # Errors
/// When ipvsadm fails; or the error of `keep_waiting`.
pub(super) fn wait(
    context: &Context<'_>,
    edits: &[Edit],
    timeout: Duration,
    keep_waiting: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let removed_servers: Vec<VirtualServerId> = edits.iter().filter_map(removed).collect();
    if removed_servers.is_empty() {
        return Ok(());
    }
    let task = Task::Drain;
    context.sink.started(&task);
    let result = poll(timeout, keep_waiting, || {
        let listed = context.tools.command(Tool::Ipvsadm)?.args(["-L", "-n"]).run()?.stdout;
        let open = open(&Listing::parse("ipvsadm -L -n", &listed)?, &removed_servers);
        Ok(if open.is_empty() { Poll::Ready(()) } else { Poll::NotYet(open) })
    })?;
    match result {
        Poll::Ready(()) => context.sink.finished(&task, Outcome::Drained),
        Poll::NotYet(open) => {
            context.sink.finished(&task, Outcome::StillOpen { connections: count(&open) });
            context.sink.warning(cut(&open));
        }
    }
    Ok(())
}

fn removed(edit: &Edit) -> Option<VirtualServerId> {
    match &edit.target {
        Target::VirtualServer(server) if edit.direction == Direction::Remove => {
            Some(server.service)
        }
        _ => None,
    }
}

/// Those of `removed_servers` that have active connections, each with the number of these
/// connections, the highest number first.
fn open(listing: &Listing, removed_servers: &[VirtualServerId]) -> Vec<(VirtualServerId, u64)> {
    let servers = listing.servers.iter().filter(|s| removed_servers.contains(&s.service));
    let mut open: Vec<(VirtualServerId, u64)> = servers
        .map(|s| (s.service, s.reals.iter().map(|real| u64::from(real.active)).sum()))
        .collect();
    open.retain(|(_, active)| *active > 0);
    open.sort_by_key(|(_, active)| std::cmp::Reverse(*active));
    open
}

fn count(open: &[(VirtualServerId, u64)]) -> u64 {
    open.iter().map(|(_, active)| active).sum()
}

/// The warning about open connections: `3 connections through ipvs end with its virtual servers:
/// 10.96.1.1:80/tcp (2), …`.
fn cut(open: &[(VirtualServerId, u64)]) -> String {
    let named = open.iter().take(NAMED).map(|(service, active)| format!("{service} ({active})"));
    let named = named.collect::<Vec<_>>().join(", ");
    let more = match open.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let all = count(open);
    format!("{all} connections through ipvs end with its virtual servers: {named}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.10:53 rr
  -> 10.244.0.11:8080             Masq    1      1          0
TCP  10.96.1.1:80 rr
  -> 10.244.0.11:8080             Masq    1      2          7
  -> 10.244.0.12:8080             Masq    1      1          0
TCP  10.96.1.2:80 rr
  -> 10.244.0.12:8080             Masq    1      0          4
TCP  192.168.100.50:7000 wrr
  -> 10.244.0.12:8080             Masq    7      9          0
";

    #[test]
    fn it_counts_and_names_what_goes_and_nothing_else() {
        let listing = Listing::parse("ipvsadm", LISTED).unwrap();
        let removed_servers: Vec<VirtualServerId> =
            listing.servers.iter().take(3).map(|s| s.service).collect();
        assert_eq!(
            cut(&open(&listing, &removed_servers)),
            "4 connections through ipvs end with its virtual servers: 10.96.1.1:80/tcp (3), \
             10.96.0.10:53/tcp (1)"
        );
        assert_eq!(open(&listing, &removed_servers[2..]), []);
    }

    #[test]
    fn it_does_not_name_hundreds() {
        let listing = Listing::parse("ipvsadm", LISTED).unwrap();
        let service = listing.servers[0].service;
        let text = cut(&vec![(service, 1); 8]);
        assert!(text.starts_with("8 connections") && text.ends_with(", and 3 more"), "{text}");
    }
}
