//! The bridge as it should be by now: with the endpoints that the API has, or without what the new
//! mode has shown that nobody serves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Backends, Bridge, Frontend};
use crate::kube_proxy::api_services::{AddressKind, ApiServices, ServedByApi};
use crate::kube_proxy::reach::{NoEndpoint, Reach};
use crate::kube_proxy::services::{Location, ServiceKey, Services};
use crate::state::Family;

/// Bridges of all families, as they were loaded first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LoadedBridges(pub Vec<Bridge>);

impl LoadedBridges {
    /// Whether the API knows any of the frontends. If not, it is another cluster's.
    pub fn are_known_to(&self, api: &ApiServices) -> bool {
        let mut all = self.0.iter().flat_map(|bridge| bridge.frontends.keys());
        all.any(|frontend| api.at(frontend.address, frontend.port, frontend.protocol).is_some())
    }

    /// The bridges with what the API has: the endpoints of each frontend as kube-proxy would choose
    /// them now. A frontend that the API does not know is refused, and one that is new there is left
    /// out.
    pub fn following(&self, api: &ApiServices) -> Vec<Bridge> {
        let LoadedBridges(bridges) = self;
        let known =
            |frontend: &Frontend| api.at(frontend.address, frontend.port, frontend.protocol);
        let all = bridges.iter().flat_map(|bridge| &bridge.frontends);
        let mut served = all.filter_map(|(frontend, now)| Some((now, known(frontend)?)));
        // Only where kube-proxy is told so, a ClusterIP masquerades everybody.
        let masquerades_all = served.any(|(loaded, by_api)| {
            by_api.kind == AddressKind::Inside && loaded.reach == Reach::Everyone
        });
        let following = bridges.iter().map(|bridge| {
            let frontends = bridge.frontends.iter().map(|(frontend, loaded)| {
                let backends = match known(frontend) {
                    Some(by_api) => Backends::by_api(*frontend, loaded, by_api, masquerades_all),
                    None => Backends::refused(),
                };
                (*frontend, backends)
            });
            Bridge { frontends: frontends.collect(), ..bridge.clone() }
        });
        following.collect()
    }
}

impl Bridge {
    /// The bridge without the frontends that `now`, the bridge of what the new mode serves, refuses or
    /// lacks. The same bridge if the new mode serves nothing of the family yet.
    pub fn without_unserved(&self, now: Option<&Bridge>) -> Bridge {
        let is_served = |frontend: &Frontend| {
            let served = now.and_then(|now| now.frontends.get(frontend));
            served.is_some_and(Backends::has_endpoints)
        };
        let frontends: Vec<_> =
            self.frontends.iter().filter(|(frontend, _)| is_served(frontend)).collect();
        if frontends.is_empty() {
            return self.clone();
        }
        let frontends = frontends.into_iter().map(|(frontend, own)| (*frontend, own.clone()));
        Bridge { frontends: frontends.collect(), ..self.clone() }
    }

    /// What the bridge serves, as services, whose endpoints are those that anybody gets. What is
    /// served at an address of the node, which `of_node` are, is a NodePort.
    pub fn services(&self, of_node: &BTreeSet<IpAddr>) -> Services {
        let mut services = Services::new();
        for (frontend, backends) in &self.frontends {
            let Frontend { address, protocol, port } = *frontend;
            let mut key = ServiceKey::at(SocketAddr::new(address, port), protocol);
            if of_node.contains(&address) {
                key.location = Location::Node(self.family);
            }
            let service = services.entry(key).or_default();
            service.backends.extend(&backends.endpoints);
            service.backends.extend(backends.elsewhere().into_iter().flatten());
            if key.address().is_none() {
                service.node_addresses.insert(address);
            }
        }
        services
    }
}

impl Backends {
    /// What new connections get by the API; `loaded` is what they got as the bridge was loaded.
    fn by_api(
        frontend: Frontend,
        loaded: &Backends,
        by_api: &ServedByApi,
        masquerades_all: bool,
    ) -> Backends {
        let mut source_ranges = by_api.source_ranges.clone();
        // A mode may let in the service's own address, which stands for the node.
        let own = IpNet::from(frontend.address);
        if !source_ranges.is_empty() && loaded.source_ranges.contains(&own) {
            source_ranges.push(own);
            source_ranges = IpNet::aggregate(&source_ranges);
        }
        Backends {
            endpoints: of_family(&by_api.endpoints, frontend),
            reach: match by_api.reach(masquerades_all) {
                Reach::Local { everywhere: Some(everywhere) } => {
                    Reach::Local { everywhere: Some(of_family(&everywhere, frontend)) }
                }
                reach => reach,
            },
            has_affinity: by_api.has_affinity,
            clients: loaded.clients.clone(),
            source_ranges,
            without: by_api.without,
        }
    }

    /// "Connection refused" for everybody.
    fn refused() -> Backends {
        Backends {
            endpoints: BTreeSet::new(),
            reach: Reach::Cluster,
            has_affinity: false,
            clients: BTreeMap::new(),
            source_ranges: Vec::new(),
            without: NoEndpoint::Reject,
        }
    }

    fn elsewhere(&self) -> Option<&BTreeSet<SocketAddr>> {
        match &self.reach {
            Reach::Local { everywhere } => everywhere.as_ref(),
            _ => None,
        }
    }

    /// Whether anybody gets an endpoint.
    pub fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty() || self.elsewhere().is_some_and(|all| !all.is_empty())
    }
}

/// Those of the endpoints that are of the frontend's family: a bridge translates to no other.
fn of_family(endpoints: &BTreeSet<SocketAddr>, frontend: Frontend) -> BTreeSet<SocketAddr> {
    let family = Family::of(frontend.address);
    endpoints.iter().filter(|endpoint| Family::of(endpoint.ip()) == family).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_proxy::reach::PodSource;
    use crate::state::api_objects::{ApiService, ApiSlice};
    use crate::state::ipvs::Protocol;

    fn frontend(address: &str, port: u16) -> Frontend {
        Frontend { address: address.parse().unwrap(), protocol: Protocol::Tcp, port }
    }

    fn backends(endpoints: &[&str], reach: Reach) -> Backends {
        let endpoints = endpoints.iter().map(|e| e.parse().unwrap()).collect();
        Backends { endpoints, reach, ..Backends::refused() }
    }

    fn bridge(frontends: &[(Frontend, Backends)]) -> Bridge {
        let frontends = frontends.iter().cloned().collect();
        let (family, pods) = (Family::Ipv4, PodSource::Unknown);
        Bridge { family, mark: 0x4000, pods, frontends }
    }

    /// The Services `number` of `shop` at 10.96.0.NUMBER and node port 30000 + NUMBER, each with one
    /// endpoint in 10.244.NUMBER.0.
    fn api(numbers: &[u8]) -> ApiServices {
        let services = numbers.iter().map(|n| {
            let text = format!(
                r#"{{"metadata": {{"namespace": "shop", "name": "s{n}"}}, "spec": {{
                    "clusterIPs": ["10.96.0.{n}"],
                    "ports": [{{"port": 80, "nodePort": {}}}]}}}}"#,
                30_000 + u16::from(*n)
            );
            serde_json::from_str::<ApiService>(&text).unwrap()
        });
        let slices = numbers.iter().map(|n| {
            let text = format!(
                r#"{{"metadata": {{"namespace": "shop", "name": "s{n}-x",
                    "labels": {{"kubernetes.io/service-name": "s{n}"}}}}, "addressType": "IPv4",
                    "ports": [{{"port": 8080}}], "endpoints": [{{"addresses": ["10.244.{n}.1"]}}]}}"#
            );
            serde_json::from_str::<ApiSlice>(&text).unwrap()
        });
        let (services, slices): (Vec<_>, Vec<_>) = (services.collect(), slices.collect());
        ApiServices::of(services.iter(), slices.iter(), "node-1")
    }

    #[test]
    fn endpoints_are_those_of_the_api_and_what_is_deleted_is_refused() {
        let old = ["10.244.0.1:8080", "10.244.0.2:8080"];
        let loaded = bridge(&[
            (frontend("10.96.0.1", 80), backends(&old, Reach::Cluster)),
            (frontend("192.168.0.1", 30_001), backends(&old, Reach::Everyone)),
            (frontend("10.96.0.2", 80), backends(&old, Reach::Cluster)),
            (frontend("192.168.0.1", 30_002), backends(&old, Reach::Everyone)),
            // It had none when the bridge was loaded.
            (frontend("192.168.0.1", 30_003), backends(&[], Reach::Cluster)),
        ]);
        let loaded = LoadedBridges(vec![loaded]);
        let following = loaded.following(&api(&[1, 3, 4]));
        let expected = bridge(&[
            (frontend("10.96.0.1", 80), backends(&["10.244.1.1:8080"], Reach::Cluster)),
            (frontend("192.168.0.1", 30_001), backends(&["10.244.1.1:8080"], Reach::Everyone)),
            (frontend("10.96.0.2", 80), Backends::refused()),
            (frontend("192.168.0.1", 30_002), Backends::refused()),
            (frontend("192.168.0.1", 30_003), backends(&["10.244.3.1:8080"], Reach::Everyone)),
        ]);
        assert_eq!(following, [expected]);
        assert!(following[0].script().contains("10.96.0.2 . tcp . 80 : goto without-endpoint"));
        // It is another cluster's.
        assert!(loaded.are_known_to(&api(&[3, 4])));
        assert!(!loaded.are_known_to(&api(&[4])) && !loaded.are_known_to(&api(&[])));
    }

    #[test]
    fn who_masquerades_everybody_goes_on_to() {
        let loaded = LoadedBridges(vec![bridge(&[
            (frontend("10.96.0.1", 80), backends(&["10.244.0.1:8080"], Reach::Everyone)),
            (frontend("10.96.0.2", 80), backends(&[], Reach::Cluster)),
        ])]);
        let following = loaded.following(&api(&[1, 2]));
        assert!(following[0].frontends.values().all(|b| b.reach == Reach::Everyone));
    }

    #[test]
    fn bridges_are_kept_as_json() {
        let local = Reach::Local { everywhere: Some(["10.244.0.1:80".parse().unwrap()].into()) };
        let ranged = Backends {
            source_ranges: vec!["192.0.2.0/24".parse().unwrap()],
            without: NoEndpoint::Drop,
            ..backends(&[], local)
        };
        let bridges = LoadedBridges(vec![bridge(&[
            (frontend("10.96.0.1", 80), ranged),
            (frontend("10.96.0.2", 80), backends(&["10.244.0.1:1"], Reach::Everyone)),
        ])]);
        let text = serde_json::to_string(&bridges).unwrap();
        assert_eq!(serde_json::from_str::<LoadedBridges>(&text).unwrap(), bridges);
    }

    #[test]
    fn what_a_synced_family_does_not_serve_leaves_the_bridge() {
        let one = ["10.244.0.1:8080"];
        let [kept, scaled, gone] = [1, 2, 3].map(|n| frontend(&format!("10.96.0.{n}"), 80));
        let own = [kept, scaled, gone].map(|f| (f, backends(&one, Reach::Cluster)));
        let loaded = bridge(&own);
        for now in [None, Some(bridge(&[])), Some(bridge(&[(scaled, Backends::refused())]))] {
            assert_eq!(loaded.without_unserved(now.as_ref()), loaded, "not synced yet");
        }
        let now = bridge(&[
            (kept, backends(&["10.244.0.2:8080"], Reach::Cluster)),
            (scaled, Backends::refused()),
        ]);
        assert_eq!(loaded.without_unserved(Some(&now)), bridge(&own[..1]));
    }

    #[test]
    fn what_is_served_on_the_node_is_a_node_port() {
        let everywhere = Some(["10.244.0.2:80".parse().unwrap()].into());
        let local = backends(&["10.244.0.1:80"], Reach::Local { everywhere });
        let served = bridge(&[
            (frontend("10.96.0.1", 80), backends(&["10.244.0.1:80"], Reach::Cluster)),
            (frontend("192.168.0.1", 30_001), local.clone()),
            (frontend("192.168.0.2", 30_001), local),
        ]);
        let of_node = ["192.168.0.1", "192.168.0.2"].map(|text| text.parse().unwrap()).into();
        let services = served.services(&of_node);
        let keys: Vec<String> = services.keys().map(ToString::to_string).collect();
        assert_eq!(keys, ["10.96.0.1:80/tcp", "node port 30001/tcp"]);
        let node_port = services.values().next_back().unwrap();
        assert_eq!((&node_port.node_addresses, node_port.backends.len()), (&of_node, 2));
    }

    #[test]
    fn the_counter_goes_on() {
        let script = bridge(&[]).script_after(super::super::Translated { packets: 7, bytes: 420 });
        assert!(script.contains("counter translated { packets 7 bytes 420 }"), "{script}");
    }
}
