//! kube-proxy sets sysctls of conntrack as it starts, and ends if they are not there. Where no rule
//! has loaded conntrack, as on a new node, and above all on one without iptables, nobody else has.

use super::{Presence, presence};
use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::ConntrackConfig;
use crate::state::nft::NftTable;

const MODULE: &str = "nf_conntrack";
const SYSCTLS: &str = "net.netfilter.nf_conntrack_";

pub(super) const CHECK: Check = Check {
    id: "kernel.nf-conntrack",
    title: "conntrack, which kube-proxy sets up as it starts (nf_conntrack)",
    severity: Severity::Block,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kops/issues/17915",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(sysctls) = facts.now.sysctls() else {
        return Verdict::Unknown("the sysctls are not in this state".into());
    };
    if sysctls.iter().any(|(name, _)| name.starts_with(SYSCTLS)) {
        return Verdict::Ok(format!("{SYSCTLS}* are there"));
    }
    // Loaded, but its sysctls were not captured.
    if let Some(shown) = used(facts) {
        return Verdict::Ok(shown);
    }
    // What can be loaded is not loaded by kube-proxy.
    if let Presence::Present(shown) = presence(facts, MODULE) {
        return Verdict::Ok(shown);
    }
    let sets = match &facts.settings {
        Some(settings) => sets(&settings.conntrack),
        None => vec!["conntrack.maxPerCore, unless its configuration, which is not known, has 0"],
    };
    if sets.is_empty() {
        return Verdict::Ok("kube-proxy is told to set nothing of it".into());
    }
    let zeros = "conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, \
                 tcpCloseWaitTimeout: 0s}";
    let flags = "--conntrack-max-per-core=0 --conntrack-min=0 \
                 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0";
    Verdict::Found(Found {
        evidence: vec![
            format!("{MODULE} is not loaded: there is no sysctl {SYSCTLS}*"),
            format!("kube-proxy sets {}", sets.join(", ")),
        ],
        effect: "kube-proxy ends at its start, after it has removed the rules of the mode before: \
                 \"open /proc/sys/net/netfilter/nf_conntrack_max: no such file or directory\""
            .into(),
        remedy: vec![
            format!(
                "modprobe {MODULE} && echo {MODULE} > /etc/modules-load.d/kube-proxy-conntrack.conf"
            ),
            format!("or: {}", setting(facts, zeros, flags)),
        ],
        fix: Vec::new(),
    })
}

/// What shows that rules use conntrack: a table nat of iptables, or a chain of type nat.
fn used(facts: &Facts<'_>) -> Option<String> {
    let mut rulesets = facts.now.rulesets.iter();
    let nat = rulesets.find(|(_, ruleset)| ruleset.table("nat").is_some());
    let of_iptables = nat.map(|(id, _)| format!("{id} has the table nat, which uses it"));
    let tables = facts.now.native_tables();
    let has_nat = |table: &&&NftTable| {
        table.of_kind("chain").any(|chain| chain.get("type").is_some_and(|kind| kind == "nat"))
    };
    let native = || {
        tables.iter().find(has_nat).map(|table| {
            format!("table {} {} has a chain of type nat, which uses it", table.family, table.name)
        })
    };
    of_iptables.or_else(native)
}

/// The settings with which kube-proxy writes sysctls of conntrack as it starts. A limit or a duration
/// of zero leaves them alone. The first three are not zero by default. Source: `SetSysctls` of
/// pkg/proxy/conntrack in 1.37.2.
fn sets(config: &ConntrackConfig) -> Vec<&'static str> {
    let lasts = |time: &String| time.bytes().any(|b| (b'1'..=b'9').contains(&b));
    let by_default = |time: &Option<String>| time.as_ref().is_none_or(lasts);
    let if_set = |time: &Option<String>| time.as_ref().is_some_and(lasts);
    let settings = [
        ("conntrack.maxPerCore", config.max_per_core != Some(0)),
        ("conntrack.tcpEstablishedTimeout", by_default(&config.tcp_established_timeout)),
        ("conntrack.tcpCloseWaitTimeout", by_default(&config.tcp_close_wait_timeout)),
        ("conntrack.tcpBeLiberal", config.tcp_be_liberal),
        ("conntrack.udpTimeout", if_set(&config.udp_timeout)),
        ("conntrack.udpStreamTimeout", if_set(&config.udp_stream_timeout)),
    ];
    settings.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::modules;
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::kube_proxy::Mode;

    const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";

    fn without(config: Option<&str>) -> Node {
        let node = Node::captured("docker-iptables-1.30")
            .put("sysctl.txt", "net.ipv4.ip_forward = 1\n")
            .put("modules.txt", "nfnetlink 1 0 - Live 0x0\n")
            .remove("iptables-nft.save")
            .remove("ip6tables-nft.save")
            .remove("nft.json");
        match config {
            Some(text) => node.put(CONFIG, text),
            None => node.remove(CONFIG),
        }
    }

    fn verdict(node: &Node) -> Verdict {
        given(&node.state()).to(Mode::Nftables).verdict(&CHECK)
    }

    #[test]
    fn found_where_kube_proxy_sets_what_is_not_there() {
        let times = "tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s";
        for (config, set) in [
            (None, "which is not known"),
            (Some("mode: iptables\n".to_owned()), "conntrack.maxPerCore, conntrack.tcpEst"),
            (Some(format!("conntrack: {{maxPerCore: 1000, {times}}}\n")), "maxPerCore"),
            (Some("conntrack: {maxPerCore: 0}\n".into()), "sets conntrack.tcpEstablishedTimeout"),
            (
                Some(format!("conntrack: {{maxPerCore: 0, {times}, tcpBeLiberal: true}}\n")),
                "sets conntrack.tcpBeLiberal",
            ),
        ] {
            let verdict = verdict(&without(config.as_deref()));
            let Verdict::Found(found) = verdict else { panic!("{config:?}: {verdict:?}") };
            assert!(found.evidence[1].contains(set), "{found:?}");
            assert!(found.remedy[0].starts_with("modprobe nf_conntrack"), "{found:?}");
        }
        let verdict = verdict(&without(Some(&format!("conntrack: {{maxPerCore: 0, {times}}}\n"))));
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
    }

    #[test]
    fn ok_where_it_is_loaded_or_built_in_and_unknown_without_sysctls() {
        let loaded = without(None).put("modules.txt", "nf_conntrack 1 0 - Live 0x0\n");
        assert!(matches!(verdict(&loaded), Verdict::Ok(_)));
        let whole = node("docker-iptables-1.30");
        assert!(matches!(given(&whole).to(Mode::Nftables).verdict(&CHECK), Verdict::Ok(_)));
        assert!(matches!(verdict(&without(None).remove("sysctl.txt")), Verdict::Unknown(_)));
        let nat = "*nat\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";
        let used = without(None).put("iptables-legacy.save", nat);
        assert!(matches!(verdict(&used), Verdict::Ok(_)));
        let state = without(None).state();
        let live = modules(&["nf_conntrack"], &[]);
        let verdict = given(&state).to(Mode::Nftables).live(&live).verdict(&CHECK);
        assert!(matches!(verdict, Verdict::Found(_)), "{verdict:?}");
    }
}
