//! What iptables mode and ipvs mode have in common: the chain KUBE-SERVICES of table nat, and who is
//! masqueraded.

use ipnet::IpNet;

use crate::kube_proxy::reach::PodSource;
use crate::owners::attribution::Evidence;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::Ownership;
use crate::state::ruleset::{Chain, Rule, Ruleset, Table};
use crate::state::{Family, NodeState, RulesetId};

const SERVICES: &str = "KUBE-SERVICES";

/// The chain that marks connections which are masqueraded.
pub(super) const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// Whether a chain of this name is for addresses of the outside.
pub(super) fn is_external(chain: &str) -> bool {
    chain.starts_with("KUBE-EXT-") || chain.starts_with("KUBE-XLB-")
}

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

/// How the rules of a family tell pods: by what masquerades all others, or leads pods past the policy
/// `Local`.
pub(super) fn pods(state: &NodeState, family: Family) -> PodSource {
    let of_family = state.rulesets.iter().filter(|(id, _)| id.family == family);
    let nats = of_family.filter_map(|(_, ruleset)| Some((ruleset, ruleset.table("nat")?)));
    let found = nats.flat_map(|(ruleset, nat)| {
        let own = nat.chains.iter().filter(|chain| chain.name.starts_with("KUBE-"));
        own.flat_map(move |chain| chain.rules.iter().map(move |rule| (ruleset, chain, rule)))
    });
    let mut found = found.filter_map(|(ruleset, chain, rule)| source(ruleset, chain, rule));
    found.next().unwrap_or(PodSource::Unknown)
}

/// The pods that a rule tells from other clients.
fn source(ruleset: &Ruleset, chain: &Chain, rule: &Rule) -> Option<PodSource> {
    // What these two chains lead pods to is no address of the outside any more.
    let negated = match rule.target.as_deref()? {
        MARK_MASQ => true,
        to if is_external(&chain.name) && to.starts_with("KUBE-SVC-") => false,
        _ => return None,
    };
    let words = ruleset.words(rule);
    if !["-s ", "-i "].iter().any(|option| words.text().contains(option)) {
        return None;
    }
    let terms = words.terms();
    let mut terms = terms.iter().filter(|term| term.negated == negated);
    terms.find_map(|term| match term.option {
        "-s" => Some(PodSource::Networks(vec![term.value().parse::<IpNet>().ok()?])),
        "-i" => Some(PodSource::Link(pattern(term.value()))),
        _ => None,
    })
}

/// The name of a link, whose `+` at the end stands for any end, as nft writes it.
fn pattern(name: &str) -> String {
    name.strip_suffix('+').map_or(name.to_owned(), |start| format!("{start}*"))
}
