//! Parity: what the old mode served, the new one serves too; what is missing has a name.
//!
//! Only what is lost counts: a backend that is new is no difference. What a mode cannot say is none
//! either: ipvs keeps no names, lists the addresses of NodePorts, and has nothing but an empty
//! virtual server, if that, where iptables has a refusal. So a service without backends is not
//! asked for, and only services that have backends on both sides are compared.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::kube_proxy::services::{Place, Service, ServiceKey, Services};

/// Something that was served before and is not now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The service port.
    pub service: ServiceKey,
    /// `namespace/name:port`, where one of the modes keeps it.
    pub name: Option<String>,
    /// What is not as it was.
    pub what: What,
}

/// What is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The service port as a whole.
    Service,
    /// One of its backends.
    Backend(SocketAddr),
    /// Whether a client stays with its backend; for how long is not compared.
    Affinity {
        /// True if it does now, and did not before.
        now: bool,
    },
    /// The only networks that may use it; empty if everyone may.
    SourceRanges {
        /// Before.
        before: BTreeSet<IpNet>,
        /// Now.
        now: BTreeSet<IpNet>,
    },
}

/// A difference that is no failure: the old side had changed in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Changed(pub Missing);

/// What two sides differ in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Parity {
    /// What is missing.
    pub missing: Vec<Missing>,
    /// What is missing too, but was gone from the old side already.
    pub changed: Vec<Changed>,
}

impl Parity {
    /// True when nothing is missing.
    pub fn holds(&self) -> bool {
        self.missing.is_empty()
    }
}

/// What `before` served and `after` does not, in the order of the services.
pub fn parity(before: &Services, after: &Services) -> Vec<Missing> {
    let known = Known::of(before, after);
    let mut missing = Vec::new();
    for (key, old) in before.iter().filter(|(_, s)| !s.backends.is_empty()) {
        let mut push = |what| {
            missing.push(Missing { service: *key, name: known.name(key).map(str::to_owned), what });
        };
        let Some(new) = after.get(key) else {
            push(What::Service);
            continue;
        };
        if new.backends.is_empty() && known.serves_elsewhere(key, old) {
            continue;
        }
        for backend in old.backends.difference(&new.backends) {
            push(What::Backend(*backend));
        }
        if new.backends.is_empty() {
            continue;
        }
        if old.affinity.is_some() != new.affinity.is_some() {
            push(What::Affinity { now: new.affinity.is_some() });
        }
        let (before, now) = (ranges(key, old), ranges(key, new));
        if before != now {
            push(What::SourceRanges { before, now });
        }
    }
    missing
}

/// As [`parity`], where endpoints may have come and gone meanwhile: `later` is what the old side
/// served at a later moment. That is what `after` must serve then; what only `before` had is
/// named as changed.
pub fn parity_since(before: &Services, later: Option<&Services>, after: &Services) -> Parity {
    let Some(later) = later else {
        return Parity { missing: parity(before, after), changed: Vec::new() };
    };
    let missing = parity(later, after);
    let subjects: HashSet<Subject> = missing.iter().map(Missing::subject).collect();
    let changed = parity(before, after).into_iter();
    let changed = changed.filter(|m| !subjects.contains(&m.subject())).map(Changed).collect();
    Parity { missing, changed }
}

/// A difference without its values.
type Subject = (ServiceKey, u8, Option<SocketAddr>);

impl Missing {
    fn subject(&self) -> Subject {
        match &self.what {
            What::Service => (self.service, 0, None),
            What::Backend(address) => (self.service, 1, Some(*address)),
            What::Affinity { .. } => (self.service, 2, None),
            What::SourceRanges { .. } => (self.service, 3, None),
        }
    }
}

/// The names of services, by either side, and what else the new side serves by them.
struct Known<'a> {
    names: HashMap<ServiceKey, &'a str>,
    after: HashMap<&'a str, Vec<&'a Service>>,
}

impl<'a> Known<'a> {
    fn of(before: &'a Services, after: &'a Services) -> Known<'a> {
        let named = |(key, service): (&'a ServiceKey, &'a Service)| {
            service.name.as_deref().map(|name| (name, *key, service))
        };
        let mut known = Known { names: HashMap::new(), after: HashMap::new() };
        for (name, key, service) in after.iter().filter_map(named) {
            known.names.insert(key, name);
            known.after.entry(name).or_default().push(service);
        }
        for (name, key, _) in before.iter().filter_map(named) {
            known.names.insert(key, name);
        }
        known
    }

    fn name(&self, key: &ServiceKey) -> Option<&'a str> {
        self.names.get(key).copied()
    }

    /// True if the new side keeps every backend behind another address of the same service. With
    /// `externalTrafficPolicy: Local` and no endpoint on this node, ipvs mode leads outside traffic
    /// to all endpoints (1.21 and later) and iptables mode to none.
    fn serves_elsewhere(&self, key: &ServiceKey, old: &Service) -> bool {
        let others = self.name(key).and_then(|name| self.after.get(name));
        others.into_iter().flatten().any(|s| s.backends.is_superset(&old.backends))
    }
}

/// The networks that may use a service, as either mode can say it: everyone is no restriction; and
/// the service's own address stands for the node itself, when the node is inside one of them.
fn ranges(key: &ServiceKey, service: &Service) -> BTreeSet<IpNet> {
    let ranges: BTreeSet<IpNet> = service.source_ranges.iter().map(IpNet::trunc).collect();
    let is_own = |net: &IpNet| matches!(key.place, Place::Address(own) if *net == IpNet::from(own));
    match ranges.iter().any(|net| net.prefix_len() == 0) {
        true => BTreeSet::new(),
        false => ranges.into_iter().filter(|net| !is_own(net)).collect(),
    }
}

/// `10.96.0.10:53/udp (kube-system/kube-dns:dns): the backend 192.168.64.7:53 is missing`.
impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.service)?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        match &self.what {
            What::Service => f.write_str(" is missing"),
            What::Backend(backend) => write!(f, ": the backend {backend} is missing"),
            What::Affinity { now: false } => {
                f.write_str(": clients no longer stay with their backend")
            }
            What::Affinity { now: true } => f.write_str(": clients now stay with their backend"),
            What::SourceRanges { before, now } => {
                write!(f, ": open to {} now, to {} before", Networks(now), Networks(before))
            }
        }
    }
}

/// As the difference itself, and why it is no failure.
impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; it had changed so before", self.0)
    }
}

struct Networks<'a>(&'a BTreeSet<IpNet>);

impl fmt::Display for Networks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("everyone");
        }
        for (i, net) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{net}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
