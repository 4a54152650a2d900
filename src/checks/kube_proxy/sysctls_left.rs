//! Sysctls that kube-proxy set in a mode that no longer runs. No version and no mode resets them.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode::{self, ModeSysctl};
use crate::owners::component::KUBE_PROXY;
use crate::plan::change::Change;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.sysctls-left",
    title: "sysctls that a mode which does not run has set",
    severity: Severity::Info,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/90259",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(mode) = facts.running.mode else {
        let evidence = &facts.running.evidence;
        return Verdict::Unknown(format!("which mode runs is not clear: {evidence}"));
    };
    let Some(now) = facts.now.sysctls() else {
        return Verdict::Unknown("the sysctls are not in this state".into());
    };
    let own = mode::of(mode).sysctls();
    let others = mode::all().filter(|m| m.mode() != mode).flat_map(|m| m.sysctls());
    let mut left: Vec<&ModeSysctl> = Vec::new();
    for sysctl in others.filter(|s| now.get(s.name) == Some(s.value)) {
        if own.iter().chain(left.iter().copied()).all(|s| s.name != sysctl.name) {
            left.push(sysctl);
        }
    }
    if left.is_empty() {
        return Verdict::Ok(format!("none but those of {mode} mode"));
    }
    let foreign = facts.now.ipvs.servers.iter().filter(|server| {
        facts.ownership.virtual_server(&server.service).is_none_or(|o| o.name != KUBE_PROXY)
    });
    // Whoever else uses ipvs may want its sysctls as they are.
    let is_shared = foreign.count() > 0;
    let (kept, reset): (Vec<&ModeSysctl>, Vec<&ModeSysctl>) =
        left.iter().copied().partition(|s| is_shared && s.name.starts_with("net.ipv4.vs."));
    let mut remedy: Vec<String> =
        reset.iter().map(|s| format!("sysctl -w {}={}", s.name, s.default)).collect();
    if !reset.is_empty() {
        remedy.push("proxyshift check --fix --only kube-proxy.sysctls-left   # the same".into());
    }
    if !kept.is_empty() {
        remedy.push("those of ipvs: ask whoever has the other virtual servers first".into());
    }
    let fix = reset.iter().map(|s| Change::Sysctl {
        name: s.name.into(),
        from: Some(s.value.into()),
        to: s.default.into(),
    });
    Verdict::Found(Found {
        evidence: left.iter().map(|s| format!("{} = {}: {}", s.name, s.value, s.effect)).collect(),
        effect: format!(
            "{mode} mode needs none of them, and no kube-proxy ever resets them; who else wants \
             one on this node is not known"
        ),
        fix: fix.collect(),
        remedy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};
    use crate::state::NodeState;

    fn found(state: &NodeState) -> Found {
        match verdict_of(&CHECK, state) {
            Verdict::Found(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_running_mode_sets_is_not_left() {
        for name in ["iptables-1.37", "nftables-1.37", "ipvs-dns-blackhole-1.20"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn each_is_found_and_can_be_reset() {
        let left = found(&node("nftables-leftovers-1.30"));
        assert_eq!(left.evidence.len(), 1);
        assert!(left.evidence[0].starts_with("net.ipv4.conf.all.route_localnet = 1"), "{left:?}");
        assert_eq!(left.remedy[0], "sysctl -w net.ipv4.conf.all.route_localnet=0");
        let [change] = &left.fix[..] else { panic!("{left:?}") };
        assert_eq!(change.to_string(), "sysctl net.ipv4.conf.all.route_localnet: 1 → 0");
        let state = Node::captured("iptables-1.37")
            .sysctl("net.ipv4.vs.conntrack", Some("1"))
            .sysctl("net.ipv4.conf.all.arp_announce", Some("2"))
            .state();
        assert_eq!(found(&state).fix.len(), 2);
    }

    #[test]
    fn the_sysctls_of_another_user_of_ipvs_stay() {
        let mut state = Node::captured("iptables-1.37")
            .sysctl("net.ipv4.vs.conntrack", Some("1"))
            .sysctl("net.ipv4.conf.all.arp_ignore", Some("1"))
            .state();
        state.ipvs = node("ipvs-with-keepalived-1.20").ipvs;
        let left = found(&state);
        assert_eq!(left.evidence.len(), 2);
        assert_eq!(left.fix.len(), 1, "{left:?}");
        assert!(left.remedy.last().unwrap().contains("other virtual servers"), "{left:?}");
    }

    #[test]
    fn unknown_without_a_mode_or_sysctls() {
        let state = Node::captured("nftables-1.37").remove("sysctl.txt").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        assert!(matches!(verdict_of(&CHECK, &NodeState::default()), Verdict::Unknown(_)));
    }
}
