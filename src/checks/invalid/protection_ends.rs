//! kube-proxy's rule that drops INVALID packets. Only iptables mode has this rule.

use super::rules::{LIBERAL, dropping};
use crate::checks::kube_proxy::setting;
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

/// Where that rule drops packets now.
pub(super) const COUNTED: Check = Check {
    id: "invalid.drops-end",
    title: "INVALID packets that kube-proxy drops now, and no more after the move",
    severity: Severity::Warn,
    when: "the target is ipvs or nftables, and that mode does not run yet",
    applies: |facts| {
        matches!(facts.to, Some(Mode::Ipvs | Mode::Nftables)) && facts.to != facts.running.mode
    },
    evaluate: evaluate_counted,
    reference: "https://kep.k8s.io/3866",
};

/// The accounting object in which kube-proxy from 1.31 on counts the INVALID packets that it drops.
const DROPPED: &str = "ct_state_invalid_dropped_pkts";

/// How many INVALID packets kube-proxy has dropped: by its rules, by its accounting object, by its
/// metrics. None of them counts more than all of them; a number, and where it is from.
fn dropped(facts: &Facts<'_>) -> Vec<(u64, String)> {
    let own = dropping(facts).into_iter().filter(|rule| rule.owner == KUBE_PROXY);
    let by_rule = own.filter_map(|rule| Some((rule.packets?, rule.shown())));
    let object = facts.now.accounting.iter().find(|object| object.name == DROPPED);
    let by_object = object.map(|object| (object.packets, format!("nfacct {DROPPED}")));
    let metrics = facts.live.and_then(|live| live.kube_proxy_metrics.as_ref());
    let by_metrics = metrics.and_then(|metrics| metrics.invalid_dropped);
    let name = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total";
    let by_metrics = by_metrics.map(|packets| (packets, name.to_owned()));
    by_rule.chain(by_object).chain(by_metrics).collect()
}

fn evaluate_counted(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let own = dropping(facts).iter().any(|rule| rule.owner == KUBE_PROXY);
    if !own {
        return Verdict::Ok("kube-proxy drops none now".into());
    }
    let counters = dropped(facts);
    if counters.is_empty() {
        return Verdict::Unknown("the rules of this state have no counters".into());
    }
    let counted: Vec<String> = counters
        .into_iter()
        .filter(|(packets, _)| *packets > 0)
        .map(|(packets, shown)| format!("[{packets} packets] {shown}"))
        .collect();
    if counted.is_empty() {
        return Verdict::Ok("kube-proxy's rule has dropped nothing".into());
    }
    match liberal(facts) {
        Err(missing) => Verdict::Unknown(missing),
        Ok(Some(shown)) => Verdict::Ok(shown),
        Ok(None) => Verdict::Found(Found {
            evidence: counted,
            effect: format!(
                "in {} mode kube-proxy writes no such rule: these packets then pass untranslated, \
                 and the client, who never saw that address, resets the connection",
                facts.to.map_or("", Mode::name)
            ),
            remedy: remedy(facts),
            fix: Vec::new(),
        }),
    }
}

/// What makes the rule needless, if it is so; the error names the missing data.
fn liberal(facts: &Facts<'_>) -> Result<Option<String>, String> {
    let sysctls = facts.now.sysctls().ok_or(format!("{LIBERAL} is not in this state"))?;
    if sysctls.get(LIBERAL).is_some_and(|v| v != "0") {
        return Ok(Some(format!("{LIBERAL} is set, which serves as well")));
    }
    let configured = facts.settings.as_ref().is_some_and(|s| s.conntrack.tcp_be_liberal);
    Ok(configured
        .then(|| format!("conntrack.tcpBeLiberal: kube-proxy sets {LIBERAL} at its next start")))
}

fn remedy(facts: &Facts<'_>) -> Vec<String> {
    let first = Version { major: 1, minor: 29, patch: 0 };
    let mut remedy = vec![format!(
        "sysctl -w {LIBERAL}=1; echo '{LIBERAL} = 1' > /etc/sysctl.d/90-conntrack.conf"
    )];
    if facts.running.version.is_none_or(|version| version >= first) {
        let line = "conntrack: {tcpBeLiberal: true}";
        let liberal = setting(facts, line, "--conntrack-tcp-be-liberal");
        remedy.push(format!("or, from kube-proxy 1.29 on: {liberal}"));
    }
    remedy
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let own: Vec<_> = dropping(facts).into_iter().filter(|r| r.owner == KUBE_PROXY).collect();
    if own.is_empty() {
        return Verdict::Ok("kube-proxy drops none now, so nothing is lost".into());
    }
    match liberal(facts) {
        Err(missing) => return Verdict::Unknown(missing),
        Ok(Some(shown)) => return Verdict::Ok(shown),
        Ok(None) => {}
    }
    if (COUNTED.applies)(facts) && dropped(facts).iter().any(|(packets, _)| *packets > 0) {
        return Verdict::Ok("it has dropped packets, as invalid.drops-end says".into());
    }
    let to = facts.to.map_or("", Mode::name);
    Verdict::Found(Found {
        evidence: own.iter().map(|r| r.shown()).collect(),
        effect: format!(
            "in {to} mode kube-proxy writes no such rule: a packet outside its connection's window \
             passes untranslated, and the client, who never saw that address, resets the connection"
        ),
        remedy: remedy(facts),
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
    fn packets_that_are_dropped_now_are_found() {
        let at = |node: &Node, to: Mode| given(&node.state()).to(to).verdict(&COUNTED);
        let node = Node::captured("iptables-1.37");
        assert!(matches!(at(&node, Mode::Nftables), Verdict::Ok(_)));
        let rule = "-A KUBE-FORWARD -m conntrack --ctstate INVALID";
        let from = format!("[0:0] {rule}");
        let counted = node.clone().replace("iptables-nft.save", &from, &format!("[5:300] {rule}"));
        for to in [Mode::Nftables, Mode::Ipvs] {
            let Verdict::Found(found) = at(&counted, to) else { panic!("not found: {to}") };
            assert!(found.evidence[0].starts_with("[5 packets] "), "{found:?}");
            assert!(found.remedy[1].contains("tcpBeLiberal"), "{found:?}");
            // It is said once.
            let verdict = given(&counted.state()).to(to).verdict(&CHECK);
            assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
        }
        let line = "conntrack: {tcpBeLiberal: true}\n";
        let config = "files/var/lib/kube-proxy/config.conf";
        let zeros = "conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, \
                     tcpCloseWaitTimeout: 0s}\n";
        let configured = counted.clone().replace(config, zeros, line);
        assert!(matches!(at(&configured, Mode::Nftables), Verdict::Ok(_)));
        let object = format!("[8:480] - {DROPPED}\n");
        let counted = node.clone().put("nfacct.save", &object);
        assert!(matches!(at(&counted, Mode::Nftables), Verdict::Found(_)));
        let none = Node::captured("half-migrated-ipvs-1.20");
        assert!(matches!(at(&none, Mode::Nftables), Verdict::Ok(_)));
        let unknown = node.remove("iptables-nft.save").remove("ip6tables-nft.save");
        assert!(matches!(at(&unknown, Mode::Nftables), Verdict::Unknown(_)));
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
