//! Counters that say that packets are lost, when they rise between two looks.

use super::super::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::NodeState;
use crate::state::conntrack::ConntrackStat;

const WHEN: &str = "always; needs two looks (--watch)";
const REFERENCE: &str = "https://conntrack-tools.netfilter.org/conntrack.html";

pub(in crate::checks) const DROP: Check = Check {
    id: "conntrack.drop",
    title: "packets that connection tracking drops",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    judge: |facts| {
        rising(
            facts,
            "drop",
            "new connections are dropped: the table is full, or memory ran out",
            &["sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max", RAISE],
        )
    },
    reference: REFERENCE,
};

pub(in crate::checks) const EARLY_DROP: Check = Check {
    id: "conntrack.early-drop",
    title: "connections that are forgotten to make room",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    judge: |facts| {
        rising(
            facts,
            "early_drop",
            "connections that are still waiting for an answer are forgotten to make room: their \
             answers arrive untranslated and are dropped",
            &[RAISE],
        )
    },
    reference: REFERENCE,
};

pub(in crate::checks) const INSERT_FAILED: Check = Check {
    id: "conntrack.insert-failed",
    title: "connections that two packets open at once",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    judge: |facts| {
        rising(
            facts,
            "insert_failed",
            "packets are dropped when two open the same flow at once: two DNS questions from one \
             port, of which one times out after 5 s",
            &[
                "in the pods: dnsConfig: {options: [{name: single-request-reopen}]}",
                "or serve DNS on each node: https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/",
            ],
        )
    },
    reference: REFERENCE,
};

const RAISE: &str = "sysctl -w net.netfilter.nf_conntrack_max=N   # and conntrack.min: N in \
                     kube-proxy's configuration";

/// Found, if `name` rose between the looks.
fn rising(facts: &Facts<'_>, name: &str, effect: &str, remedy: &[&str]) -> Verdict {
    let Some(earlier) = facts.earlier else {
        return Verdict::Unknown("it needs two looks: check --watch 10".into());
    };
    let (before, now) = match (counter(earlier, name), counter(facts.now, name)) {
        (Ok(before), Ok(now)) => (before, now),
        (Err(why), _) | (_, Err(why)) => return Verdict::Unknown(why),
    };
    match now.checked_sub(before) {
        Some(0) => Verdict::Ok(format!("{name} stays at {now}")),
        Some(more) => Verdict::Found(Found {
            evidence: vec![format!(
                "/proc/net/stat/nf_conntrack: {name} {before} → {now}, {more} more"
            )],
            effect: effect.into(),
            remedy: remedy.iter().map(|r| (*r).to_owned()).collect(),
            fix: Vec::new(),
        }),
        None => Verdict::Unknown(format!("{name} fell from {before} to {now}: not the same boot")),
    }
}

fn counter(state: &NodeState, name: &str) -> Result<u64, String> {
    const FILE: &str = "nf_conntrack.stat";
    let text = state.files.get(FILE).ok_or(format!("{FILE} is not in this state"))?;
    let stat = ConntrackStat::parse(FILE, text).map_err(|e| e.to_string())?;
    stat.get(name).ok_or(format!("this kernel has no counter {name}"))
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged_with, node};
    use super::*;

    fn state(value: u32) -> NodeState {
        let mut state = node("docker-iptables-1.30");
        let text = format!(
            "entries insert_failed drop early_drop\n00000001 {value:08x} {value:08x} {value:08x}\n"
        );
        state.files.insert("nf_conntrack.stat".into(), text.into());
        state
    }

    fn judged(check: &Check, before: Option<&NodeState>, now: &NodeState) -> Verdict {
        judged_with(check, now, None, before, None)
    }

    #[test]
    fn found_ok_and_unknown() {
        for check in [&DROP, &EARLY_DROP, &INSERT_FAILED] {
            let (seven, nine) = (state(7), state(9));
            let Verdict::Found(found) = judged(check, Some(&seven), &nine) else {
                panic!("{} is not found", check.id);
            };
            assert!(found.evidence[0].ends_with(" 7 → 9, 2 more"), "{found:?}");
            assert!(matches!(judged(check, Some(&nine), &nine), Verdict::Ok(_)), "{}", check.id);
            for verdict in [judged(check, None, &nine), judged(check, Some(&nine), &seven)] {
                assert!(matches!(verdict, Verdict::Unknown(_)), "{}", check.id);
            }
            let mut without = state(9);
            without.files.remove("nf_conntrack.stat");
            assert!(matches!(judged(check, Some(&seven), &without), Verdict::Unknown(_)));
        }
    }
}
