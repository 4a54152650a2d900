//! kube-proxy itself: mode, version, configuration, and leftovers.

mod absent;
mod api_server;
mod both_in_force;
mod bridge_left;
mod daemonset;
mod feature_gates;
mod flags;
mod instances;
mod ipvs_support;
mod leftover_reject;
mod leftovers;
mod lookalikes;
mod mark_drop;
mod mode;
mod mode_empty;
mod nftables_available;
mod nftables_gap;
mod proxy_mode;
mod sync_failures;
mod sysctls_left;
mod teardown;
mod version;

pub(super) use self::sync_failures::{failing_syncs, with_metrics};
use super::{Check, Facts, Verdict};
use crate::kube_proxy::proxy_state::ProxyState;
use crate::state::kube_proxy::{CommandLine, KubeProxyConfig};
use crate::state::tools::Process;

pub(super) const CHECKS: &[&Check] = &[
    &absent::CHECK,
    &api_server::CHECK,
    &both_in_force::CHECK,
    &bridge_left::CHECK,
    &daemonset::HALF_UPGRADED,
    &daemonset::MANAGED,
    &daemonset::NEXT_START,
    &daemonset::STALE,
    &daemonset::UNPREPARED,
    &feature_gates::CHECK,
    &flags::DEPRECATED,
    &flags::IGNORED,
    &instances::CHECK,
    &ipvs_support::DEPRECATED,
    &ipvs_support::REMOVED,
    &leftover_reject::CHECK,
    &leftovers::CHECK,
    &lookalikes::CHECK,
    &mark_drop::CHECK,
    &mode::CHECK,
    &mode_empty::CHECK,
    &nftables_available::CHECK,
    &nftables_gap::CHECK,
    &proxy_mode::CHECK,
    &sync_failures::CHECK,
    &sysctls_left::CHECK,
    &teardown::CHECK,
    &version::CHECK,
];

/// The processes of kube-proxy: one or several; none if it is a part of another program, or does
/// not run.
pub(crate) fn instances<'a>(facts: &Facts<'a>) -> Vec<&'a Process> {
    match &facts.proxy {
        ProxyState::One(process) => vec![process],
        ProxyState::Many(all) => all.clone(),
        _ => Vec::new(),
    }
}

/// Whether kube-proxy serves in a mode with tables of its own, which is nftables, or is configured to.
pub(super) fn has_own_tables(facts: &Facts<'_>) -> bool {
    let configured = facts.settings.as_ref().map(KubeProxyConfig::mode);
    let here = facts.running.mode.or(configured);
    here.is_some_and(|mode| crate::kube_proxy::mode::of(mode).has_own_tables())
}

/// The path of the configuration file, if exactly one kube-proxy runs and its arguments name a
/// file.
pub(crate) fn config_file(facts: &Facts<'_>) -> Option<String> {
    let ProxyState::One(process) = &facts.proxy else { return None };
    CommandLine::parse(&process.args).ok()?.config
}

/// The verdict of a check that needs a process of kube-proxy, on a node without one.
fn no_process(facts: &Facts<'_>) -> Verdict {
    Verdict::Unknown(match &facts.proxy {
        ProxyState::PartOf(host, _) => {
            format!("kube-proxy is a part of {host}, whose settings are not captured")
        }
        ProxyState::Unknown(why) => why.clone(),
        _ => "no kube-proxy process runs here".into(),
    })
}

/// The node's name in the cluster if kube-proxy's configuration has it, else a shell command that
/// usually prints the name.
pub(crate) fn node_name<'a>(facts: &'a Facts<'_>) -> &'a str {
    let configured = facts.settings.as_ref().and_then(|s| s.hostname_override.as_deref());
    configured.unwrap_or("$(hostname)")
}

/// The remedy that changes a setting of kube-proxy where it is delivered from: `line` for a
/// configuration file, `flag` for a command line.
pub(crate) fn setting(facts: &Facts<'_>, line: &str, flag: &str) -> String {
    if !matches!(facts.proxy, ProxyState::One(_) | ProxyState::PartOf(..)) {
        return format!("{line}   # in kube-proxy's file (as a flag: {flag}); then restart it");
    }
    let delivery = facts.proxy.delivery(facts.now);
    delivery.setting(config_file(facts).as_deref(), line, flag, node_name(facts))
}

/// Whether kube-proxy is of version 1.`minor` or later. If its version is not known, this is judged
/// by chains that only some versions write; `None` if these do not tell either.
pub(crate) fn at_least(facts: &Facts<'_>, minor: u32) -> Option<bool> {
    if let Some(version) = facts.running.version {
        return Some((version.major, version.minor) >= (1, minor));
    }
    let (from, until) = bounds(facts);
    if from.is_some_and(|from| from >= minor) {
        return Some(true);
    }
    until.is_some_and(|until| until < minor).then_some(false)
}

/// The oldest and the newest minor version that kube-proxy can have, judged by its objects in the
/// kernel.
fn bounds(facts: &Facts<'_>) -> (Option<u32>, Option<u32>) {
    // The first minor version that writes each chain; a chain name that ends with `-` is a prefix.
    const CAME: [(&str, &str, u32); 7] = [
        ("filter", "KUBE-IPVS-OUT-FILTER", 29),
        ("filter", "KUBE-IPVS-FILTER", 26),
        ("filter", "KUBE-PROXY-FIREWALL", 25),
        ("nat", "KUBE-EXT-", 24),
        ("filter", "KUBE-NODEPORTS", 21),
        ("filter", "KUBE-NODE-PORT", 21),
        ("mangle", "KUBE-PROXY-CANARY", 16),
    ];
    let running = facts.running.mode.map(crate::kube_proxy::mode::of);
    if let Some(since) = running.and_then(|mode| mode.since(facts.now)) {
        return (Some(since), None);
    }
    let has = |table: &str, name: &str| {
        let mut tables = facts.now.rulesets.values().filter_map(|r| r.table(table));
        let fits = |chain: &str| chain == name || name.ends_with('-') && chain.starts_with(name);
        tables.any(|t| t.chains.iter().any(|c| fits(&c.name)))
    };
    let from = CAME.iter().find(|(table, name, _)| has(table, name)).map(|(.., minor)| *minor);
    let older = from.is_none_or(|minor| minor < 24);
    let last = running.and_then(|mode| mode.last_version_of_chain());
    let until = last.filter(|(chain, _)| older && has("nat", chain)).map(|(_, minor)| minor);
    (from, until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};

    #[test]
    fn chains_show_the_version_where_no_process_does() {
        for (name, minor, expected) in [
            ("docker-iptables-1.30", 25, Some(true)),
            ("docker-iptables-1.30", 31, None),
            ("iptables-1.37", 31, Some(true)),
            ("iptables-1.37", 32, None),
            ("canal-stale-flannel-1.20", 16, Some(true)),
            ("canal-stale-flannel-1.20", 25, Some(false)),
            ("half-migrated-ipvs-1.20", 25, Some(false)),
            ("half-migrated-ipvs-1.20", 22, None),
            ("nftables-leftovers-1.30", 29, Some(true)),
            ("nftables-leftovers-1.30", 30, None),
            ("nftables-1.37", 36, Some(true)),
            ("nftables-1.37", 37, None),
        ] {
            let state = node(name);
            let found = given(&state).facts(|facts| at_least(facts, minor));
            assert_eq!(found, expected, "{name} 1.{minor}");
        }
        let state = Node::captured("docker-iptables-1.30").kube_proxy_version("v1.31.2").state();
        assert_eq!(given(&state).facts(|facts| at_least(facts, 31)), Some(true));
        assert_eq!(given(&state).facts(|facts| at_least(facts, 32)), Some(false));
    }
}
