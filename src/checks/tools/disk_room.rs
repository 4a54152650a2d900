//! Snapshots and the journal need room before anything begins.

use super::super::{Check, Facts, Found, Severity, Verdict, always};

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.disk-room",
    title: "the room for snapshots and the journal",
    severity: Severity::Block,
    when: "always; a live node alone can be asked",
    applies: always,
    judge,
    reference: "https://man7.org/linux/man-pages/man3/statvfs.3.html",
};

/// Room for this many states: ten that are kept, those of a run, and the journal.
const STATES: u64 = 20;
/// However small the state is.
const LEAST: u64 = 64 << 20;

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(free) = facts.live.and_then(|a| a.store_free) else {
        return Verdict::Unknown("a live node alone can be asked".into());
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
    use super::super::super::testing::{judged, judged_with, node};
    use super::*;
    use crate::state::live_facts::LiveFacts;

    #[test]
    fn enough_is_ok_less_is_found_and_a_snapshot_does_not_say() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        let with = |state: &crate::state::NodeState, free| {
            let asked = LiveFacts { store_free: Some(free), ..LiveFacts::default() };
            judged_with(&CHECK, state, None, None, Some(&asked))
        };
        assert!(matches!(with(&state, LEAST), Verdict::Ok(_)));
        assert!(matches!(with(&state, LEAST - 1), Verdict::Found(_)));
        // A large node needs more.
        state.files.insert("large".into(), "x".repeat(8 << 20).into());
        assert!(matches!(with(&state, LEAST), Verdict::Found(_)));
    }
}
