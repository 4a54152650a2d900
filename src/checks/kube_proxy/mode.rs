//! The configured mode against the mode in the kernel. They can differ because kube-proxy up to
//! 1.25 falls back to iptables without a message, and because a changed ConfigMap restarts nothing.

use super::{instances, node_name};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::Instances;

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
            let node = node_name(facts);
            Verdict::Found(Found {
                evidence,
                effect: effect.into(),
                remedy: vec![
                    "curl -s http://127.0.0.1:10249/proxyMode   # what kube-proxy runs".into(),
                    format!(
                        "kubectl -n kube-system delete pod -l k8s-app=kube-proxy --field-selector \
                         spec.nodeName={node}   # restarts it, so that it reads its file"
                    ),
                ],
                fix: Vec::new(),
            })
        }
    }
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
