//! kube-proxy's rule that drops INVALID packets. Only iptables mode has this rule.

use super::rules::{LIBERAL, dropping};
use crate::checks::sysctls::sysctls;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::owners::component::KUBE_PROXY;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

pub(super) const CHECK: Check = Check {
    id: "invalid.protection-ends",
    title: "kube-proxy's own protection against INVALID packets",
    severity: Severity::Info,
    when: "the target is ipvs or nftables",
    applies: |facts| matches!(facts.to, Some(Mode::Ipvs | Mode::Nftables)),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/74839",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let own: Vec<_> = dropping(facts).into_iter().filter(|r| r.owner == KUBE_PROXY).collect();
    if own.is_empty() {
        return Verdict::Ok("kube-proxy drops none now, so nothing is lost".into());
    }
    let Some(sysctls) = sysctls(facts.now) else {
        return Verdict::Unknown(format!("{LIBERAL} is not in this state"));
    };
    if sysctls.get(LIBERAL).is_some_and(|v| v != "0") {
        return Verdict::Ok(format!("{LIBERAL} is set, which serves as well"));
    }
    let to = facts.to.map_or("", Mode::name);
    let configured =
        facts.running.version.is_none_or(|v| v >= Version { major: 1, minor: 29, patch: 0 });
    let mut remedy = vec![format!(
        "sysctl -w {LIBERAL}=1; echo '{LIBERAL} = 1' > /etc/sysctl.d/90-conntrack.conf"
    )];
    if configured {
        remedy.push(
            "or, from kube-proxy 1.29 on, in its configuration: `conntrack: {tcpBeLiberal: true}`"
                .into(),
        );
    }
    Verdict::Found(Found {
        evidence: own.iter().map(|r| r.shown()).collect(),
        effect: format!(
            "in {to} mode kube-proxy writes no such rule: a packet outside its connection's window \
             passes untranslated, and the client, who never saw that address, resets the connection"
        ),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};

    const NODE: &str = "docker-iptables-1.30";

    #[test]
    fn found_on_the_way_to_ipvs() {
        let Verdict::Found(found) = given(&node(NODE)).to(Mode::Ipvs).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.evidence[0].contains("-A KUBE-FORWARD"), "{:?}", found.evidence);
        given(&node(NODE)).facts(|facts| assert!(!(CHECK.applies)(facts)));
    }

    #[test]
    fn ok_when_liberal_or_without_the_rule_and_unknown_without_the_sysctl() {
        let liberal = Node::captured(NODE)
            .replace("sysctl.txt", &format!("{LIBERAL} = 0"), &format!("{LIBERAL} = 1"))
            .state();
        assert!(matches!(given(&liberal).to(Mode::Ipvs).verdict(&CHECK), Verdict::Ok(_)));
        let ipvs = node("half-migrated-ipvs-1.20");
        assert!(matches!(given(&ipvs).to(Mode::Nftables).verdict(&CHECK), Verdict::Ok(_)));
        let without = Node::captured(NODE).remove("sysctl.txt").state();
        assert!(matches!(given(&without).to(Mode::Ipvs).verdict(&CHECK), Verdict::Unknown(_)));
    }
}
