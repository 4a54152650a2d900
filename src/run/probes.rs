//! Probes of services: does the node still reach them?
//!
//! Probes run before anything is changed. Those that were answered run again after the change. Each
//! probe is a connection or a datagram from this node to an address of its own cluster.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use crate::event::{Outcome, Task};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{Location, ServiceKey, ServicePort, Services};
use crate::run::Context;
use crate::state::NodeState;
use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::Mode;
use crate::state::{Family, links::Link};
use crate::store::run::Probe;

/// How many services are probed besides DNS, the API and a NodePort.
const SAMPLE: usize = 5;

/// How long one try of a probe may take. [`TRIES`] is how many tries there are.
const TIMEOUT: Duration = Duration::from_secs(2);
const TRIES: usize = 3;

/// The labels of the name that a DNS probe asks for. Any response counts as an answer.
const NAME: [&str; 5] = ["kubernetes", "default", "svc", "cluster", "local"];

impl Probe {
    /// Probes the address, up to `TRIES` times until it answers.
    ///
    /// # Errors
    /// The error of the last try.
    pub fn ask(&self) -> io::Result<()> {
        let mut result = Ok(());
        for _ in 0..TRIES {
            result = match self.protocol {
                Protocol::Udp => resolve(self.address),
                _ => TcpStream::connect_timeout(&self.address, TIMEOUT).map(drop),
            };
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// Those of the probes that `services` can answer now, each where they do. What was deleted meanwhile, or
/// has no endpoint any more, answers nobody. A mode may serve NodePorts on fewer addresses of the node
/// than the mode before, which `nftables.node-port-addresses` says before the move.
pub(super) fn where_answered(probes: &[Probe], services: &Services) -> Vec<Probe> {
    let answered = |key: &ServiceKey| services.get(key).filter(|s| !s.backends.is_empty());
    let probed = probes.iter().filter_map(|probe| {
        let (own, mut probe) = (ServiceKey::at(probe.address, probe.protocol), probe.clone());
        if services.contains_key(&own) {
            return answered(&own).map(|_| probe);
        }
        let location = Location::Node(Family::of(probe.address.ip()));
        let listed = &answered(&ServiceKey { location, ..own })?.node_addresses;
        if let Some(other) = listed.first().filter(|_| !listed.contains(&probe.address.ip())) {
            probe.address.set_ip(*other);
        }
        Some(probe)
    });
    probed.collect()
}

/// The probes for a node with these services: its DNS, its API, a sample of the other services, and
/// a NodePort.
pub fn choose(services: &Services, state: &NodeState) -> Vec<Probe> {
    let reachable =
        |service: &ServicePort| !service.backends.is_empty() && service.source_ranges.is_empty();
    let named = |service: &ServicePort, part: &str| {
        service.name.as_deref().is_none_or(|name| name.contains(part))
    };
    let (mut dns, mut api, mut others, mut node_ports) = (vec![], vec![], vec![], vec![]);
    for (key, service) in services.iter().filter(|(_, s)| reachable(s)) {
        let Some(address) = address(key, service, &state.links) else { continue };
        let probe = |kind: &str| {
            let name = service.name.as_ref().map(|n| format!(" ({n})")).unwrap_or_default();
            Probe { what: format!("{kind} {key}{name}"), address, protocol: key.protocol }
        };
        match (key.location, key.protocol) {
            (Location::Address(_), Protocol::Udp) if key.port == 53 && named(service, "dns") => {
                dns.push(probe("DNS at"));
            }
            (Location::Address(_), Protocol::Tcp)
                if service.name.as_deref() == Some("default/kubernetes:https") =>
            {
                api.push(probe("the API at"));
            }
            (Location::Address(_), Protocol::Tcp) => others.push(probe("a connection to")),
            (Location::Node(_), Protocol::Tcp) => node_ports.push(probe("a connection to")),
            _ => {}
        }
    }
    // Every `step`-th service, so that the sample is spread over the whole address range.
    let step = others.len().div_ceil(SAMPLE).max(1);
    let sample = others.into_iter().step_by(step);
    dns.into_iter().take(2).chain(api).chain(sample).chain(node_ports.into_iter().take(1)).collect()
}

/// The address to send a probe to. A NodePort is probed on an address of this node.
fn address(key: &ServiceKey, service: &ServicePort, links: &[Link]) -> Option<SocketAddr> {
    let ip = match key.location {
        Location::Address(ip) => ip,
        Location::Node(family) => {
            let own = links
                .iter()
                .filter(|l| l.name != "lo" && l.kind.as_deref() != Some("dummy"))
                .flat_map(|l| l.addresses.iter().map(ipnet::IpNet::addr))
                .find(|a| a.is_ipv4() == (family == Family::Ipv4) && global(*a));
            service.node_addresses.first().copied().or(own)?
        }
    };
    Some(SocketAddr::new(ip, key.port))
}

fn global(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    }
}

/// Runs all `probes` at the same time. Returns those that were answered, and those that were not,
/// each with the reason.
pub fn ask(probes: Vec<Probe>) -> (Vec<Probe>, Vec<(Probe, io::Error)>) {
    let threads: Vec<_> = probes
        .into_iter()
        .map(|probe| {
            thread::spawn(move || {
                let result = probe.ask();
                (probe, result)
            })
        })
        .collect();
    let (mut passed, mut failed) = (Vec::new(), Vec::new());
    for (probe, result) in threads.into_iter().filter_map(|thread| thread.join().ok()) {
        match result {
            Ok(()) => passed.push(probe),
            Err(e) => failed.push((probe, e)),
        }
    }
    (passed, failed)
}

/// Sends a DNS query (RFC 1035, 4.1). Any response of the server counts, even an error.
fn resolve(server: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(match server {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    })?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut question = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME {
        question.push(u8::try_from(label.len()).unwrap_or(0));
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send(&question)?;
    // The UDP socket is connected to `server`, so it receives from `server` alone.
    socket.recv(&mut [0; 512]).map(drop).map_err(|e| match e.kind() {
        // The error that the kernel gives when the receive timeout has passed.
        io::ErrorKind::WouldBlock => {
            let silent = format!("no answer within {} s", TIMEOUT.as_secs());
            io::Error::new(io::ErrorKind::TimedOut, silent)
        }
        _ => e,
    })
}

/// Probes the services that are served in `mode`, and returns the probes that were answered.
/// Services that do not answer are reported, and are not probed again after the change.
pub(super) fn baseline(context: &Context<'_>, now: &NodeState, mode: Mode) -> Vec<Probe> {
    let task = Task::Probe;
    context.sink.started(&task);
    let (passed, failed) = ask(choose(&mode::of(mode).services(now), now));
    for (probe, e) in &failed {
        let text = format!("{probe}: {e}, before anything was changed; it is not judged further");
        context.sink.warning(text);
    }
    let all = passed.len() + failed.len();
    context.sink.finished(&task, Outcome::Probed { answered: passed.len(), all });
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_sent_where_it_is_answered_now() {
        let node = ServiceKey {
            location: Location::Node(Family::Ipv4),
            port: 30080,
            protocol: Protocol::Tcp,
        };
        let with_endpoint = || {
            let backends = ["10.244.0.9:8080".parse().unwrap()].into();
            ServicePort { backends, ..ServicePort::default() }
        };
        let serving = |addresses: &[&str]| {
            let node_addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            Services::from([(node, ServicePort { node_addresses, ..with_endpoint() })])
        };
        let probed = |to: &str, services: &Services| {
            let (what, address) = (String::new(), to.parse().unwrap());
            let probe = Probe { what, address, protocol: Protocol::Tcp };
            where_answered(&[probe], services).first().map(|probe| probe.address.to_string())
        };
        let at = |address: &str| Some(address.to_owned());
        let primary = serving(&["192.168.0.1"]);
        assert_eq!(probed("10.244.0.1:30080", &primary), at("192.168.0.1:30080"));
        assert_eq!(probed("192.168.0.1:30080", &primary), at("192.168.0.1:30080"));
        let everywhere = serving(&[]);
        assert_eq!(probed("10.244.0.1:30080", &everywhere), at("10.244.0.1:30080"));
        // Deleted meanwhile.
        assert_eq!(probed("10.244.0.1:30081", &primary), None);
        assert_eq!(probed("[fd00::1]:30080", &primary), None);
        let web = ServiceKey::at("10.96.0.10:80".parse().unwrap(), Protocol::Tcp);
        let of_cluster = |service| Services::from([(web, service)]);
        assert_eq!(probed("10.96.0.10:80", &of_cluster(with_endpoint())), at("10.96.0.10:80"));
        // Scaled to 0 meanwhile.
        assert_eq!(probed("10.96.0.10:80", &of_cluster(ServicePort::default())), None);
    }
}
