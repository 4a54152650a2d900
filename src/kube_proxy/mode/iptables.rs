//! iptables mode: each service is a chain whose rules lead to DNAT rules.

mod chain_walk;
mod services;
mod translating;

use std::collections::BTreeSet;

use super::{Crossing, ModeSysctl, ProxyMode, ROUTE_LOCALNET, ServiceFilter, rules};
use crate::kube_proxy::services::{ServiceKey, Services, StickyClients, Untold};
use crate::owners::matcher::Ownership;
use crate::state::affinity::AffinityLists;
use crate::state::kube_proxy::{KubeProxyConfig, Mode};
use crate::state::ruleset::{Rule, Ruleset};
use crate::state::{Backend, Family, NodeState};

pub use services::chains_by_name;

/// The iptables mode of kube-proxy.
pub(super) struct IptablesMode;

impl ProxyMode for IptablesMode {
    fn mode(&self) -> Mode {
        Mode::Iptables
    }

    fn services_where(&self, state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
        services::read(state, wanted)
    }

    fn sticky_clients(&self, state: &NodeState, lists: &AffinityLists) -> StickyClients {
        services::sticky_clients(state, lists)
    }

    fn translating_rules(
        &self,
        state: &NodeState,
        ports: &BTreeSet<ServiceKey>,
    ) -> Option<NodeState> {
        Some(translating::rules(state, ports))
    }

    fn untold(&self) -> &'static [Untold] {
        &[Untold::RangesWithoutEndpoints]
    }

    fn serves_localhost(&self, state: &NodeState) -> bool {
        services::serve_localhost(state)
    }

    fn evidence(&self, state: &NodeState, ownership: &Ownership<'_>) -> Option<String> {
        rules::serving_rules(state, ownership).find_map(|(id, _, rule)| {
            let target = service_chain(rule)?;
            Some(format!("nat KUBE-SERVICES ({id}) leads to {target}"))
        })
    }

    fn missing_objects(&self, state: &NodeState, family: Family) -> Option<String> {
        let mut rules = rules::services_chains(state, family).flat_map(|(_, chain)| &chain.rules);
        let found = rules.any(|rule| service_chain(rule).is_some());
        (!found).then(|| format!("{family}: nat KUBE-SERVICES leads to no service"))
    }

    fn has_started(&self, state: &NodeState, family: Family) -> bool {
        state.rulesets.iter().filter(|(id, _)| id.family == family).any(|(_, ruleset)| {
            ruleset.table("nat").is_some_and(|nat| nat.chain("KUBE-PROXY-CANARY").is_some())
        })
    }

    fn refuses_in_filter(&self) -> bool {
        true
    }

    fn disables_localhost_node_ports(&self, config: &KubeProxyConfig) -> bool {
        config.iptables.localhost_node_ports == Some(false)
    }

    fn sysctls(&self) -> &'static [ModeSysctl] {
        &[ROUTE_LOCALNET]
    }

    /// Most of the time goes into iptables-nft, whose own time grows with the square of the chains.
    fn crossing(&self, backend: Backend) -> Option<Crossing> {
        Some(match backend {
            Backend::Nft => Crossing {
                leaving: [(0.5, 1.0), (3.4, 7.0), (21.0, 62.0)],
                returning: [(0.4, 0.8), (1.9, 4.0), (56.0, 70.0)],
                first_sync: [(0.1, 0.3), (1.4, 3.0), (46.0, 63.0)],
            },
            Backend::Legacy => Crossing {
                leaving: [(0.5, 1.0), (1.2, 2.5), (6.0, 12.0)],
                returning: [(0.4, 0.8), (0.9, 2.0), (2.5, 5.0)],
                first_sync: [(0.1, 0.3), (0.3, 0.6), (1.3, 3.0)],
            },
        })
    }

    /// kube-proxy from 1.31 on counts by accounting objects, where the kernel has them.
    fn since(&self, state: &NodeState) -> Option<u32> {
        let chains = [("filter", "KUBE-FORWARD"), ("nat", "KUBE-NODEPORTS")];
        let counts = |ruleset: &Ruleset| {
            let own = chains.iter().filter_map(|(table, chain)| ruleset.table(table)?.chain(chain));
            own.flat_map(|c| &c.rules).any(|r| ruleset.rule_text(r).contains(" --nfacct-name "))
        };
        state.rulesets.values().any(counts).then_some(31)
    }

    fn last_version_of_chain(&self) -> Option<(&'static str, u32)> {
        Some(("KUBE-XLB-", 23))
    }
}

/// The KUBE-SVC chain that a rule jumps to.
fn service_chain(rule: &Rule) -> Option<&str> {
    rule.target.as_deref().filter(|target| target.starts_with("KUBE-SVC-"))
}
