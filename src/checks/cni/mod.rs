//! Pod networks: their rules, their ipsets and their CNI configurations.

mod bridge_nf_call;
mod calico_restart;
mod configurations;
mod flannel_order;
mod flannel_rules;
mod host_ports;
mod leftovers;
mod nftables;
mod portmap;

use super::Check;
use crate::plan::Object;
use crate::state::object::ObjectId;
use crate::state::{Backend, Family, NodeState, RulesetId};

pub(super) const CHECKS: &[&Check] = &[
    &bridge_nf_call::CHECK,
    &calico_restart::CHECK,
    &configurations::CHECK,
    &flannel_order::CHECK,
    &flannel_rules::CHECK,
    &leftovers::CHECK,
    &nftables::CHECK,
    &portmap::CHECK,
];

/// A row of the clean-up plan as evidence: the object with its file and line, and the plan's
/// reason.
fn shown(state: &NodeState, object: &Object) -> String {
    let line = || {
        let ObjectId::Rule { table, chain, position, .. } = &object.id else { return None };
        let chain = state.rulesets.get(&table.ruleset)?.table(&table.name)?.chain(chain)?;
        let rule = chain.rules.get(*position as usize)?;
        Some(format!("{}:{}: ", table.ruleset.file(), rule.line))
    };
    let text = object.text();
    let what = if text.is_empty() { object.id.name() } else { text };
    format!("{}{what}: {}", line().unwrap_or_default(), object.sentence())
}

/// The iptables program that writes the rules of a ruleset.
fn program(id: RulesetId) -> &'static str {
    match (id.family, id.backend) {
        (Family::Ipv4, Backend::Legacy) => "iptables-legacy",
        (Family::Ipv4, Backend::Nft) => "iptables-nft",
        (Family::Ipv6, Backend::Legacy) => "ip6tables-legacy",
        (Family::Ipv6, Backend::Nft) => "ip6tables-nft",
    }
}
