//! kube-proxy up to 1.31 runs the `conntrack` binary to clear stale UDP entries.

use super::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::tools::Version;

/// The first version that clears entries over netlink instead (kubernetes PR 126847).
const NETLINK: Version = Version { major: 1, minor: 32, patch: 0 };

pub(super) const CHECK: Check = Check {
    id: "tools.conntrack",
    title: "the conntrack binary that kube-proxy runs",
    severity: Severity::Block,
    when: "kube-proxy up to 1.31, or of an unknown version",
    applies: always,
    judge,
    reference: "https://github.com/kubernetes/kubernetes/pull/126847",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    if facts.running.version.is_some_and(|v| v >= NETLINK) {
        return Verdict::Ok("kube-proxy 1.32 and later needs no conntrack binary".into());
    }
    // What kube-proxy itself sees decides; in a container that is not what the host has.
    let seen = facts.asked.and_then(|a| a.kube_proxy_tools.as_ref());
    let Some(tools) = seen.or(facts.now.tools.as_ref()) else {
        return Verdict::Unknown("the tools are not in this state".into());
    };
    let Some(tool) = tools.get("conntrack") else {
        return Verdict::Unknown("the list of tools does not say".into());
    };
    if let Some(path) = &tool.path {
        return Verdict::Ok(path.clone());
    }
    let mut evidence = vec!["conntrack: not installed".to_owned()];
    evidence.extend(failures_in_log(facts));
    Verdict::Found(Found {
        evidence,
        effect:
            "stale UDP entries of service addresses are never cleared: DNS keeps going to pods \
                 that are gone"
                .into(),
        remedy: vec!["apt-get install conntrack   # or conntrack-tools".into()],
        fix: Vec::new(),
    })
}

/// The lines of kube-proxy's log that tell of it.
fn failures_in_log(facts: &Facts<'_>) -> impl Iterator<Item = String> {
    let log = facts.now.file("/var/log/kube-proxy.log").unwrap_or_default();
    let tells = |line: &&str| line.contains("looking for path of conntrack");
    log.lines().filter(tells).take(1).map(|l| format!("/var/log/kube-proxy.log: {l}"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{judged, node};
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
    fn ok_where_it_is_there_and_unknown_without_a_list() {
        let mut state = node("docker-iptables-1.30");
        assert_eq!(judged(&CHECK, &state), Verdict::Ok("/usr/sbin/conntrack".into()));
        state.tools = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
