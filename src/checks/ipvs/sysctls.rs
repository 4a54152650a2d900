//! Sysctls of ipvs: whether their values on the node are the right ones.

use crate::checks::kube_proxy::at_least;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// The sysctl that decides what ipvs does when a client reuses a source port. The right value is 0
/// before kernel 5.9, and not 0 from 5.9 on.
const REUSE: &str = "net.ipv4.vs.conn_reuse_mode";

/// The first kernel that chooses a real server anew for a connection from a reused source port
/// without delaying the connection.
const REBALANCES: Version = Version { major: 5, minor: 9, patch: 0 };

/// The sysctls that kube-proxy sets to 1 in ipvs mode, each with what goes wrong while it is 0.
const EXPIRES: [(&str, &str); 3] = [
    ("net.ipv4.vs.conntrack", "masquerading does not see the connections of ipvs"),
    ("net.ipv4.vs.expire_nodest_conn", "packets to a real server that is gone are dropped"),
    (
        "net.ipv4.vs.expire_quiescent_template",
        "affinity keeps clients with a real server at weight 0",
    ),
];

pub(super) const CONN_REUSE_MODE: Check = Check {
    id: "ipvs.conn-reuse-mode",
    title: "what ipvs does when a client uses a port again",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate: conn_reuse_mode,
    reference: "https://github.com/kubernetes/kubernetes/issues/81775",
};

fn conn_reuse_mode(facts: &Facts<'_>) -> Verdict {
    let Some(kernel) = facts.now.tools.as_ref().and_then(|t| t.kernel_version()) else {
        return Verdict::Unknown("the kernel's version is not in this state".into());
    };
    let sysctls = facts.now.sysctls();
    let Some(value) = sysctls.as_ref().and_then(|s| s.get(REUSE)) else {
        return Verdict::Unknown(format!("{REUSE} is not there: ip_vs is not loaded"));
    };
    let evidence = vec![format!("{REUSE} = {value}"), format!("kernel {kernel}")];
    match (kernel >= REBALANCES, value == "0") {
        (true, false) | (false, true) => Verdict::Ok(evidence.join(", ")),
        (true, true) => {
            let mut remedy = vec![format!("sysctl -w {REUSE}=1")];
            if at_least(facts, 22) != Some(true) {
                remedy.push(
                    "upgrade kube-proxy to 1.22 or later: before, each start sets it to 0 again"
                        .into(),
                );
            }
            Verdict::Found(Found {
                evidence,
                effect: "a client that uses a port again is sent to the real server that it had, \
                         even at weight 0: a busy client hangs on to a pod that is going away"
                    .into(),
                remedy,
                fix: Vec::new(),
            })
        }
        (false, false) => Verdict::Found(Found {
            evidence,
            effect: "on a kernel before 5.9 a client that uses a port again waits for a second"
                .into(),
            remedy: vec![format!(
                "sysctl -w {REUSE}=0   # what kube-proxy sets; better: kernel 5.9"
            )],
            fix: Vec::new(),
        }),
    }
}

pub(super) const EXPIRY: Check = Check {
    id: "ipvs.expiry",
    title: "sysctls with which ipvs lets go of real servers that are gone",
    severity: Severity::Warn,
    when: "ipvs mode runs",
    applies: |facts| facts.running.mode == Some(Mode::Ipvs),
    evaluate: expiry,
    reference: "https://github.com/kubernetes/kubernetes/pull/71834",
};

fn expiry(facts: &Facts<'_>) -> Verdict {
    let Some(sysctls) = facts.now.sysctls() else {
        return Verdict::Unknown("sysctl.txt is not in this state".into());
    };
    let values = EXPIRES.map(|(name, trouble)| (name, trouble, sysctls.get(name)));
    if let Some((name, ..)) = values.iter().find(|(.., value)| value.is_none()) {
        return Verdict::Unknown(format!("{name} is not in this state"));
    }
    let wrong: Vec<_> = values
        .into_iter()
        .filter_map(|(name, trouble, value)| Some((name, trouble, value?)))
        .filter(|(.., value)| *value == "0")
        .collect();
    if wrong.is_empty() {
        return Verdict::Ok("all three are 1".into());
    }
    let troubles: Vec<&str> = wrong.iter().map(|(_, trouble, _)| *trouble).collect();
    Verdict::Found(Found {
        evidence: wrong.iter().map(|(name, _, value)| format!("{name} = {value}")).collect(),
        effect: troubles.join("; "),
        remedy: wrong.iter().map(|(name, ..)| format!("sysctl -w {name}=1")).collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    fn captured() -> Node {
        Node::captured("half-migrated-ipvs-1.20")
    }

    #[test]
    fn right_and_wrong_reuse_depend_on_the_kernel() {
        for (kernel, value, fine) in [
            ("6.1.0", "0", false),
            ("6.1.0", "1", true),
            ("5.4.0-42", "0", true),
            ("5.4.0-42", "1", false),
        ] {
            let mut state = captured().sysctl(REUSE, Some(value)).state();
            state.tools.as_mut().expect("tools").kernel = kernel.into();
            let verdict = verdict_of(&CONN_REUSE_MODE, &state);
            assert_eq!(matches!(verdict, Verdict::Ok(_)), fine, "{kernel} {value}: {verdict:?}");
            assert_eq!(matches!(verdict, Verdict::Found(_)), !fine, "{kernel} {value}");
        }
    }

    #[test]
    fn reuse_is_unknown_while_ip_vs_is_not_loaded() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(
            given(&state).to(Mode::Ipvs).verdict(&CONN_REUSE_MODE),
            Verdict::Unknown(_)
        ));
    }

    #[test]
    fn expiry_has_all_three_outcomes() {
        assert!(matches!(verdict_of(&EXPIRY, &captured().state()), Verdict::Ok(_)));
        let state = captured().sysctl("net.ipv4.vs.expire_nodest_conn", Some("0")).state();
        let Verdict::Found(found) = verdict_of(&EXPIRY, &state) else { panic!("not found") };
        assert_eq!(found.evidence, ["net.ipv4.vs.expire_nodest_conn = 0"]);
        assert_eq!(found.remedy, ["sysctl -w net.ipv4.vs.expire_nodest_conn=1"]);
        let state = captured().remove("sysctl.txt").state();
        assert!(matches!(verdict_of(&EXPIRY, &state), Verdict::Unknown(_)));
    }
}
