//! Free disk space for snapshots and the journal.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always, not_live};

pub(super) const CHECK: Check = Check {
    id: "tools.disk-room",
    title: "the room for snapshots and the journal",
    severity: Severity::Block,
    when: "always; a live node alone can be asked",
    applies: always,
    evaluate,
    reference: "https://man7.org/linux/man-pages/man3/statvfs.3.html",
};

/// How many states of the current size must fit into the free space: ten snapshots, the states that
/// a run saves, and the journal.
const STATES: u64 = 20;
/// The free space, in bytes, that is required even if the state is small.
const LEAST: u64 = 64 << 20;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(free) = facts.live.and_then(|a| a.store_free) else {
        return not_live();
    };
    let state: u64 = facts.now.files.values().map(|text| text.len() as u64).sum();
    let needed = LEAST.max(state.saturating_mul(STATES));
    let shown = format!("{} MiB free, {} MiB needed", free >> 20, needed.div_ceil(1 << 20));
    if free >= needed {
        return Verdict::Ok(shown);
    }
    Verdict::Found(Found {
        evidence: vec![shown, format!("a capture of this node has {} KiB", state.div_ceil(1024))],
        effect: "traffic goes on, but no run can begin: a full disk would stop its journal".into(),
        remedy: vec![
            "proxyshift snapshot prune --keep 3".into(),
            "or keep the store elsewhere: proxyshift --store DIR …".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    #[test]
    fn enough_is_ok_less_is_found_and_a_snapshot_does_not_say() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let with = |state: &crate::state::NodeState, free| {
            let live = LiveFacts { store_free: Some(free), ..LiveFacts::default() };
            given(state).live(&live).verdict(&CHECK)
        };
        assert!(matches!(with(&state, LEAST), Verdict::Ok(_)));
        assert!(matches!(with(&state, LEAST - 1), Verdict::Found(_)));
        // The larger the node's state, the more space is needed.
        state.files.insert("large".into(), "x".repeat(8 << 20).into());
        assert!(matches!(with(&state, LEAST), Verdict::Found(_)));
    }
}
