//! The configured mode against the mode in the kernel. They can differ because kube-proxy up to
//! 1.25 falls back to iptables without a message, and because a changed ConfigMap restarts nothing.

use std::collections::BTreeMap;

use super::{instances, node_name};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;
use crate::kube_proxy::running::served_by_others;
use crate::state::Family;
use crate::state::kube_proxy::{Instances, Mode};

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.mode",
    title: "the mode that is configured and the mode that the kernel serves",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/57144",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let running = &facts.running;
    let configured = facts.settings.as_ref().map(|s| s.mode());
    let serves = instances(facts).is_some_and(|all| all != Instances::None);
    match (running.mode, configured) {
        (Some(mode), Some(configured)) if mode == configured => {
            let others = served_by_others(facts.now, mode);
            if !others.is_empty() {
                return half_served(facts, mode, others);
            }
            Verdict::Ok(format!("{mode}: by its configuration, and {}", running.evidence))
        }
        (Some(mode), None) => Verdict::Unknown(format!(
            "the kernel serves {mode} mode ({}), but what kube-proxy was told is not known",
            running.evidence
        )),
        (None, _) if !running.serves && !serves => {
            Verdict::Unknown(format!("{}, and no kube-proxy is known to run", running.evidence))
        }
        (mode, _) => {
            let mut evidence = vec![running.evidence.clone()];
            evidence.extend(mode.map(|m| format!("the kernel serves {m} mode")));
            evidence.extend(configured.map(|t| format!("the configuration says {t} mode")));
            let effect = if running.serves {
                "it is not clear which rules serve, so none can be called a leftover; the next \
                 restart of kube-proxy may change the mode"
            } else {
                "a kube-proxy runs, but no service can be reached through this node"
            };
            Verdict::Found(Found {
                evidence,
                effect: effect.into(),
                remedy: vec![
                    "curl -s http://127.0.0.1:10249/proxyMode   # what kube-proxy runs".into(),
                    restart(facts, "so that it reads its file"),
                ],
                fix: Vec::new(),
            })
        }
    }
}

/// The finding that in some families only another mode than the running one serves.
fn half_served(facts: &Facts<'_>, mode: Mode, others: BTreeMap<Family, Mode>) -> Verdict {
    let evidence = others.into_iter().flat_map(|(family, other)| {
        let missing = mode::of(mode).missing_objects(facts.now, family);
        missing.into_iter().chain([format!("{family}: {other} mode still serves services")])
    });
    Verdict::Found(Found {
        evidence: evidence.collect(),
        effect: format!(
            "kube-proxy runs in {mode} mode and keeps nothing else up to date: there, connections \
             go to endpoints that are gone, and new services are not reached"
        ),
        remedy: vec![restart(facts, "so that it writes this family too")],
        fix: Vec::new(),
    })
}

/// The command that restarts the node's kube-proxy, with a comment that says why.
fn restart(facts: &Facts<'_>, why: &str) -> String {
    let node = node_name(facts);
    format!(
        "kubectl -n kube-system delete pod -l k8s-app=kube-proxy --field-selector \
         spec.nodeName={node}   # restarts it, {why}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    #[test]
    fn ok_where_both_agree() {
        for name in ["docker-iptables-1.30", "half-migrated-ipvs-1.20", "nftables-leftovers-1.30"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn found_where_another_mode_alone_serves_a_family() {
        let state = node("nftables-beside-iptables-1.37");
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(
            found.evidence,
            ["ipv6: there is no table ip6 kube-proxy", "ipv6: iptables mode still serves services"]
        );
    }

    #[test]
    fn found_where_the_configuration_says_otherwise() {
        let path = "files/var/lib/kube-proxy/config.conf";
        let state = Node::captured("docker-iptables-1.30")
            .replace(path, "mode: iptables", "mode: ipvs")
            .state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].contains("says ipvs, but nat KUBE-SERVICES"), "{found:?}");
    }

    #[test]
    fn found_where_a_kube_proxy_serves_nothing() {
        let mut state = node("docker-iptables-1.30");
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Found(_)));
    }

    #[test]
    fn unknown_without_a_configuration_or_without_kube_proxy() {
        let mut state = Node::captured("docker-iptables-1.30")
            .remove("files/var/lib/kube-proxy/config.conf")
            .state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        state.rulesets.clear();
        state.processes = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
