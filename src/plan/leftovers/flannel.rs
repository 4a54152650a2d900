//! flannel's rules for a lease or network that it no longer has (`reference/owners.md`, 5.1).
//!
//! flannel before 0.16.2 writes no comments, so a rule without a comment is weak evidence. Such a
//! rule is removed only if all other evidence agrees that it is flannel's.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::owners::attribution::Evidence;
use crate::owners::backend::LeftBackends;
use crate::owners::component::Component;
use crate::owners::liveness::{self, Liveness, liveness};
use crate::plan::Action;
use crate::plan::candidates::{Candidates, ChainIndex, RuleContext, RuleIndex};
use crate::plan::leftovers::cni::{is_signed, owner};
use crate::plan::reason::{FlannelReason, Reason};
use crate::state::RulesetId;
use crate::state::ruleset::{Rule, Ruleset};

const NAME: &str = "flannel";
const OWN_CHAINS: [&str; 3] = ["FLANNEL-POSTRTG", "FLANNEL-FWD", "FLANNEL"];

/// flannel's current networks and the subnets of its lease.
struct Lease<'a> {
    networks: &'a [IpNet],
    subnets: &'a [IpNet],
}

impl Lease<'_> {
    fn has(&self, net: &IpNet) -> bool {
        self.networks.contains(net) || self.subnets.contains(net)
    }
}

/// The source and destination network of a rule of flannel (`true`: negated with `!`), and its
/// target.
struct Nets {
    source: Option<(bool, IpNet)>,
    destination: Option<(bool, IpNet)>,
    target: String,
}

impl Nets {
    fn of(ruleset: &Ruleset, rule: &Rule) -> Option<Nets> {
        let words = ruleset.words(rule);
        let net = |option: &str| match words.value(option) {
            None => Some(None),
            Some((negated, value)) => Some(Some((negated, value.parse::<IpNet>().ok()?.trunc()))),
        };
        let target = rule.target.as_deref().unwrap_or_default().to_owned();
        Some(Nets { source: net("-s")?, destination: net("-d")?, target })
    }

    /// The pod networks that the rule names, as source or destination.
    fn pods(&self) -> impl Iterator<Item = &IpNet> {
        let nets = [&self.source, &self.destination].into_iter().flatten().map(|(_, net)| net);
        nets.filter(|net| !net.addr().is_multicast())
    }

    fn are(&self, source: (bool, IpNet), destination: (bool, IpNet), target: &str) -> bool {
        self.source == Some(source)
            && self.destination == Some(destination)
            && self.target == target
    }
}

/// Judges each rule of flannel, unless flannel is gone or seems so, or has left the backend of the
/// rule: `cni` then judges its rules.
pub(super) fn rules(candidates: &mut Candidates<'_>) {
    let Some(component) = candidates.catalogue.component(NAME) else { return };
    if matches!(liveness(component, candidates.state), Liveness::SeemsGone(_) | Liveness::Gone(_)) {
        return;
    }
    let left = LeftBackends::of(component, candidates.state, candidates.ownership);
    let is_left = |at: &ChainIndex, entry| left.why(at.id, entry).is_some();
    let left: BTreeSet<RulesetId> = candidates
        .chains_of(NAME)
        .iter()
        .filter(|c| is_left(&c.at, c.entry))
        .map(|c| c.at.id)
        .collect();
    let (lease, doubt) = lease(candidates, component);
    for (at, ruleset, table, chain) in candidates.all_chains() {
        if !chain.is_built_in() && !OWN_CHAINS.contains(&&*chain.name) || left.contains(&at.id) {
            continue;
        }
        let mut texts = BTreeSet::new();
        for (position, rule) in chain.rules.iter().enumerate() {
            let context = RuleContext { id: at.id, ruleset, table, chain, rule, position };
            if owner(candidates, &context) != NAME {
                continue;
            }
            let first = texts.insert(ruleset.rule_text(rule));
            let rule = RuleIndex { chain: at, position };
            match (judge(candidates, component, lease.as_ref(), &context, first), &doubt) {
                (None, _) => {}
                (Some(_), Some(doubt)) if lease.is_none() => {
                    let reason = Reason::Flannel(FlannelReason::LeaseUnknown(doubt.clone()));
                    candidates.add_rule(Action::Keep, rule, reason);
                }
                (Some((Action::Remove, reason)), Some(doubt)) => {
                    let reason = FlannelReason::LeaseUncertain(Box::new(reason), doubt.clone());
                    candidates.add_rule(Action::Suspect, rule, Reason::Flannel(reason));
                }
                (Some((Action::Remove, reason)), None) => {
                    candidates.propose_rule(rule, None, Reason::Flannel(reason));
                }
                (Some((action, reason)), _) => {
                    candidates.add_rule(action, rule, Reason::Flannel(reason));
                }
            }
        }
    }
}

/// flannel's lease, or `None` if the lease is unknown; and, if the lease is not certain, the
/// reason.
fn lease<'a>(
    candidates: &Candidates<'a>,
    component: &Component,
) -> (Option<Lease<'a>>, Option<String>) {
    let state = candidates.state;
    let Some(env) = &state.flannel else {
        return (None, Some("its lease (/run/flannel/subnet.env) is not in this state".into()));
    };
    let lease = Lease { networks: &env.networks, subnets: &env.subnets };
    if liveness::process(component, state).is_none() {
        return (Some(lease), Some("that flannel runs is not certain".into()));
    }
    let links = state.links.iter();
    let own = |name: &str| candidates.ownership.link(name).is_some_and(|o| o.name == NAME);
    for link in links.filter(|l| own(&l.name)) {
        for net in link.networks() {
            if !lease.subnets.iter().any(|s| s.contains(&net)) {
                let doubt = format!("{} has {net}, which is not in its lease", link.name);
                return (Some(lease), Some(doubt));
            }
        }
    }
    (Some(lease), None)
}

/// What to do with a rule of flannel if flannel's lease is certain, and the reason. `None` for a
/// rule that is judged together with its chain.
fn judge(
    candidates: &Candidates<'_>,
    component: &Component,
    lease: Option<&Lease<'_>>,
    context: &RuleContext<'_>,
    first: bool,
) -> Option<(Action, FlannelReason)> {
    if evidence(candidates, context) == Evidence::Link {
        // The bridge cni0 is not flannel's alone, so a rule that names it need not be flannel's.
        return None;
    }
    let nets = Nets::of(context.ruleset, context.rule)?;
    nets.pods().next()?;
    let Some(lease) = lease else { return Some((Action::Keep, FlannelReason::OfLease)) };
    let own_chain = !context.chain.is_built_in();
    let signed = own_chain || is_signed(candidates, component, context);
    let foreign: Vec<&IpNet> = nets.pods().filter(|n| !lease.has(n)).collect();
    Some(match (foreign.first(), signed) {
        (None, _) if !first => (Action::Remove, FlannelReason::SecondCopy),
        (None, true) if !own_chain && replaced(context) => {
            (Action::Remove, FlannelReason::BeforeOwnChains)
        }
        (None, false) if replaced(context) => (Action::Suspect, FlannelReason::BeforeOwnChains),
        (None, _) => (Action::Keep, FlannelReason::OfLease),
        (Some(&net), true) => (Action::Remove, FlannelReason::NotOfLease(*net)),
        (Some(&net), false) => match doubt(candidates, lease, context, &nets) {
            None => {
                let now = lease.subnets.to_vec();
                (Action::Remove, FlannelReason::OfEarlierLease(*net, now))
            }
            Some(doubt) => (Action::Suspect, FlannelReason::LooksLike(*net, doubt)),
        },
    })
}

/// True if a later version of flannel has replaced the rule: FLANNEL-POSTRTG, the chain in which
/// later versions keep such rules, has rules, and this rule is in table nat and jumps to no chain
/// of flannel's.
fn replaced(context: &RuleContext<'_>) -> bool {
    let chain = context.table.chain("FLANNEL-POSTRTG");
    &*context.table.name == "nat"
        && context.rule.target.as_deref().is_none_or(|t| !OWN_CHAINS.contains(&t))
        && chain.is_some_and(|c| !c.rules.is_empty())
}

/// The evidence by which the rule counts as flannel's.
fn evidence(candidates: &Candidates<'_>, context: &RuleContext<'_>) -> Evidence {
    let (table, chain) = (&context.table.name, &context.chain.name);
    candidates.ownership.rule_attribution(context.id, table, chain, context.position).evidence
}

/// Why a rule without a comment may not be of an earlier lease of flannel's; `None` if all evidence
/// agrees that it is.
fn doubt(
    candidates: &Candidates<'_>,
    lease: &Lease<'_>,
    context: &RuleContext<'_>,
    nets: &Nets,
) -> Option<String> {
    let shapes = candidates.catalogue.component(NAME).map_or(&[][..], |c| &c.rules);
    let shape = match evidence(candidates, context) {
        Evidence::Shape(i) => shapes.get(usize::from(i)).map_or("", |s| s.id.as_str()),
        _ => "",
    };
    let (Some((true, network)), Some((false, subnet))) = (nets.source, nets.destination) else {
        return Some("others write such rules too".into());
    };
    if shape != "outside-to-lease" {
        return Some("others write such rules too".into());
    }
    if !lease.networks.contains(&network) || !network.contains(&subnet) {
        return Some(format!("{network} is not flannel's network"));
    }
    if !has_live_rules(candidates, context, lease, network) {
        return Some("flannel's other rules are not beside it".into());
    }
    used_on_node(candidates, subnet)
}

/// True if the chain has the four rules that flannel writes for its current network and lease.
fn has_live_rules(
    candidates: &Candidates<'_>,
    context: &RuleContext<'_>,
    lease: &Lease<'_>,
    network: IpNet,
) -> bool {
    let own = |(position, rule)| {
        let context = RuleContext { rule, position, ..*context };
        let own =
            owner(candidates, &context) == NAME && evidence(candidates, &context) != Evidence::Link;
        own.then(|| Nets::of(context.ruleset, rule))?
    };
    let all: Vec<Nets> = context.chain.rules.iter().enumerate().filter_map(own).collect();
    let has =
        |source, destination, target: &str| all.iter().any(|n| n.are(source, destination, target));
    let outgoing = all.iter().any(|n| {
        n.source == Some((false, network))
            && n.destination.is_some_and(|(no, net)| no && net.addr().is_multicast())
            && n.target == "MASQUERADE"
    });
    outgoing
        && has((false, network), (false, network), "RETURN")
        && has((true, network), (false, network), "MASQUERADE")
        && lease.subnets.iter().any(|s| has((true, network), (false, *s), "RETURN"))
}

/// Why `subnet` is in use on this node, or may be; `None` if it is not. Routes to other nodes
/// through flannel's links do not count.
fn used_on_node(candidates: &Candidates<'_>, subnet: IpNet) -> Option<String> {
    let state = candidates.state;
    if state.links.is_empty() || state.routes.is_empty() {
        return Some("the node's routes and addresses are not in this state".into());
    }
    for link in &state.links {
        if link.addresses.iter().any(|a| subnet.contains(&a.addr())) {
            return Some(format!("{} has an address of it", link.name));
        }
    }
    let overlaps = |net: IpNet| subnet.contains(&net) || net.contains(&subnet);
    let through_flannel = |dev: &Option<String>| {
        let owner = dev.as_deref().and_then(|d| candidates.ownership.link(d));
        owner.is_some_and(|o| o.name == NAME)
    };
    for route in &state.routes {
        let to_other_node = route.kind == "unicast" && through_flannel(&route.dev);
        // A default route, which may be written as 0.0.0.0/0, does not count.
        let net = route.network().filter(|n| n.prefix_len() > 0);
        if net.is_some_and(overlaps) && !to_other_node {
            return Some(format!("the node has a {} route to {}", route.kind, route.dst));
        }
    }
    None
}
