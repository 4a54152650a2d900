//! Names the other programs that write to nf_tables while a run applies its edits. While very large
//! edits are applied, no other programs are named.

use std::collections::BTreeSet;

use crate::node::nfnetlink::{Commits, Listener};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, Edit, Target};
use crate::state::{Backend, NodeState};

/// How many other writers are named in the sentence.
const SHOWN: usize = 5;

/// The largest number of changed objects for which the run listens. The kernel reports each object
/// of our own commits too. For 100,000 objects these reports take longer than the commit, and the
/// socket overflows.
const LISTENED_TO: usize = 10_000;

/// Listens to the commits of nf_tables. If that is impossible, the run goes on without listening.
pub(super) struct Writers {
    listener: Option<Listener>,
}

impl Writers {
    /// Listens from now on, if `base` has nf_tables tables and `edits` are small enough. Without
    /// such tables it does not listen, because a request could load the kernel module of nf_tables.
    pub(super) fn of(base: &NodeState, edits: &[Edit]) -> Writers {
        let nft = base.rulesets.keys().any(|id| id.backend == Backend::Nft);
        let few = edits.iter().map(Edit::objects).sum::<usize>() <= LISTENED_TO;
        Writers { listener: (nft && few).then(Listener::open).and_then(Result::ok) }
    }

    /// A sentence that names the writers other than this run, whose own edits are `edits`.
    pub(super) fn others(&mut self, edits: &[Edit]) -> Option<String> {
        let received = self.listener.as_mut()?.drain();
        sentence(&received, &own_names(edits))
    }
}

/// The command names under which this run itself writes. PIDs could not tell which commits are our
/// own, because a container has its own PIDs, and because our children have ended by now.
fn own_names(edits: &[Edit]) -> BTreeSet<String> {
    let programs = edits.iter().filter_map(|edit| match (&edit.target, edit.direction) {
        (Target::Table(t), Direction::Add) => Some(Tool::Restore(t.ruleset).program()),
        _ => None,
    });
    // The kernel truncates a command name to 15 bytes.
    let mut names: BTreeSet<String> = programs.map(|p| p.chars().take(15).collect()).collect();
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    names.insert(comm.trim_end().to_owned());
    names
}

fn sentence(received: &Commits, own: &BTreeSet<String>) -> Option<String> {
    let mut named: Vec<String> = Vec::new();
    for writer in received.commits.iter().filter(|w| !own.contains(&w.name)) {
        let name = format!("{} (pid {})", writer.name, writer.pid);
        if !named.contains(&name) {
            named.push(name);
        }
    }
    let more = named.len().saturating_sub(SHOWN);
    named.truncate(SHOWN);
    if more > 0 {
        named.push(format!("{more} more"));
    }
    if received.missed {
        named.push("perhaps others, of whom the kernel could not tell".into());
    }
    (!named.is_empty()).then(|| format!("written meanwhile by {}", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::nfnetlink::Commit;

    #[test]
    fn everybody_else_is_named_once() {
        let writer = |pid, name: &str| Commit { generation: pid, pid, name: name.into() };
        let own = BTreeSet::from(["proxyshift".to_owned()]);
        let mut received = Commits {
            commits: vec![writer(7, "proxyshift"), writer(8, "nft"), writer(8, "nft")],
            missed: false,
        };
        let text = |received: &Commits| sentence(received, &own);
        assert_eq!(text(&received).as_deref(), Some("written meanwhile by nft (pid 8)"));
        received.commits.extend((20..26).map(|pid| writer(pid, "dockerd")));
        assert!(
            text(&received).unwrap().ends_with("dockerd (pid 23), 2 more"),
            "{:?}",
            text(&received)
        );
        received.commits.truncate(1);
        assert_eq!(text(&received), None);
        received.missed = true;
        assert!(text(&received).unwrap().contains("could not tell"));
    }
}
