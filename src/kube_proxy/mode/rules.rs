//! The chain KUBE-SERVICES of table nat, which iptables mode and ipvs mode share.

use crate::owners::attribution::Evidence;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::Ownership;
use crate::state::ruleset::{Chain, Rule, Ruleset, Table};
use crate::state::{Family, NodeState, RulesetId};

const SERVICES: &str = "KUBE-SERVICES";

/// The chains KUBE-SERVICES of table nat of one family, in both backends.
pub(super) fn services_chains(
    state: &NodeState,
    family: Family,
) -> impl Iterator<Item = (&Ruleset, &Chain)> {
    let of_family = state.rulesets.iter().filter(move |(id, _)| id.family == family);
    of_family.filter_map(|(_, ruleset)| Some((ruleset, ruleset.table("nat")?.chain(SERVICES)?)))
}

/// kube-proxy's own rules in each nat KUBE-SERVICES that a built-in chain jumps to.
pub(super) fn serving_rules<'a>(
    state: &'a NodeState,
    ownership: &'a Ownership<'_>,
) -> impl Iterator<Item = (RulesetId, &'a Ruleset, &'a Rule)> {
    let nats = state.rulesets.iter().filter_map(|(id, r)| Some((*id, r, r.table("nat")?)));
    nats.filter(|(id, _, nat)| is_hooked(ownership, *id, nat)).flat_map(
        move |(id, ruleset, nat)| {
            let rules = nat.chain(SERVICES).map_or(&[][..], |c| &c.rules).iter().enumerate();
            let own = rules.filter(move |(position, _)| {
                let owner = ownership.rule_attribution(id, "nat", SERVICES, *position);
                ownership.name(owner) == KUBE_PROXY
            });
            own.map(move |(_, rule)| (id, ruleset, rule))
        },
    )
}

/// Whether a jump of kube-proxy's leads from PREROUTING or OUTPUT to KUBE-SERVICES.
fn is_hooked(ownership: &Ownership<'_>, id: RulesetId, nat: &Table) -> bool {
    ["PREROUTING", "OUTPUT"].iter().any(|name| {
        let rules = nat.chain(name).map_or(&[][..], |c| &c.rules);
        rules.iter().enumerate().any(|(position, rule)| {
            let owner = ownership.rule_attribution(id, "nat", name, position);
            matches!(owner.evidence, Evidence::Hook(_)) && rule.target.as_deref() == Some(SERVICES)
        })
    })
}
