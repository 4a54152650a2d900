//! What the configuration says against what the kernel holds. kube-proxy up to 1.25 falls back to
//! iptables mode silently, and a changed ConfigMap restarts nothing.

use super::{instances, node_name};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::Instances;

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.mode",
    title: "the mode that is configured and the mode that the kernel serves",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://github.com/kubernetes/kubernetes/issues/57144",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let running = &facts.running;
    let told = facts.settings.as_ref().map(|s| s.mode());
    let serves = instances(facts).is_some_and(|all| all != Instances::None);
    match (running.mode, told) {
        (Some(mode), Some(told)) if mode == told => {
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
            evidence.extend(told.map(|t| format!("the configuration says {t} mode")));
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
    use crate::checks::testing::{judged, node};

    #[test]
    fn ok_where_both_agree() {
        for name in ["docker-iptables-1.30", "half-migrated-ipvs-1.20", "nftables-leftovers-1.30"] {
            let verdict = judged(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn found_where_the_configuration_says_otherwise() {
        let mut state = node("docker-iptables-1.30");
        let path = "files/var/lib/kube-proxy/config.conf";
        let text = state.files[path].replace("mode: iptables", "mode: ipvs");
        state.files.insert(path.into(), text.into());
        let Verdict::Found(found) = judged(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].contains("says ipvs, but nat KUBE-SERVICES"), "{found:?}");
    }

    #[test]
    fn found_where_a_kube_proxy_serves_nothing() {
        let mut state = node("docker-iptables-1.30");
        state.rulesets.clear();
        assert!(matches!(judged(&CHECK, &state), Verdict::Found(_)));
    }

    #[test]
    fn unknown_without_a_configuration_or_without_kube_proxy() {
        let mut state = node("docker-iptables-1.30");
        state.files.remove("files/var/lib/kube-proxy/config.conf");
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        state.rulesets.clear();
        state.processes = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
