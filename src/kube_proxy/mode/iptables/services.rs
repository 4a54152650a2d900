//! Services, read from the chains of iptables mode: KUBE-SERVICES → KUBE-SVC-* → KUBE-SEP-* in nat,
//! and the rules in filter that refuse services without endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::kube_proxy::mode::ServiceFilter;
use crate::kube_proxy::services::{Location, ServiceKey, ServicePort, Services, protocol};
use crate::state::rule::{Term, Words};
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::{Family, NodeState};

/// The greatest depth to which chains are followed. kube-proxy's chains go from KUBE-FW through
/// KUBE-EXT and KUBE-SVC to KUBE-SEP.
const DEPTH: usize = 5;

/// Prefixes of the chains that lead to endpoints.
const LEADING: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-SVL-"];

/// The node's services that `wanted` accepts.
pub(super) fn read(state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
    let mut found = Services::new();
    for (id, ruleset) in &state.rulesets {
        for table in &ruleset.tables {
            let (chains, leads): (_, fn(&str) -> bool) = match &*table.name {
                "nat" => (["KUBE-SERVICES", "KUBE-NODEPORTS"], |to| {
                    LEADING.iter().any(|p| to.starts_with(p))
                }),
                "filter" => (["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"], |to| {
                    to == "REJECT" || to == "DROP"
                }),
                _ => continue,
            };
            let rules = chains.iter().filter_map(|c| table.chain(c)).flat_map(|c| &c.rules);
            for rule in rules {
                let Some(target) = rule.target.as_deref().filter(|t| leads(t)) else { continue };
                let words = ruleset.words(rule);
                let Some(key) = key(&words.terms(), id.family) else { continue };
                let name = name(words);
                if !wanted(&key, name.as_deref()) {
                    continue;
                }
                let service = found.entry(key).or_default();
                service.name = service.name.take().or(name);
                ChainWalk { ruleset, table, service }.chain(target, DEPTH);
            }
        }
    }
    found
}

/// The endpoints of each KUBE-SVC chain, keyed by the service name in the chain's comments. Chains
/// that no rule jumps to count too, because a change of mode leaves such chains behind.
pub fn chains_by_name(state: &NodeState) -> BTreeMap<String, BTreeSet<SocketAddr>> {
    let mut found: BTreeMap<String, BTreeSet<SocketAddr>> = BTreeMap::new();
    for ruleset in state.rulesets.values() {
        let Some(table) = ruleset.table("nat") else { continue };
        for chain in table.chains.iter().filter(|c| c.name.starts_with("KUBE-SVC-")) {
            let Some(name) = chain.rules.iter().find_map(|r| name(ruleset.words(r))) else {
                continue;
            };
            let mut service = ServicePort::default();
            ChainWalk { ruleset, table, service: &mut service }.chain(&chain.name, DEPTH);
            found.entry(name).or_default().extend(service.backends);
        }
    }
    found
}

/// The service port that a rule of KUBE-SERVICES or KUBE-NODEPORTS serves. A rule without a
/// destination address serves the addresses of the node.
fn key(terms: &[Term<'_>], family: Family) -> Option<ServiceKey> {
    let value = |option| terms.iter().find(|t| t.option == option && !t.negated).map(Term::value);
    let location = match value("-d") {
        None => Location::Node(family),
        Some(text) => Location::Address(host(text)?),
    };
    let port = value("--dport")?.parse().ok()?;
    let protocol = protocol(value("-p")?)?;
    Some(ServiceKey { location, port, protocol })
}

/// The address of a single-host network such as `10.96.0.1/32`; `None` for a larger network.
fn host(text: &str) -> Option<IpAddr> {
    match text.parse::<IpNet>() {
        Ok(net) => (net.prefix_len() == net.max_prefix_len()).then(|| net.addr()),
        Err(_) => text.parse().ok(),
    }
}

/// The service name in a rule's comment: `shop/web:http` of `shop/web:http cluster IP` or
/// `shop/web:http -> 10.0.0.1:80`.
fn name(words: Words<'_>) -> Option<String> {
    let comments = words.comments();
    let first = comments.first()?.split(' ').next()?;
    first.contains('/').then(|| first.to_owned())
}

/// A walk along chains from a service to its endpoints. It adds what it finds to `service`.
struct ChainWalk<'a> {
    ruleset: &'a Ruleset,
    table: &'a Table,
    service: &'a mut ServicePort,
}

impl ChainWalk<'_> {
    fn chain(&mut self, name: &str, depth: usize) {
        let table = self.table;
        let Some(chain) = table.chain(name).filter(|_| depth > 0) else { return };
        for rule in &chain.rules {
            match rule.target.as_deref() {
                Some("DNAT") => self.endpoint(rule),
                Some(to)
                    if LEADING.iter().any(|p| to.starts_with(p))
                        && self.is_for_everyone(name, rule) =>
                {
                    self.chain(to, depth - 1);
                }
                _ => {}
            }
        }
    }

    fn endpoint(&mut self, rule: &Rule) {
        if let Some((_, to)) = self.ruleset.words(rule).value("--to-destination") {
            self.service.backends.extend(to.parse::<SocketAddr>());
        }
    }

    /// Records the session affinity and source range that the rule matches. Returns false for a
    /// rule that serves only traffic from the node itself, or only traffic from the node's pods to
    /// an external address.
    fn is_for_everyone(&mut self, chain: &str, rule: &Rule) -> bool {
        let text = self.ruleset.words(rule);
        if !["-s ", "-m recent", "--src-type"].iter().any(|w| text.text().contains(w)) {
            return true;
        }
        let terms = text.terms();
        let value = |option: &str| terms.iter().find(|t| t.option == option && !t.negated);
        if value("--rcheck").is_some()
            && let Some(seconds) = value("--seconds")
        {
            self.service.affinity = seconds.value().parse().ok();
        }
        match value("-s") {
            Some(source) if chain.starts_with("KUBE-FW-") => {
                self.service.source_ranges.extend(source.value().parse::<IpNet>());
                true
            }
            Some(_) => false,
            None => value("--src-type").is_none(),
        }
    }
}
