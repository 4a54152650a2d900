//! A kube-proxy of a version that came after this program.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::running::NEWEST_KNOWN;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.version",
    title: "a kube-proxy newer than any that proxyshift knows",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/tree/master/CHANGELOG",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(version) = facts.running.version else {
        return Verdict::Unknown("the version of kube-proxy is not known".into());
    };
    if (version.major, version.minor) <= (1, NEWEST_KNOWN) {
        return Verdict::Ok(format!("kube-proxy {version}; known up to 1.{NEWEST_KNOWN}"));
    }
    Verdict::Found(Found {
        evidence: vec![format!("kube-proxy {version}, and known are those up to 1.{NEWEST_KNOWN}")],
        effect: format!(
            "it is judged as if it were 1.{NEWEST_KNOWN}: objects that only later versions make \
             belong to nobody here and stay, and what later versions no longer use, have or take \
             is not named"
        ),
        remedy: vec![
            "look for a newer proxyshift before anything is changed".into(),
            "proxyshift plan -v   # else look at what goes and what stays, one by one".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    #[test]
    fn only_a_newer_minor_version_is_unknown() {
        let at = |version| {
            verdict_of(&CHECK, &Node::captured("iptables-1.37").kube_proxy_version(version).state())
        };
        for version in ["v1.20.2", "v1.37.99", "v1.37.2-eks-1a2b3c4"] {
            assert!(matches!(at(version), Verdict::Ok(_)), "{version}");
        }
        for version in ["v1.38.0-rc.0", "v1.41.0", "v2.0.0"] {
            assert!(matches!(at(version), Verdict::Found(_)), "{version}");
        }
        let unknown = verdict_of(&CHECK, &node("iptables-1.37"));
        assert!(matches!(unknown, Verdict::Unknown(_)), "{unknown:?}");
    }
}
