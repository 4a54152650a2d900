//! kube-proxy itself: its mode, its version, its configuration, and what it left behind.

pub(crate) mod deprecated_flags;
pub(crate) mod flags;
pub(crate) mod instances;
pub(crate) mod ipvs_deprecated;
pub(crate) mod ipvs_removed;
pub(crate) mod leftover_reject;
pub(crate) mod leftovers;
pub(crate) mod mark_drop;
pub(crate) mod mode;
pub(crate) mod mode_empty;
pub(crate) mod nftables_available;
pub(crate) mod nftables_gap;
pub(crate) mod proxy_mode;
pub(crate) mod teardown;

use super::Facts;
use crate::state::kube_proxy::{CommandLine, Instances};

/// The kube-proxy processes that serve; none if the processes are not in the state.
pub(crate) fn instances<'a>(facts: &Facts<'a>) -> Option<Instances<'a>> {
    facts.now.processes.as_deref().map(Instances::of)
}

/// The configuration file of the only kube-proxy.
pub(crate) fn config_file(facts: &Facts<'_>) -> Option<String> {
    CommandLine::parse(&instances(facts)?.one()?.args).ok()?.config
}

/// Where kubeadm mounts its ConfigMap.
const KUBEADM: &str = "/var/lib/kube-proxy/config.conf";

/// The node's name in the cluster, or the command that most likely says it.
pub(crate) fn node_name<'a>(facts: &'a Facts<'_>) -> &'a str {
    let told = facts.settings.as_ref().and_then(|s| s.hostname_override.as_deref());
    told.unwrap_or("$(hostname)")
}

/// Where to write a setting: in the file, where there is one, or else as a flag.
pub(crate) fn setting(facts: &Facts<'_>, line: &str, flag: &str) -> String {
    let only = instances(facts).is_some_and(|all| all.one().is_some());
    match config_file(facts) {
        Some(file) if file == KUBEADM => format!(
            "{line}   # in {file} (with kubeadm: in the ConfigMap kube-system/kube-proxy); then \
             restart kube-proxy"
        ),
        Some(file) => format!("{line}   # in {file}; then restart kube-proxy"),
        None if only => format!("{flag}   # on kube-proxy's command line; then restart it"),
        None => format!("{line}   # in kube-proxy's file (as a flag: {flag}); then restart it"),
    }
}

/// Whether kube-proxy is of 1.`minor` or later: by its version, or else by chains that only some
/// versions write; none if neither tells.
pub(crate) fn at_least(facts: &Facts<'_>, minor: u32) -> Option<bool> {
    if let Some(version) = facts.running.version {
        return Some((version.major, version.minor) >= (1, minor));
    }
    let (from, until) = bounds(facts);
    match () {
        () if from.is_some_and(|from| from >= minor) => Some(true),
        () if until.is_some_and(|until| until < minor) => Some(false),
        () => None,
    }
}

/// The first and the last minor version that write what the kernel holds.
fn bounds(facts: &Facts<'_>) -> (Option<u32>, Option<u32>) {
    // In which minor version each chain came; a prefix ends with `-`.
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
    if let Some(since) = running.and_then(|mode| mode.since()) {
        return (Some(since), None);
    }
    let has = |table: &str, name: &str| {
        let mut tables = facts.now.rulesets.values().filter_map(|r| r.table(table));
        tables.any(|t| match name.ends_with('-') {
            true => t.chains.iter().any(|c| c.name.starts_with(name)),
            false => t.chain(name).is_some(),
        })
    };
    let from = CAME.iter().find(|(table, name, _)| has(table, name)).map(|(.., minor)| *minor);
    let older = from.is_none_or(|minor| minor < 24);
    let last = running.and_then(|mode| mode.last_version_of_chain());
    let until = last.filter(|(chain, _)| older && has("nat", chain)).map(|(_, minor)| minor);
    (from, until)
}

#[cfg(test)]
pub(crate) mod testing {
    use crate::checks::testing::node;
    use crate::state::NodeState;

    /// A captured node whose kube-proxy says that it is of that version.
    pub fn versioned(name: &str, version: &str) -> NodeState {
        let mut state = node(name);
        proxy(&mut state).version = Some(version.into());
        state
    }

    /// A captured node whose kube-proxy was started with those arguments.
    pub fn started(name: &str, args: &[&str]) -> NodeState {
        let mut state = node(name);
        proxy(&mut state).args = args.iter().map(|a| (*a).to_owned()).collect();
        state
    }

    pub fn proxy(state: &mut NodeState) -> &mut crate::state::tools::Process {
        let processes = state.processes.as_mut().expect("processes");
        processes.iter_mut().find(|p| p.name == "kube-proxy").expect("kube-proxy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, with_facts};

    #[test]
    fn chains_tell_the_version_where_no_process_does() {
        for (name, minor, expected) in [
            ("docker-iptables-1.30", 25, Some(true)),
            ("docker-iptables-1.30", 31, None),
            ("canal-stale-flannel-1.20", 16, Some(true)),
            ("canal-stale-flannel-1.20", 25, Some(false)),
            ("half-migrated-ipvs-1.20", 25, Some(false)),
            ("half-migrated-ipvs-1.20", 22, None),
            ("nftables-leftovers-1.30", 29, Some(true)),
        ] {
            let state = node(name);
            let found = with_facts(&state, None, |facts| at_least(facts, minor));
            assert_eq!(found, expected, "{name} 1.{minor}");
        }
        let state = testing::versioned("docker-iptables-1.30", "v1.31.2");
        assert_eq!(with_facts(&state, None, |facts| at_least(facts, 31)), Some(true));
        assert_eq!(with_facts(&state, None, |facts| at_least(facts, 32)), Some(false));
    }
}
