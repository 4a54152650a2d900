//! Pod networks: their rules, sets and configuration.

pub(super) mod bridge_nf_call;
pub(super) mod calico_restart;
pub(super) mod configurations;
pub(super) mod flannel_order;
pub(super) mod flannel_rules;
pub(super) mod leftovers;
pub(super) mod portmap;

use crate::plan::Object;
use crate::plan::change::ruleset_of;
use crate::state::{Backend, Family, NodeState, RulesetId};

/// A row of a plan with its place in its file, and what is wrong with it.
fn shown(state: &NodeState, object: &Object) -> String {
    let line = ruleset_of(object).and_then(|id| {
        let table = state.rulesets.get(&id)?.table(object.table.as_deref()?)?;
        let rule = table.chain(&object.name)?.rules.get(object.position? as usize)?;
        Some(format!("{}:{}: ", id.file(), rule.line))
    });
    let what = if object.text.is_empty() { &*object.name } else { &*object.text };
    format!("{}{what}: {}", line.unwrap_or_default(), object.reason)
}

/// The program that writes rules of this kind.
fn program(id: RulesetId) -> &'static str {
    match (id.family, id.backend) {
        (Family::Ipv4, Backend::Legacy) => "iptables-legacy",
        (Family::Ipv4, Backend::Nft) => "iptables-nft",
        (Family::Ipv6, Backend::Legacy) => "ip6tables-legacy",
        (Family::Ipv6, Backend::Nft) => "ip6tables-nft",
    }
}
