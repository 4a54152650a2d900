//! Which mode of kube-proxy runs: what the kernel holds, with the configuration as a second
//! witness (`reference/kube-proxy.md`, 1.5).

use std::collections::BTreeMap;

use crate::owners::life;
use crate::owners::matcher::{Ownership, Why};
use crate::state::NodeState;
use crate::state::RulesetId;
use crate::state::kube_proxy::{CommandLine, KubeProxyConfig, Mode};
use crate::state::ruleset::Table;
use crate::state::tools::Version;

/// kube-proxy on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The mode that serves; none if that is not clear, as between two modes.
    pub mode: Option<Mode>,
    /// What shows it, or why it is not clear.
    pub evidence: String,
    /// Its version, where the processes say.
    pub version: Option<Version>,
}

/// Where a kubeadm node has the configuration, if no process says otherwise.
const CONFIG: &str = "/var/lib/kube-proxy/config.conf";

/// The evidence when no mode serves.
pub const NOTHING_SERVED: &str = "the kernel holds the services of no mode";

/// Which mode runs.
pub fn running(state: &NodeState, ownership: &Ownership<'_>) -> Running {
    let kernel = kernel(state, ownership);
    let configured = settings(state).map(|s| s.mode());
    let (mode, evidence) = judge(&kernel, configured);
    let version = ownership
        .catalogue()
        .component("kube-proxy")
        .and_then(|c| life::process(c, state))
        .filter(|p| p.name == "kube-proxy")
        .and_then(|p| Version::find(p.version.as_deref()?));
    Running { mode, evidence, version }
}

/// What kube-proxy was told, by its command line and file; none if that is not known.
pub fn settings(state: &NodeState) -> Option<KubeProxyConfig> {
    let file = |path: &str| KubeProxyConfig::parse(path, state.file(path)?).ok();
    let mut processes = state.processes.iter().flatten().filter(|p| p.name == "kube-proxy");
    match (processes.next(), processes.next()) {
        (Some(process), None) => {
            let line = CommandLine::parse(&process.args).ok()?;
            let config = line.config.as_deref().and_then(file);
            line.settings(config.as_ref())
        }
        (Some(_), Some(_)) => None,
        (None, _) => file(CONFIG),
    }
}

fn judge(kernel: &BTreeMap<Mode, String>, told: Option<Mode>) -> (Option<Mode>, String) {
    let held: Vec<(&Mode, &String)> = kernel.iter().collect();
    let all = || held.iter().map(|(_, e)| e.as_str()).collect::<Vec<_>>().join("; ");
    match (&held[..], told) {
        ([], _) => (None, NOTHING_SERVED.into()),
        ([(mode, evidence)], Some(told)) if **mode != told => {
            (None, format!("the configuration says {told}, but {evidence}"))
        }
        ([(mode, evidence)], _) => (Some(**mode), (*evidence).clone()),
        // Both serve: nf_tables tables, and the rules of another mode that are still hooked in.
        ([(other, _), (Mode::Nftables, _)], Some(told))
            if told == **other || told == Mode::Nftables =>
        {
            (Some(told), format!("the configuration says {told}; {}", all()))
        }
        _ => (None, format!("more than one mode serves: {}", all())),
    }
}

/// The modes whose services the kernel serves, each with what shows it.
fn kernel(state: &NodeState, ownership: &Ownership<'_>) -> BTreeMap<Mode, String> {
    let mut found = BTreeMap::new();
    for (id, ruleset) in &state.rulesets {
        let Some(nat) = ruleset.table("nat").filter(|nat| is_hooked(ownership, *id, nat)) else {
            continue;
        };
        let rules = nat.chain("KUBE-SERVICES").map_or(&[][..], |c| &c.rules);
        for (position, rule) in rules.iter().enumerate() {
            // Only what kube-proxy wrote bears witness.
            let owner = ownership.rule_attribution(*id, "nat", "KUBE-SERVICES", position);
            if ownership.name(owner) != "kube-proxy" {
                continue;
            }
            let sets = ruleset.words(rule).sets();
            if sets.iter().any(|s| s == "KUBE-CLUSTER-IP" || s == "KUBE-6-CLUSTER-IP") {
                found.entry(Mode::Ipvs).or_insert_with(|| {
                    format!("nat KUBE-SERVICES ({id}) matches the set {}", sets[0])
                });
            }
            let service = |t: &&crate::state::ruleset::Name| t.starts_with("KUBE-SVC-");
            if let Some(target) = rule.target.as_ref().filter(service) {
                found
                    .entry(Mode::Iptables)
                    .or_insert_with(|| format!("nat KUBE-SERVICES ({id}) leads to {target}"));
            }
        }
    }
    for table in state.native_tables().into_iter().filter(|t| t.name == "kube-proxy") {
        let services = |m: &serde_json::Map<String, serde_json::Value>| {
            m.get("name").is_some_and(|n| n == "service-ips")
        };
        if table.of_kind("map").any(services) {
            let family = &table.family;
            found
                .entry(Mode::Nftables)
                .or_insert_with(|| format!("table {family} kube-proxy has the map service-ips"));
        }
    }
    found
}

/// True if packets reach KUBE-SERVICES by kube-proxy's own jump.
fn is_hooked(ownership: &Ownership<'_>, id: RulesetId, nat: &Table) -> bool {
    ["PREROUTING", "OUTPUT"].iter().any(|name| {
        let rules = nat.chain(name).map_or(&[][..], |c| &c.rules);
        rules.iter().enumerate().any(|(position, rule)| {
            let owner = ownership.rule_attribution(id, "nat", name, position);
            matches!(owner.why, Why::Hook(_)) && rule.target.as_deref() == Some("KUBE-SERVICES")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(modes: &[Mode]) -> BTreeMap<Mode, String> {
        modes.iter().map(|m| (*m, m.to_string())).collect()
    }

    #[test]
    fn one_mode_that_the_configuration_does_not_deny() {
        use Mode::{Iptables, Ipvs, Nftables};
        for (kernel, told, expected) in [
            (vec![], Some(Ipvs), None),
            (vec![Ipvs], Some(Ipvs), Some(Ipvs)),
            (vec![Ipvs], None, Some(Ipvs)),
            // Configured and restarted, but the rules have not been rewritten yet.
            (vec![Iptables], Some(Ipvs), None),
            (vec![Iptables, Ipvs], Some(Ipvs), None),
            (vec![Iptables, Nftables], Some(Nftables), Some(Nftables)),
            (vec![Iptables, Nftables], Some(Iptables), Some(Iptables)),
            (vec![Iptables, Nftables], Some(Ipvs), None),
            (vec![Iptables, Nftables], None, None),
            (vec![Ipvs, Nftables], Some(Nftables), Some(Nftables)),
            (vec![Iptables, Ipvs, Nftables], Some(Nftables), None),
        ] {
            assert_eq!(judge(&held(&kernel), told).0, expected, "{kernel:?} {told:?}");
        }
    }
}
