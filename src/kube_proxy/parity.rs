//! Parity: the new mode serves everything that the old mode served. Every difference is named.
//!
//! Only a loss counts as a difference: a new backend does not. What a mode cannot express does not
//! count either. ipvs keeps no service names, lists the addresses of NodePorts one by one, and has
//! at most an empty virtual server where iptables has a rule that refuses a service. A service
//! without backends is therefore not required, and properties are compared only for services that
//! have backends on both sides.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::mem;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::Serialize;

use crate::kube_proxy::reach::Reach;
use crate::kube_proxy::services::{Location, ServiceKey, ServicePort, Services};

/// A part of a service that the old side served and the new side does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// The service port that is affected.
    pub service: ServiceKey,
    /// The service's `namespace/name:port`, if one of the two modes keeps names.
    pub name: Option<String>,
    /// The part of the service that is missing or changed.
    pub what: MissingPart,
}

/// The part of a service that is missing or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MissingPart {
    /// The whole service port is missing.
    Service,
    /// This backend is missing.
    Backend(SocketAddr),
    /// Session affinity is on at one side only. Its timeout is not compared.
    Affinity {
        /// True if only the new side has affinity.
        now: bool,
    },
    /// The networks that may use the service differ. An empty set means that everyone may.
    SourceRanges {
        /// The networks that may use it on the old side.
        before: BTreeSet<IpNet>,
        /// The networks that may use it on the new side.
        now: BTreeSet<IpNet>,
    },
    /// Other clients are masqueraded.
    Reach {
        /// The reach at the old side.
        before: Reach,
        /// The reach at the new side.
        now: Reach,
    },
}

/// A difference that is no failure, because the old side changed in the same way meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ChangedMeanwhile(pub Missing);

/// The differences between what the old and the new side serve.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Parity {
    /// What the new side lacks.
    pub missing: Vec<Missing>,
    /// What the new side lacks but the old side had already lost too.
    pub changed: Vec<ChangedMeanwhile>,
}

impl Parity {
    /// True if the new side lacks nothing.
    pub fn holds(&self) -> bool {
        self.missing.is_empty()
    }
}

/// What `before` served and `after` does not, sorted by service.
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
        let lost = old.backends.difference(&new.backends);
        for backend in lost.chain(lost_elsewhere(old, new).into_iter().flatten()) {
            push(MissingPart::Backend(*backend));
        }
        if new.backends.is_empty() {
            continue;
        }
        if mem::discriminant(&old.reach) != mem::discriminant(&new.reach) {
            push(MissingPart::Reach { before: old.reach.clone(), now: new.reach.clone() });
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

/// The endpoints that only pods and the node had, and no longer have, if both modes tell these apart.
fn lost_elsewhere<'a>(
    old: &'a ServicePort,
    new: &'a ServicePort,
) -> Option<impl Iterator<Item = &'a SocketAddr>> {
    match (&old.reach, &new.reach) {
        (Reach::Local { everywhere: Some(before) }, Reach::Local { everywhere: Some(now) }) => {
            Some(before.difference(now).filter(|backend| !old.backends.contains(backend)))
        }
        _ => None,
    }
}

/// Like [`parity`], for services whose endpoints may change during the move. `later` is what the
/// old side served at a later capture, and `after` must serve that. What `before` had and `later`
/// no longer has is reported as changed.
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

/// What a difference is about, without the values before and after.
type Subject = (ServiceKey, u8, Option<SocketAddr>);

impl Missing {
    fn subject(&self) -> Subject {
        match &self.what {
            MissingPart::Service => (self.service, 0, None),
            MissingPart::Backend(address) => (self.service, 1, Some(*address)),
            MissingPart::Affinity { .. } => (self.service, 2, None),
            MissingPart::SourceRanges { .. } => (self.service, 3, None),
            MissingPart::Reach { .. } => (self.service, 4, None),
        }
    }
}

/// The names of services from both sides, keyed by service port, and the services of the new side,
/// keyed by name.
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

    /// True if the new side has all backends of `old` behind another address of the same service.
    /// With `externalTrafficPolicy: Local` and no endpoint on this node, ipvs mode leads outside
    /// traffic to all endpoints (1.21 and later), and iptables mode leads it to none.
    fn serves_elsewhere(&self, key: &ServiceKey, old: &ServicePort) -> bool {
        let namesakes = self.name(key).and_then(|name| self.after.get(name));
        namesakes.into_iter().flatten().any(|s| s.backends.is_superset(&old.backends))
    }
}

/// The source ranges of a service, in a form that both modes share. A range that covers all
/// addresses counts as no restriction. The service's own address is left out, because it stands for
/// the node when the node is inside another range.
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

/// Example: `10.96.0.10:53/udp (kube-system/kube-dns:dns): the backend 192.168.64.7:53 is missing`.
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
            MissingPart::Reach { before, now } => {
                write!(f, ": now {}, before {}", ReachInWords(now), ReachInWords(before))
            }
        }
    }
}

/// Writes the difference, and why it is no failure.
impl fmt::Display for ChangedMeanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; it has changed so meanwhile", self.0)
    }
}

/// What endpoints see of clients, as a sentence.
struct ReachInWords<'a>(&'a Reach);

impl fmt::Display for ReachInWords<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Reach::Cluster => "endpoints see the addresses of pods alone",
            Reach::Everyone => "endpoints see no client's address",
            Reach::Local { .. } => "endpoints see the addresses of clients from outside",
        })
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
