//! How kube-proxy masquerades. iptables and ipvs mode take it from one section of the configuration
//! each, nftables mode from another.

use super::{is_here, is_target};
use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;

pub(super) const BIT: Check = Check {
    id: "nftables.masquerade-bit",
    title: "the mark of nftables mode, and that of the other modes",
    severity: Severity::Warn,
    when: "nftables mode is the target, or runs and another is the target",
    applies: |facts| is_target(facts) || is_here(facts) && facts.to.is_some_and(crosses),
    evaluate: same_bit,
    reference: REFERENCE,
};

pub(super) const ALL: Check = Check {
    id: "nftables.masquerade-all",
    title: "whether each mode masquerades all connections to services",
    severity: Severity::Block,
    when: "nftables mode is the target, or runs and another is the target",
    applies: BIT.applies,
    evaluate: same_extent,
    reference: REFERENCE,
};

const REFERENCE: &str =
    "https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/";

fn crosses(to: Mode) -> bool {
    !mode::of(to).has_own_tables()
}

fn same_bit(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    let (old, new) = (settings.iptables.mark(), settings.nftables.mark());
    if old == new {
        return Verdict::Ok(format!("both are {new:#x}"));
    }
    let (old_bit, new_bit) = (old.trailing_zeros(), new.trailing_zeros());
    Verdict::Found(Found {
        evidence: vec![format!(
            "iptables.masqueradeBit makes the mark {old:#x}, nftables.masqueradeBit {new:#x}"
        )],
        effect: "while rules of both modes are in force, a packet that one marks the other does \
                 not masquerade; and rules of others that know the mark, such as flannel's, no \
                 longer fit"
            .into(),
        remedy: vec![setting(
            facts,
            &format!("nftables: {{masqueradeBit: {old_bit}}}   # as in the section iptables"),
            // There is no flag for nftables mode's.
            &format!("--iptables-masquerade-bit={new_bit}"),
        )],
        fix: Vec::new(),
    })
}

fn same_extent(facts: &Facts<'_>) -> Verdict {
    let (Some(settings), Some(from), Some(to)) = (&facts.settings, facts.running.mode, facts.to)
    else {
        return Verdict::Unknown(
            "the mode that runs, or what kube-proxy was told, is not known".into(),
        );
    };
    let all = |mode| mode::of(mode).masquerading(settings).masquerade_all;
    let (old, new) = (all(from), all(to));
    if old == new {
        let what = if old { "both masquerade all" } else { "neither masquerades all" };
        return Verdict::Ok(what.into());
    }
    let section = if crosses(to) { "iptables" } else { "nftables" };
    Verdict::Found(Found {
        evidence: vec![format!("masqueradeAll is {old} for {from} mode, {new} for {to} mode")],
        effect: if old {
            "after the move pods see the addresses of the pods that connect to them by a service; \
             network policies and rules that expect the node's address no longer fit"
        } else {
            "after the move pods see the node's address in place of the pod's that connects to them \
             by a service; network policies no longer fit"
        }
        .into(),
        remedy: vec![format!("{section}: {{masqueradeAll: {old}}}   # as {from} mode has it")],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};

    fn with(config: &str) -> Verdict {
        let node = Node::captured("iptables-1.37");
        let state = node.append("files/var/lib/kube-proxy/config.conf", config).state();
        given(&state).to(Mode::Nftables).verdict(&BIT)
    }

    #[test]
    fn all_three_outcomes() {
        assert_eq!(with(""), Verdict::Ok("both are 0x4000".into()));
        let both = "iptables: {masqueradeBit: 9}\nnftables: {masqueradeBit: 9}\n";
        assert!(matches!(with(both), Verdict::Ok(_)));
        for config in ["iptables: {masqueradeBit: 15}\n", "nftables: {masqueradeBit: 9}\n"] {
            let Verdict::Found(found) = with(config) else { panic!("not found: {config}") };
            assert!(found.evidence[0].contains("0x4000"), "{found:?}");
        }
        let state =
            Node::captured("iptables-1.37").remove("files/var/lib/kube-proxy/config.conf").state();
        let verdict = given(&state).to(Mode::Nftables).verdict(&BIT);
        assert!(matches!(verdict, Verdict::Unknown(_)), "{verdict:?}");
        given(&node("nftables-1.37")).facts(|facts| assert!(!(BIT.applies)(facts)));
        let state = node("nftables-1.37");
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&BIT), Verdict::Ok(_)));
    }
    #[test]
    fn all_is_masqueraded_in_both_or_in_neither() {
        let with = |config: &str| {
            let node = Node::captured("iptables-1.37");
            let state = node.append("files/var/lib/kube-proxy/config.conf", config).state();
            given(&state).to(Mode::Nftables).verdict(&ALL)
        };
        let both = "iptables: {masqueradeAll: true}\nnftables: {masqueradeAll: true}\n";
        assert!(matches!(with(""), Verdict::Ok(_)) && matches!(with(both), Verdict::Ok(_)));
        for (config, remedy) in [
            ("iptables: {masqueradeAll: true}\n", "nftables: {masqueradeAll: true}"),
            ("nftables: {masqueradeAll: true}\n", "nftables: {masqueradeAll: false}"),
        ] {
            let Verdict::Found(found) = with(config) else { panic!("not found: {config}") };
            assert!(found.remedy[0].starts_with(remedy), "{found:?}");
        }
    }
}
