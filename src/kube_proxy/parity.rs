//! Parity: the new mode serves everything that the old one served. Every difference has a name.
//!
//! Only a loss counts: a new backend is no difference. What a mode cannot express does not count
//! either: ipvs keeps no names, lists the addresses of NodePorts, and has at most an empty virtual
//! server where iptables has a refusal. A service without backends is therefore not required, and
//! only services with backends on both sides are compared.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::kube_proxy::services::{Location, ServiceKey, ServicePort, Services};

/// A part of a service that was served before and is not now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The service port.
    pub service: ServiceKey,
    /// `namespace/name:port`, where one of the modes keeps it.
    pub name: Option<String>,
    /// What is missing or changed.
    pub what: MissingPart,
}

/// What is missing or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingPart {
    /// The service port as a whole.
    Service,
    /// One of its backends.
    Backend(SocketAddr),
    /// Session affinity. Its timeout is not compared.
    Affinity {
        /// True if the affinity is new.
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

/// A difference that is no failure: the old side changed in the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ChangedMeanwhile(pub Missing);

/// The differences between two sides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Parity {
    /// What is missing.
    pub missing: Vec<Missing>,
    /// What is missing, but was already gone from the old side.
    pub changed: Vec<ChangedMeanwhile>,
}

impl Parity {
    /// True when nothing is missing.
    pub fn holds(&self) -> bool {
        self.missing.is_empty()
    }
}

/// What `before` served and `after` does not, in the order of services.
pub fn parity(before: &Services, after: &Services) -> Vec<Missing> {
    let known = Known::of(before, after);
    let mut missing = Vec::new();
    for (key, old) in before.iter().filter(|(_, s)| !s.backends.is_empty()) {
        let mut push = |what| {
            missing.push(Missing { service: *key, name: known.name(key).map(str::to_owned), what });
        };
        let Some(new) = after.get(key) else {
            push(MissingPart::Service);
            continue;
        };
        if new.backends.is_empty() && known.serves_elsewhere(key, old) {
            continue;
        }
        for backend in old.backends.difference(&new.backends) {
            push(MissingPart::Backend(*backend));
        }
        if new.backends.is_empty() {
            continue;
        }
        if old.affinity.is_some() != new.affinity.is_some() {
            push(MissingPart::Affinity { now: new.affinity.is_some() });
        }
        let (before, now) = (ranges(key, old), ranges(key, new));
        if before != now {
            push(MissingPart::SourceRanges { before, now });
        }
    }
    missing
}

/// As [`parity`], where endpoints may change meanwhile. `later` is what the old side served at a
/// later capture, and what `after` must serve. What only `before` had counts as changed.
pub fn parity_since(before: &Services, later: Option<&Services>, after: &Services) -> Parity {
    let Some(later) = later else {
        return Parity { missing: parity(before, after), changed: Vec::new() };
    };
    let missing = parity(later, after);
    let subjects: HashSet<Subject> = missing.iter().map(Missing::subject).collect();
    let changed = parity(before, after).into_iter();
    let changed =
        changed.filter(|m| !subjects.contains(&m.subject())).map(ChangedMeanwhile).collect();
    Parity { missing, changed }
}

/// A difference without its values.
type Subject = (ServiceKey, u8, Option<SocketAddr>);

impl Missing {
    fn subject(&self) -> Subject {
        match &self.what {
            MissingPart::Service => (self.service, 0, None),
            MissingPart::Backend(address) => (self.service, 1, Some(*address)),
            MissingPart::Affinity { .. } => (self.service, 2, None),
            MissingPart::SourceRanges { .. } => (self.service, 3, None),
        }
    }
}

/// The names of services from both sides, and the services of the new side by name.
struct Known<'a> {
    names: HashMap<ServiceKey, &'a str>,
    after: HashMap<&'a str, Vec<&'a ServicePort>>,
}

impl<'a> Known<'a> {
    fn of(before: &'a Services, after: &'a Services) -> Known<'a> {
        let named = |(key, service): (&'a ServiceKey, &'a ServicePort)| {
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

    /// True if the new side has every backend behind another address of the same service. With
    /// `externalTrafficPolicy: Local` and no endpoint on this node, ipvs mode leads outside traffic
    /// to all endpoints (1.21 and later), and iptables mode to none.
    fn serves_elsewhere(&self, key: &ServiceKey, old: &ServicePort) -> bool {
        let namesakes = self.name(key).and_then(|name| self.after.get(name));
        namesakes.into_iter().flatten().any(|s| s.backends.is_superset(&old.backends))
    }
}

/// The source ranges of a service, in a form that both modes share. A range of all addresses is no
/// restriction. The service's own address stands for the node, if the node is inside another range.
fn ranges(key: &ServiceKey, service: &ServicePort) -> BTreeSet<IpNet> {
    let ranges: BTreeSet<IpNet> = service.source_ranges.iter().map(IpNet::trunc).collect();
    let is_own =
        |net: &IpNet| matches!(key.location, Location::Address(own) if *net == IpNet::from(own));
    if ranges.iter().any(|net| net.prefix_len() == 0) {
        BTreeSet::new()
    } else {
        ranges.into_iter().filter(|net| !is_own(net)).collect()
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
            MissingPart::Service => f.write_str(" is missing"),
            MissingPart::Backend(backend) => write!(f, ": the backend {backend} is missing"),
            MissingPart::Affinity { now: false } => {
                f.write_str(": clients no longer stay with their backend")
            }
            MissingPart::Affinity { now: true } => {
                f.write_str(": clients now stay with their backend")
            }
            MissingPart::SourceRanges { before, now } => {
                write!(f, ": open to {} now, to {} before", Networks(now), Networks(before))
            }
        }
    }
}

/// The difference, and why it is no failure.
impl fmt::Display for ChangedMeanwhile {
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
