//! Counters of lost packets that rise between two captures: one check for each counter.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::NodeState;
use crate::state::conntrack::ConntrackStat;

pub(super) const DROP: Check =
    row("conntrack.drop", "packets that connection tracking drops", |facts| {
        rising(
            facts,
            "drop",
            "new connections are dropped: the table is full, or memory ran out",
            &["sysctl net.netfilter.nf_conntrack_count net.netfilter.nf_conntrack_max", RAISE],
        )
    });

pub(super) const EARLY_DROP: Check =
    row("conntrack.early-drop", "connections that are forgotten to make room", |facts| {
        rising(
            facts,
            "early_drop",
            "connections that are still waiting for an answer are forgotten to make room: their \
             answers arrive untranslated and are dropped",
            &[RAISE],
        )
    });

pub(super) const INSERT_FAILED: Check = row(
    "conntrack.insert-failed",
    "connections that two packets open at once",
    |facts| {
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
);

const RAISE: &str = "sysctl -w net.netfilter.nf_conntrack_max=N   # and conntrack.min: N in \
                     kube-proxy's configuration";

/// A check of one conntrack counter.
const fn row(id: &'static str, title: &'static str, evaluate: fn(&Facts<'_>) -> Verdict) -> Check {
    Check {
        id,
        title,
        severity: Severity::Warn,
        when: "always; needs two looks (--watch)",
        applies: always,
        evaluate,
        reference: "https://conntrack-tools.netfilter.org/conntrack.html",
    }
}

/// Finds that the counter `name` rose since the earlier capture.
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
    use super::*;
    use crate::checks::testing::{Node, given};

    fn counted(value: u32) -> Node {
        let text = format!(
            "entries insert_failed drop early_drop\n00000001 {value:08x} {value:08x} {value:08x}\n"
        );
        Node::captured("docker-iptables-1.30").put("nf_conntrack.stat", &text)
    }

    #[test]
    fn found_ok_and_unknown() {
        let (seven, nine) = (counted(7).state(), counted(9).state());
        let without = counted(9).remove("nf_conntrack.stat").state();
        for check in [&DROP, &EARLY_DROP, &INSERT_FAILED] {
            let between = |before: Option<&NodeState>, now: &NodeState| {
                given(now).earlier(before).verdict(check)
            };
            let Verdict::Found(found) = between(Some(&seven), &nine) else {
                panic!("{} is not found", check.id);
            };
            assert!(found.evidence[0].ends_with(" 7 → 9, 2 more"), "{found:?}");
            assert!(matches!(between(Some(&nine), &nine), Verdict::Ok(_)), "{}", check.id);
            for verdict in [
                between(None, &nine),
                between(Some(&nine), &seven),
                between(Some(&seven), &without),
            ] {
                assert!(matches!(verdict, Verdict::Unknown(_)), "{}", check.id);
            }
        }
    }
}
