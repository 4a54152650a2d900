//! nftables mode: one native nf_tables table for each family, which holds only kube-proxy's
//! objects.

mod expressions;
mod services;
mod translating;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Precedence, ProxyMode, ServiceFilter};
use crate::kube_proxy::reach::PodSource;
use crate::kube_proxy::services::{ServiceKey, Services, StickyClients};
use crate::owners::matcher::Ownership;
use crate::state::affinity::AffinityLists;
use crate::state::kube_proxy::{KubeProxyConfig, Masquerading, Mode};
use crate::state::{Family, NodeState};

/// The name of kube-proxy's table in each family.
const TABLE: &str = "kube-proxy";

/// The nftables mode of kube-proxy.
pub(super) struct NftablesMode;

impl ProxyMode for NftablesMode {
    fn mode(&self) -> Mode {
        Mode::Nftables
    }

    fn services_where(&self, state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
        services::read(state, wanted)
    }

    fn sticky_clients(&self, state: &NodeState, _lists: &AffinityLists) -> StickyClients {
        services::sticky_clients(state)
    }

    fn translating_rules(
        &self,
        state: &NodeState,
        ports: &BTreeSet<ServiceKey>,
    ) -> Option<NodeState> {
        Some(translating::rules(state, ports))
    }

    fn pods(&self, state: &NodeState, family: Family) -> PodSource {
        state.nft.get(family.nft(), TABLE).map_or(PodSource::Unknown, expressions::pods)
    }

    fn answers_node_ports(&self, state: &NodeState, family: Family) -> bool {
        services::answer_node_ports(state, family)
    }

    fn unlisted_table(&self, state: &NodeState) -> Option<String> {
        let tables = state.native_tables();
        let table = tables.iter().find(|t| t.name == TABLE && t.is_unlisted())?;
        Some(format!("nft table {} {TABLE}", table.family))
    }

    fn evidence(&self, state: &NodeState, _: &Ownership<'_>) -> Option<String> {
        let serves = |map: &Map<String, Value>| map.get("name").is_some_and(|n| n == "service-ips");
        let tables = state.native_tables();
        let table = tables.iter().find(|t| t.name == TABLE && t.of_kind("map").any(serves))?;
        Some(format!("table {} {TABLE} has the map service-ips", table.family))
    }

    fn missing_objects(&self, state: &NodeState, family: Family) -> Option<String> {
        let found = self.has_started(state, family);
        (!found).then(|| format!("{family}: there is no table {} {TABLE}", family.nft()))
    }

    fn has_started(&self, state: &NodeState, family: Family) -> bool {
        state.nft.get(family.nft(), TABLE).is_some()
    }

    fn uses_iptables(&self) -> bool {
        false
    }

    fn has_own_tables(&self) -> bool {
        true
    }

    fn host_tools(&self) -> &'static [&'static str] {
        &["nft"]
    }

    fn masquerading<'c>(&self, config: &'c KubeProxyConfig) -> &'c Masquerading {
        &config.nftables
    }

    /// That of its table's chain at the hook prerouting that translates.
    fn precedence(&self, state: &NodeState, family: Family) -> Option<Precedence> {
        let table = state.nft.get(family.nft(), TABLE)?;
        let is = |chain: &Map<String, Value>, field: &str, value: &str| {
            chain.get(field).is_some_and(|v| v == value)
        };
        let mut chains = table.of_kind("chain");
        let nat = chains.find(|c| is(c, "type", "nat") && is(c, "hook", "prerouting"))?;
        nat.get("prio")?.as_i64().map(Precedence::Nat)
    }

    /// The layouts of 1.30.5, 1.34.4, 1.35.4, 1.36.3 and 1.37.2 are known.
    fn since(&self, state: &NodeState) -> Option<u32> {
        let has = |kind: &str, name: &str| {
            let named = |object: &Map<String, Value>| object.get("name").is_some_and(|n| n == name);
            state.native_tables().iter().any(|t| t.name == TABLE && t.of_kind(kind).any(named))
        };
        // The newest first.
        let layouts =
            [("set", "hairpin-connections", 36), ("chain", "filter-prerouting-pre-dnat", 34)];
        let newest = layouts.iter().find(|(kind, name, _)| has(kind, name));
        Some(newest.map_or(29, |(.., minor)| *minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::nft::NftTables;

    #[test]
    fn it_has_started_with_each_family_whose_table_is_there() {
        let text = r#"{"nftables": [{"table": {"family": "ip6", "name": "kube-proxy"}},
                                    {"table": {"family": "ip", "name": "other"}}]}"#;
        let state =
            NodeState { nft: NftTables::parse("nft.json", text).unwrap(), ..NodeState::default() };
        assert!(NftablesMode.has_started(&state, Family::Ipv6));
        assert!(!NftablesMode.has_started(&state, Family::Ipv4));
    }
}
