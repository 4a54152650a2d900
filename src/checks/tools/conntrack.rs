//! kube-proxy up to 1.31 runs the `conntrack` binary to clear stale UDP entries.

use super::super::{Check, Facts, Severity, Verdict, always};
use super::seen;
use crate::state::tools::Version;

/// The first version that clears entries over netlink instead (kubernetes PR 126847).
const NETLINK: Version = Version { major: 1, minor: 32, patch: 0 };

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.conntrack",
    title: "the conntrack binary that kube-proxy runs",
    severity: Severity::Block,
    when: "kube-proxy up to 1.31, or of an unknown version",
    applies: always,
    judge,
    reference: "https://github.com/kubernetes/kubernetes/pull/126847",
};

const EFFECT: &str = "stale UDP entries of service addresses are never cleared: DNS keeps going \
                      to pods that are gone";

fn judge(facts: &Facts<'_>) -> Verdict {
    if facts.running.version.is_some_and(|v| v >= NETLINK) {
        return Verdict::Ok("kube-proxy 1.32 and later needs no conntrack binary".into());
    }
    match seen(facts, "conntrack") {
        Err(why) => Verdict::Unknown(why),
        Ok(seen) => match seen.missing("conntrack", EFFECT) {
            Some(found) => Verdict::Found(found),
            None => Verdict::Ok(seen.shown()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, node};
    use super::*;

    #[test]
    fn found_where_it_is_missing() {
        let Verdict::Found(found) =
            judged(&CHECK, &node("docker-legacy-iptables-1.20-no-conntrack"))
        else {
            panic!("not found");
        };
        assert!(found.evidence[1].contains("executable file not found"), "{:?}", found.evidence);
    }

    #[test]
    fn ok_where_it_is_there_or_not_needed_and_unknown_without_a_list() {
        let mut state = node("docker-iptables-1.30");
        let Verdict::Ok(shown) = judged(&CHECK, &state) else { panic!("not ok") };
        assert!(shown.starts_with("/usr/sbin/conntrack conntrack v1.4.7"), "{shown}");
        state.tools = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        let mut processes = state.processes.take().unwrap();
        for process in &mut processes {
            process.version = Some("v1.32.0".into());
        }
        state.processes = Some(processes);
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
    }
}
