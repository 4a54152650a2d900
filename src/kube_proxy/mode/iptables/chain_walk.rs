//! A walk along the chains of iptables mode, from a service port to its endpoints.
//!
//! From 1.24 on, KUBE-SVC-* has the endpoints of the ClusterIP, and KUBE-SVL-* those on the node.
//! Addresses of the outside lead to KUBE-EXT-*, which masquerades everybody, or has the policy
//! `Local`: pods and the node go on to KUBE-SVC-*, all others to KUBE-SVL-*. Up to 1.23 there is no
//! KUBE-SVL-*, KUBE-XLB-* stands for the policy `Local` alone, and who is masqueraded is also written
//! where a service port begins.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

use crate::kube_proxy::mode::rules::{MARK_MASQ, is_external};
use crate::kube_proxy::reach::{NoEndpoint, Reach};
use crate::kube_proxy::services::ServicePort;
use crate::state::ruleset::{Rule, Ruleset, Table};

/// The greatest depth to which chains are followed. kube-proxy's chains go from KUBE-FW through
/// KUBE-EXT and KUBE-SVC to KUBE-SEP.
const DEPTH: usize = 5;

/// Prefixes of the chains that lead to endpoints.
const LEADING: [&str; 6] =
    ["KUBE-SVC-", "KUBE-SEP-", "KUBE-FW-", "KUBE-XLB-", "KUBE-EXT-", "KUBE-SVL-"];

/// Whether a chain of this name leads to endpoints.
pub(super) fn leads(chain: &str) -> bool {
    LEADING.iter().any(|prefix| chain.starts_with(prefix))
}

/// What the chains of a service port say.
#[derive(Default)]
pub(super) struct Walk {
    /// The endpoints that new connections from anywhere get.
    pub(super) backends: BTreeSet<SocketAddr>,
    affinity: Option<u32>,
    /// The lists of the clients that stay with an endpoint, in the order in which they are asked.
    pub(super) lists: Vec<AffinityList>,
    source_ranges: BTreeSet<IpNet>,
    masquerades_everyone: bool,
    /// Whether a chain was passed that is for addresses of the outside.
    is_external: bool,
    /// The endpoints that only pods and the node get.
    everywhere: Option<BTreeSet<SocketAddr>>,
    drops: bool,
}

/// A list of `xt_recent` of the clients that stay with one endpoint.
pub(super) struct AffinityList {
    pub(super) name: String,
    /// How long a client stays after its last new connection.
    pub(super) timeout: Duration,
    pub(super) endpoint: SocketAddr,
}

impl Walk {
    /// Follows the chain `name` to its end.
    pub(super) fn along(ruleset: &Ruleset, table: &Table, name: &str) -> Walk {
        let mut walk = Walk::default();
        ServiceChains { ruleset, table }.follow(name, &mut walk, DEPTH);
        walk
    }

    /// Adds what was found to a service port. `direct` is its reach if its chains do not decide
    /// that.
    pub(super) fn add_to(self, service: &mut ServicePort, direct: Reach) {
        service.reach = match (self.masquerades_everyone, self.is_external) {
            (true, _) => Reach::Everyone,
            (false, true) => Reach::Local { everywhere: Some(self.everywhere.unwrap_or_default()) },
            // An external address of 1.20 whose policy is `Local` has nothing else to tell it.
            (false, false) => match direct {
                Reach::Local { .. } => Reach::Local { everywhere: Some(self.backends.clone()) },
                direct => direct,
            },
        };
        if self.drops {
            service.without = NoEndpoint::Drop;
        }
        service.backends.extend(self.backends);
        service.affinity = self.affinity.or(service.affinity);
        service.source_ranges.extend(self.source_ranges);
    }
}

/// The chains of a table.
struct ServiceChains<'a> {
    ruleset: &'a Ruleset,
    table: &'a Table,
}

/// Which connections a rule is for.
enum Clients {
    /// Those of everybody.
    Everyone,
    /// Those from this network.
    From(Option<IpNet>),
    /// Those of pods, of the node, or of all but these.
    Some,
}

impl ServiceChains<'_> {
    fn follow(&self, name: &str, walk: &mut Walk, depth: usize) {
        let Some(chain) = self.table.chain(name).filter(|_| depth > 0) else { return };
        walk.is_external |= is_external(name);
        for rule in &chain.rules {
            match rule.target.as_deref() {
                Some("DNAT") => walk.backends.extend(self.endpoint(rule)),
                // Behind an endpoint's own chain only its connections to itself are masqueraded.
                Some(MARK_MASQ) if !name.starts_with("KUBE-SEP-") => {
                    walk.masquerades_everyone |=
                        matches!(self.clients(rule, walk), Clients::Everyone);
                }
                // In KUBE-FW-*, this is for clients outside of the source ranges.
                Some("KUBE-MARK-DROP") if is_external(name) => walk.drops = true,
                Some(to) if leads(to) => match self.clients(rule, walk) {
                    Clients::Everyone => self.follow(to, walk, depth - 1),
                    Clients::From(range) if name.starts_with("KUBE-FW-") => {
                        walk.source_ranges.extend(range);
                        self.follow(to, walk, depth - 1);
                    }
                    Clients::From(_) | Clients::Some => {
                        if is_external(name) && walk.everywhere.is_none() {
                            let mut inside = Walk::default();
                            self.follow(to, &mut inside, depth - 1);
                            walk.everywhere = Some(inside.backends);
                            walk.lists.extend(inside.lists);
                        }
                    }
                },
                _ => {}
            }
        }
    }

    /// The endpoint to which a rule translates.
    fn endpoint(&self, rule: &Rule) -> Option<SocketAddr> {
        let (_, to) = self.ruleset.words(rule).value("--to-destination")?;
        to.parse().ok()
    }

    /// The endpoint whose own chain a rule leads to.
    fn target_endpoint(&self, rule: &Rule) -> Option<SocketAddr> {
        let chain = self.table.chain(rule.target.as_deref()?)?;
        chain.rules.iter().find_map(|rule| self.endpoint(rule))
    }

    /// Which connections the rule is for. Records the session affinity that it matches.
    fn clients(&self, rule: &Rule, walk: &mut Walk) -> Clients {
        let words = self.ruleset.words(rule);
        // Most rules match none of these, and are not split into words.
        if !["-s ", "-i ", "-m recent", "--src-type"].iter().any(|w| words.text().contains(w)) {
            return Clients::Everyone;
        }
        let terms = words.terms();
        let term = |option: &str| terms.iter().find(|t| t.option == option);
        if term("--rcheck").is_some()
            && let Some(seconds) = term("--seconds")
        {
            walk.affinity = seconds.value().parse().ok();
            let list = term("--name").zip(walk.affinity).zip(self.target_endpoint(rule));
            walk.lists.extend(list.map(|((name, seconds), endpoint)| AffinityList {
                name: name.value().to_owned(),
                timeout: Duration::from_secs(seconds.into()),
                endpoint,
            }));
        }
        match term("-s") {
            Some(source) if !source.negated => Clients::From(source.value().parse().ok()),
            None if term("-i").is_none() && term("--src-type").is_none() => Clients::Everyone,
            _ => Clients::Some,
        }
    }
}
