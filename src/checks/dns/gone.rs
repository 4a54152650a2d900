//! Whether the address of a resolver is of a nodelocaldns that is gone.

use std::net::IpAddr;

use super::{dns_addresses, is_link_local};
use crate::checks::Facts;
use crate::state::links::Route;

const OWNER: &str = "nodelocaldns";

/// True if nothing can answer at `address`: it is valid on this node alone, or nodelocaldns has rules
/// for it, and no link has it.
pub(super) fn is_gone(facts: &Facts<'_>, address: IpAddr) -> bool {
    let state = facts.now;
    let mut own = state.links.iter().flat_map(|link| &link.addresses);
    if state.links.is_empty() || own.any(|network| network.addr() == address) {
        return false;
    }
    if !rules(facts, address).is_empty() {
        return !dns_addresses(facts).contains(&address);
    }
    let leads = |r: &Route| r.network().is_some_and(|n| n.prefix_len() > 0 && n.contains(&address));
    is_link_local(address) && !is_of_cloud(address) && !state.routes.iter().any(leads)
}

/// True for the addresses at which clouds answer off the node, such as AWS' 169.254.169.253.
fn is_of_cloud(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(a) if a.octets()[..3] == [169, 254, 169])
}

/// The rules of nodelocaldns that name `address`, as evidence.
pub(super) fn rules(facts: &Facts<'_>, address: IpAddr) -> Vec<String> {
    let mut found = Vec::new();
    for (id, ruleset) in &facts.now.rulesets {
        for table in &ruleset.tables {
            for chain in table.chains.iter().filter(|chain| chain.is_built_in()) {
                for (position, rule) in chain.rules.iter().enumerate() {
                    let words = ruleset.words(rule);
                    let names = ["-d", "-s"].iter().any(|option| {
                        let host = words.value(option);
                        let host = host.as_ref().and_then(|(_, to)| to.split('/').next());
                        host.and_then(|host| host.parse().ok()) == Some(address)
                    });
                    if !names {
                        continue;
                    }
                    let owner = facts.ownership.rule(*id, &table.name, &chain.name, position);
                    if owner.is_some_and(|owner| owner.name == OWNER) {
                        found.push(format!("{id} {}: {}", table.name, ruleset.rule_text(rule)));
                    }
                }
            }
        }
    }
    found
}
