//! How long services are not served while kube-proxy crosses nftables mode in its own way: it removes
//! the other side's objects as it starts, and serves again after its first sync.
//!
//! The estimates lie between times that were measured with kube-proxy 1.37.2 on two cores
//! (`cargo bench --bench gap`, `reference/nftables-and-daemonset.md`, 0.1). A slower CPU, a slow API
//! server, and services with many endpoints take longer.

use std::fmt;

use serde::Serialize;

use crate::kube_proxy::mode::{self, Crossing, Measured, ProxyMode};
use crate::kube_proxy::services::Services;
use crate::state::ipvs::Listing;
use crate::state::kube_proxy::Mode;
use crate::state::{Backend, NodeState};

/// The least and the most that something is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bounds {
    /// The least, in seconds.
    pub least_s: f64,
    /// The most, in seconds.
    pub most_s: f64,
}

/// The sizes of [`Measured`]: 20, 1,000 and 5,000 services with 5 endpoints each. A service port
/// counts as one, and so does each of its endpoints.
const SIZES: [f64; 3] = [120.0, 6_000.0, 30_000.0];

/// What is expected of a move that kube-proxy makes in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gap {
    /// How many service ports the present mode serves.
    pub services: usize,
    /// How many endpoints these have, those of each service port counted.
    pub endpoints: usize,
    /// How long new connections to services fail.
    pub outage: Bounds,
    /// How long kube-proxy's first sync takes, which is a part of the outage.
    pub first_sync: Bounds,
    /// The open connections through ipvs, which hang once its virtual servers are gone; `None` if the
    /// present mode has none, or if they were not counted.
    pub ipvs_streams: Option<u64>,
}

impl Gap {
    /// The estimate for a move from the mode `from`, which serves, to the mode `to`; `None` if the
    /// move does not cross nftables mode.
    pub fn of(state: &NodeState, from: Mode, to: Mode) -> Option<Gap> {
        let (old, new) = (mode::of(from), mode::of(to));
        let (other, crossings) = match (old.has_own_tables(), new.has_own_tables()) {
            (false, true) => (old, crossings(old, state)),
            (true, false) => (new, crossings(new, state)),
            _ => return None,
        };
        let leaves = other.mode() == from;
        let served = old.services(state);
        let size = size(&served);
        let outage = |c: &Crossing| if leaves { c.leaving } else { c.returning };
        let first_sync = |c: &Crossing| if leaves { NFTABLES } else { c.first_sync };
        Some(Gap {
            services: served.len(),
            endpoints: served.values().map(|service| service.backends.len()).sum(),
            outage: widest(crossings.iter().map(|c| at(outage(c), size)))?,
            first_sync: widest(crossings.iter().map(|c| at(first_sync(c), size)))?,
            ipvs_streams: old.drains().then(|| streams(state)).flatten(),
        })
    }
}

/// nftables mode's own first sync. Clusters with 250,000 endpoints have reported 13 to 20 minutes
/// (kubernetes issue 135639).
const NFTABLES: Measured = [(0.05, 0.2), (0.2, 0.6), (3.2, 10.0)];

/// The crossings of `other`, one for each backend of iptables that kube-proxy may write to.
fn crossings(other: &dyn ProxyMode, state: &NodeState) -> Vec<Crossing> {
    let writes = |backend: &Backend| {
        let rulesets = state.rulesets.iter().filter(|(id, _)| id.backend == *backend);
        let mut nats = rulesets.filter_map(|(_, ruleset)| ruleset.table("nat"));
        nats.any(|nat| nat.chain("KUBE-SERVICES").is_some())
    };
    let both = [Backend::Legacy, Backend::Nft];
    let written: Vec<Backend> = both.into_iter().filter(|b| writes(b)).collect();
    let backends = if written.is_empty() { both.to_vec() } else { written };
    backends.into_iter().filter_map(|backend| other.crossing(backend)).collect()
}

/// How many service ports and endpoints there are.
fn size(services: &Services) -> f64 {
    services.values().map(|service| 1 + service.backends.len()).sum::<usize>() as f64
}

/// Bounds for a size, between those that were measured. Beyond the largest, the least grows with the
/// size and the most with its square, as iptables-nft's own time does.
fn at(measured: Measured, size: f64) -> Bounds {
    let [small, _, large] = SIZES;
    let (least_s, most_s) = if size <= small {
        measured[0]
    } else if size > large {
        let grown = size / large;
        (measured[2].0 * grown, measured[2].1 * grown * grown)
    } else {
        let above = SIZES.iter().position(|s| size <= *s).unwrap_or(2).max(1);
        let part = (size - SIZES[above - 1]) / (SIZES[above] - SIZES[above - 1]);
        let between = |from: f64, to: f64| from + (to - from) * part;
        let (from, to) = (measured[above - 1], measured[above]);
        (between(from.0, to.0), between(from.1, to.1))
    };
    let rounded = |seconds: f64| (seconds * 100.0).round() / 100.0;
    Bounds { least_s: rounded(least_s), most_s: rounded(most_s) }
}

/// The least and the most of several bounds.
fn widest(bounds: impl Iterator<Item = Bounds>) -> Option<Bounds> {
    bounds.reduce(|one, two| Bounds {
        least_s: one.least_s.min(two.least_s),
        most_s: one.most_s.max(two.most_s),
    })
}

/// The active connections through all virtual servers; `None` if they are not in this state.
fn streams(state: &NodeState) -> Option<u64> {
    const FILE: &str = "ipvs.list";
    let listing = Listing::parse(FILE, state.files.get(FILE)?).ok()?;
    Some(listing.servers.iter().flat_map(|s| &s.reals).map(|real| u64::from(real.active)).sum())
}

impl fmt::Display for Bounds {
    /// Examples: `0.5 to 1 s`, `56 to 67 s`, `4 to 19 min`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Bounds { least_s, most_s } = *self;
        if most_s > 300.0 {
            return write!(
                f,
                "{:.0} to {:.0} min",
                (least_s / 60.0).floor(),
                (most_s / 60.0).ceil()
            );
        }
        if most_s > 10.0 {
            return write!(f, "{least_s:.0} to {most_s:.0} s");
        }
        write!(f, "{least_s:.1} to {most_s:.1} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Measured = [(1.0, 2.0), (10.0, 20.0), (100.0, 400.0)];

    fn bounds(size: f64) -> (f64, f64) {
        let Bounds { least_s, most_s } = at(SOME, size);
        (least_s, most_s)
    }

    #[test]
    fn a_size_that_was_measured_has_its_bounds() {
        for (size, expected) in SIZES.into_iter().zip(SOME) {
            assert_eq!(bounds(size), expected, "{size}");
        }
        assert_eq!(bounds(0.0), SOME[0]);
    }

    #[test]
    fn between_and_beyond_they_grow() {
        assert_eq!(bounds(18_000.0), (55.0, 210.0));
        assert_eq!(bounds(60_000.0), (200.0, 1600.0));
        let mut last = (0.0, 0.0);
        for size in (0..80_000).step_by(500) {
            let now = bounds(f64::from(size));
            assert!(now.0 >= last.0 && now.1 >= last.1 && now.0 <= now.1, "{size}: {now:?}");
            last = now;
        }
    }

    #[test]
    fn they_read_well() {
        let text = |least_s, most_s| Bounds { least_s, most_s }.to_string();
        assert_eq!(text(0.52, 1.04), "0.5 to 1.0 s");
        assert_eq!(text(21.5, 62.4), "22 to 62 s");
        assert_eq!(text(250.0, 1100.0), "4 to 19 min");
    }
}
