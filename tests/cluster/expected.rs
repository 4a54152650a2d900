//! What kube-proxy must serve on a node, of the Services and EndpointSlices that the API has.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ipnet::IpNet;
use proxyshift::kube_proxy::reach::{NoEndpoint, Reach};
use proxyshift::kube_proxy::services::{Location, ServiceKey, ServicePort, Services};
use proxyshift::state::ipvs::Protocol;
use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::{Family, Files, NodeState};
use serde_json::Value;

use crate::common::{run, run_with};
use crate::control_plane::{CEILING, Cluster};

/// A node as its kube-proxy sees it.
pub struct Seen {
    pub name: String,
    /// The node's addresses in nftables mode, and in the others, on which NodePorts answer; none if
    /// they answer on all.
    pub nftables: BTreeSet<IpAddr>,
    pub others: BTreeSet<IpAddr>,
    /// Whether everybody is masqueraded who connects to a ClusterIP.
    pub masquerades_all: bool,
}

impl Seen {
    /// A node with these addresses, whose kube-proxy has the default `nodePortAddresses`.
    pub fn of(name: &str, addresses: &[String; 2]) -> Seen {
        let nftables = addresses.iter().map(|a| a.parse().expect("an address")).collect();
        let others = BTreeSet::new();
        Seen { name: name.to_owned(), nftables, others, masquerades_all: false }
    }

    /// What a command line prints in the node's network namespace. It must succeed.
    pub fn run(&self, command: &str) -> String {
        run(&format!("ip netns exec {} {command}", self.name))
    }

    /// The rules that the node has, read again while that fails: beside a kube-proxy that makes its
    /// chains, iptables-nft-save lists a chain twice.
    pub fn state(&self) -> NodeState {
        let until = Instant::now() + CEILING;
        loop {
            match NodeState::parse(self.files()) {
                Ok(state) => return state,
                Err(e) => assert!(Instant::now() < until, "{e}"),
            }
        }
    }

    fn files(&self) -> Files {
        let mut files = Files::new();
        // A table may go while kube-proxy changes its mode.
        let script = "for family in ip ip6; do
            nft -j list table $family kube-proxy 2>/dev/null || true
        done";
        let native = run_with(script, &["ip", "netns", "exec", &self.name, "sh", "-e"]);
        for (name, text) in [
            ("nft.json", native),
            ("iptables-nft.save", self.run("iptables-nft-save")),
            ("ip6tables-nft.save", self.run("ip6tables-nft-save")),
            ("iptables-legacy.save", self.run("iptables-legacy-save")),
            ("ip6tables-legacy.save", self.run("ip6tables-legacy-save")),
        ] {
            if !text.is_empty() {
                files.insert(name.into(), text.into());
            }
        }
        files
    }
}

fn items(what: &str) -> Vec<Value> {
    let text = Cluster::shared().kubectl(&format!("get {what} -A -o json"));
    let mut list: Value = serde_json::from_str(&text).expect("JSON");
    match list["items"].take() {
        Value::Array(items) => items,
        other => panic!("no items: {other}"),
    }
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv6() { Family::Ipv6 } else { Family::Ipv4 }
}

/// An endpoint of a port, with what its slice says of it.
#[derive(Clone, Copy)]
struct Endpoint {
    at: SocketAddr,
    local: bool,
    ready: bool,
    ends: bool,
}

/// The endpoints of a port of a Service in one family, ready or not.
fn endpoints(
    slices: &[Value],
    service: &Value,
    port: &Value,
    family: Family,
    node: &str,
) -> Vec<Endpoint> {
    let wanted = match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    };
    let own = slices.iter().filter(|slice| {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] == service["metadata"]["name"]
            && slice["metadata"]["namespace"] == service["metadata"]["namespace"]
            && slice["addressType"] == wanted
    });
    let mut found = Vec::new();
    for slice in own {
        let named = |p: &&Value| {
            p["name"].as_str().unwrap_or_default() == port["name"].as_str().unwrap_or_default()
        };
        let Some(target) = slice["ports"].as_array().into_iter().flatten().find(named) else {
            continue;
        };
        let number = u16::try_from(target["port"].as_u64().expect("a port")).expect("a port");
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let is = |condition: &str, otherwise| {
                endpoint["conditions"][condition].as_bool().unwrap_or(otherwise)
            };
            let address: IpAddr =
                texts(&endpoint["addresses"]).next().expect("one").parse().expect("IP");
            found.push(Endpoint {
                at: SocketAddr::new(address, number),
                local: endpoint["nodeName"] == node,
                ready: is("ready", true),
                ends: is("serving", true) && is("terminating", false),
            });
        }
    }
    found
}

/// The endpoints that get connections: the ready ones, or, if there are none, those that still serve
/// while they end.
fn chosen(all: impl Iterator<Item = Endpoint> + Clone) -> BTreeSet<SocketAddr> {
    let of = |choose: fn(&Endpoint) -> bool| -> BTreeSet<SocketAddr> {
        all.clone().filter(choose).map(|e| e.at).collect()
    };
    let ready = of(|e| e.ready);
    if ready.is_empty() { of(|e| e.ends) } else { ready }
}

/// What the kube-proxy of a node must serve in a mode.
pub fn expected(node: &Seen, mode: Mode) -> Services {
    let (services, slices) = (items("services"), items("endpointslices"));
    let mut found = Services::new();
    for service in &services {
        let spec = &service["spec"];
        if spec["type"] == "ExternalName" || spec["clusterIP"] == "None" {
            continue;
        }
        for port in spec["ports"].as_array().expect("ports") {
            for cluster_ip in texts(&spec["clusterIPs"]) {
                let cluster_ip: IpAddr = cluster_ip.parse().expect("an address");
                let all = endpoints(&slices, service, port, family_of(cluster_ip), &node.name);
                of_port(service, port, cluster_ip, &all, node, mode, &mut found);
            }
        }
    }
    found
}

/// Adds what one port of a Service is served at in one family.
fn of_port(
    service: &Value,
    port: &Value,
    cluster_ip: IpAddr,
    all: &[Endpoint],
    node: &Seen,
    mode: Mode,
    found: &mut Services,
) {
    let (spec, family) = (&service["spec"], family_of(cluster_ip));
    let by = |policy: &str| {
        let local = spec[policy] == "Local";
        chosen(all.iter().copied().filter(move |e| !local || e.local))
    };
    let served = by("internalTrafficPolicy");
    let outside = by("externalTrafficPolicy");
    let everywhere = chosen(all.iter().copied());
    let is_served = !everywhere.is_empty();
    let reach = match (is_served, spec["externalTrafficPolicy"] == "Local") {
        (false, _) => Reach::Cluster,
        (true, false) => Reach::Everyone,
        (true, true) => Reach::Local { everywhere: Some(everywhere) },
    };
    let seconds = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
    let name = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let of_port = name(&port["name"]);
    let colon = if of_port.is_empty() { "" } else { ":" };
    let metadata = &service["metadata"];
    let whole =
        format!("{}/{}{colon}{of_port}", name(&metadata["namespace"]), name(&metadata["name"]));
    let number = |field: &str| port[field].as_u64().map(|n| u16::try_from(n).expect("a port"));
    let protocol = match port["protocol"].as_str() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    };
    // Of what has endpoints, but none on this node that the policy demands, nothing is heard.
    let without = |backends: &BTreeSet<SocketAddr>| match backends.is_empty() && is_served {
        true => NoEndpoint::Drop,
        false => NoEndpoint::Reject,
    };
    let serves = |backends: &BTreeSet<SocketAddr>| ServicePort {
        without: without(backends),
        name: Some(whole.clone()),
        affinity: seconds
            .filter(|_| !backends.is_empty())
            .map(|s| u32::try_from(s).expect("seconds")),
        backends: backends.clone(),
        ..ServicePort::default()
    };
    let at = |address: IpAddr| {
        ServiceKey::at(SocketAddr::new(address, number("port").expect("a port")), protocol)
    };
    let masqueraded = is_served && node.masquerades_all && !served.is_empty();
    let inside = if masqueraded { Reach::Everyone } else { Reach::Cluster };
    found.insert(at(cluster_ip), ServicePort { reach: inside, ..serves(&served) });
    let serves_outside = || ServicePort { reach: reach.clone(), ..serves(&outside) };
    let of_family = |text: &&str| text.contains(':') == (family == Family::Ipv6);
    for external in texts(&spec["externalIPs"]).filter(of_family) {
        found.insert(at(external.parse().expect("an address")), serves_outside());
    }
    let ranges = texts(&spec["loadBalancerSourceRanges"]).filter(of_family);
    let ranges: BTreeSet<IpNet> = ranges.map(|range| range.parse().expect("a network")).collect();
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
    for balanced in ingress.filter_map(|i| i["ip"].as_str()).filter(of_family) {
        // Without an endpoint only nftables mode has rules for the ranges.
        let has_ranges = is_served || mode == Mode::Nftables;
        let source_ranges = if has_ranges { ranges.clone() } else { BTreeSet::new() };
        let served = ServicePort { source_ranges, ..serves_outside() };
        found.insert(at(balanced.parse().expect("an address")), served);
    }
    if let Some(port) = number("nodePort") {
        let of_mode = if mode == Mode::Nftables { &node.nftables } else { &node.others };
        let addresses = of_mode.iter().filter(|a| family_of(**a) == family).copied().collect();
        let key = ServiceKey { location: Location::Node(family), port, protocol };
        found.insert(key, ServicePort { node_addresses: addresses, ..serves_outside() });
    }
}
