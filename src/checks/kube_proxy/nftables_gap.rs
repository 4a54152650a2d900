//! A kube-proxy from 1.29 on that starts on the other side of nftables mode removes the objects of the
//! mode that serves before its first sync; one of 1.29 or 1.30 may leave the tables in force.

use super::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::gap::Gap;
use crate::kube_proxy::mode;
use crate::kube_proxy::startup::{NFTABLES_GATE, removed_at_start};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.nftables-gap",
    title: "the gap that kube-proxy makes as it goes to or from nftables mode",
    severity: Severity::Warn,
    when: "nftables mode is the target, or runs and another is the target",
    applies: |facts| {
        let crosses = |mode| mode::of(mode).has_own_tables();
        facts.to.is_some_and(|to| crosses(to) || facts.running.mode.is_some_and(crosses))
    },
    evaluate,
    reference: "https://kep.k8s.io/3866",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let (mode, to) = match (facts.running.mode, facts.to) {
        (Some(mode), Some(to)) if mode == to => {
            return Verdict::Ok(format!("{mode} mode runs already"));
        }
        (Some(mode), Some(to)) => (mode, to),
        _ => {
            let evidence = &facts.running.evidence;
            return Verdict::Unknown(format!("which mode runs is not clear: {evidence}"));
        }
    };
    let Some(version) = facts.running.version else {
        return gap(facts, mode, to, "from 1.29 on kube-proxy".into());
    };
    match removed_at_start(version, facts.settings.as_ref(), to) {
        Some(removed) if removed.contains(&mode) => {
            gap(facts, mode, to, format!("kube-proxy {version}"))
        }
        Some(_) if mode::of(mode).has_own_tables() => both_in_force(facts, mode, to),
        Some(_) => Verdict::Ok(format!("kube-proxy {version} removes nothing as it starts")),
        None => Verdict::Unknown(format!(
            "whether kube-proxy {version} has the gate {NFTABLES_GATE} on is not known"
        )),
    }
}

/// The finding that the start in the mode `to` removes what serves in `mode`.
fn gap(facts: &Facts<'_>, mode: Mode, to: Mode, who: String) -> Verdict {
    let node = super::node_name(facts);
    let streams = if mode::of(mode).drains() {
        "; open connections end with the virtual servers"
    } else if mode::of(mode).has_own_tables() {
        "; open connections go on only while other rules of the family translate addresses"
    } else {
        "; open connections go on, for conntrack keeps their endpoint"
    };
    let mut evidence = vec![
        format!("kube-proxy serves in {mode} mode: {}", facts.running.evidence),
        format!("{who} removes {mode} mode as it starts in {to} mode"),
    ];
    if !mode::of(mode).has_own_tables() && facts.running.version.is_some_and(|v| v.minor < 34) {
        evidence.push(
            "up to 1.33 it leaves KUBE-MARK-MASQ, KUBE-PROXY-CANARY and KUBE-PROXY-FIREWALL".into(),
        );
    }
    if let Some(gap) = Gap::of(facts.now, mode, to) {
        let (services, endpoints) = (gap.services, gap.endpoints);
        evidence.push(format!(
            "about {}, for {services} service ports and {endpoints} endpoints (an estimate)",
            gap.outage
        ));
        evidence.extend(
            gap.ipvs_streams
                .filter(|n| *n > 0)
                .map(|n| format!("{n} open connections through ipvs")),
        );
    }
    Verdict::Found(Found {
        evidence,
        effect: format!(
            "from its start until its first sync, which needs the API server, new connections to \
             services fail on this node{streams}"
        ),
        remedy: vec![
            format!("proxyshift migrate --to {to}   # serves meanwhile, by a bridge"),
            format!("kubectl drain {node} --ignore-daemonsets   # before a switch of your own"),
            format!("kubectl uncordon {node}   # when /proxyMode says {to}"),
        ],
        fix: Vec::new(),
    })
}

/// The finding that the start in the mode `to` leaves the tables of `mode`, whose rules come first.
fn both_in_force(facts: &Facts<'_>, mode: Mode, to: Mode) -> Verdict {
    let line = format!("featureGates: {{{NFTABLES_GATE}: true}}");
    let flag = format!("--feature-gates={NFTABLES_GATE}=true");
    let version = facts.running.version.map(|v| format!(" {v}")).unwrap_or_default();
    Verdict::Found(Found {
        evidence: vec![
            format!("kube-proxy serves in {mode} mode: {}", facts.running.evidence),
            format!("kube-proxy{version} removes its tables only with the gate {NFTABLES_GATE} on"),
        ],
        effect: format!(
            "its tables stay in force, and no one keeps them up to date while {to} mode runs: \
             connections go to endpoints that are gone"
        ),
        remedy: vec![
            format!("{}, in the same edit as the mode", setting(facts, &line, &flag)),
            "nft delete table ip kube-proxy; nft delete table ip6 kube-proxy   # else, once the \
             other mode serves"
                .into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};

    #[test]
    fn on_the_way_to_nftables_mode() {
        let to = Some(Mode::Nftables);
        let mut state = node("docker-iptables-1.30");
        let Verdict::Found(found) = given(&state).to(to).verdict(&CHECK) else {
            panic!("not found")
        };
        assert!(found.effect.contains("conntrack keeps"), "{found:?}");
        let Verdict::Found(found) = given(&node("half-migrated-ipvs-1.20")).to(to).verdict(&CHECK)
        else {
            panic!("not found")
        };
        assert!(found.effect.contains("virtual servers"), "{found:?}");
        let there = given(&node("nftables-leftovers-1.30")).to(to).verdict(&CHECK);
        assert!(matches!(there, Verdict::Ok(_)));
        state.rulesets.clear();
        assert!(matches!(given(&state).to(to).verdict(&CHECK), Verdict::Unknown(_)));
    }

    #[test]
    fn each_version_leaves_its_own() {
        let at = |name: &str, version: &str, to: Mode| {
            let state = Node::captured(name).kube_proxy_version(version).state();
            given(&state).to(to).verdict(&CHECK)
        };
        let old = at("docker-iptables-1.30", "v1.28.9", Mode::Nftables);
        assert!(matches!(old, Verdict::Ok(_)), "{old:?}");
        let Verdict::Found(found) = at("docker-iptables-1.30", "v1.33.1", Mode::Nftables) else {
            panic!("not found")
        };
        assert!(found.evidence[2].contains("KUBE-PROXY-FIREWALL"), "{found:?}");
        let Verdict::Found(found) = at("iptables-1.37", "v1.37.2", Mode::Nftables) else {
            panic!("not found")
        };
        assert_eq!(found.evidence.len(), 3, "{found:?}");
        assert!(found.evidence[2].starts_with("about 0.5 to 1.0 s, for 37 service"), "{found:?}");
    }

    #[test]
    fn on_the_way_from_nftables_mode() {
        let at = |version: &str, gate: &str| {
            let node = Node::captured("nftables-1.37").kube_proxy_version(version);
            let state = node.append("files/var/lib/kube-proxy/config.conf", gate).state();
            given(&state).to(Mode::Iptables).verdict(&CHECK)
        };
        let Verdict::Found(found) = at("v1.37.2", "") else { panic!("not found") };
        assert!(found.effect.contains("only while other rules"), "{found:?}");
        let Verdict::Found(found) = at("v1.30.5", "") else { panic!("not found") };
        assert!(found.effect.contains("stay in force"), "{found:?}");
        assert!(found.remedy[0].contains("NFTablesProxyMode: true"), "{found:?}");
        let Verdict::Found(found) = at("v1.30.5", "featureGates: {NFTablesProxyMode: true}\n")
        else {
            panic!("not found")
        };
        assert!(found.effect.contains("first sync"), "{found:?}");
    }
}
