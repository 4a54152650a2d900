//! Hosts around the rehearsed node: one behind each docker bridge, and one outside. A packet from a
//! host behind a bridge must arrive outside with the source address that the nat rules give it.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv4Net};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::{Error, Kind, Result};
use crate::node::tools::Tools;
use crate::run::sandbox::links::CABLE;
use crate::run::sandbox::links::free_address;
use crate::run::sandbox::links::ip_batch;
use crate::run::sandbox::links::uplink;
use crate::state::NodeState;
use crate::state::links::is_plain;
use crate::state::{Family, RulesetId};

/// The name of the network namespace of the host outside.
const OUTSIDE: &str = "ps-outside";
/// The UDP port on which the host outside listens.
const PORT: u16 = 9999;
/// How long a packet may take. Bridges must learn and neighbours must be resolved first.
const DEADLINE: Duration = Duration::from_secs(5);

/// A host behind a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    namespace: String,
    address: Ipv4Addr,
    /// The source address that its packets must have when they arrive outside.
    arrives_as: Ipv4Addr,
    /// The bridge network of the host, and the rule that masquerades the network.
    network: Masqueraded,
}

/// The hosts that are attached to the rehearsed node.
#[derive(Debug)]
pub(super) struct Hosts {
    outside: Ipv4Addr,
    inner: Vec<Inner>,
}

/// A bridge network whose hosts send packets that leave the node with another source address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Masqueraded {
    bridge: String,
    network: Ipv4Net,
    gateway: Ipv4Addr,
    /// The address that an SNAT rule names; none for MASQUERADE, which takes the address of the
    /// uplink.
    source: Option<Ipv4Addr>,
    /// The text of the nat rule.
    rule: String,
}

impl Hosts {
    /// Attaches the hosts to the node. None if the node has no masqueraded bridge, or no uplink.
    pub(super) fn attach(state: &NodeState, tools: &Tools) -> Result<Option<Hosts>> {
        let mut bridges = masqueraded(state);
        bridges.retain(|network| is_plain(&network.bridge));
        let Some(up) = uplink(state).filter(|_| !bridges.is_empty()) else { return Ok(None) };
        let taken: Vec<IpNet> = state.links.iter().flat_map(|l| &l.addresses).copied().collect();
        let Some(outside) = free_address(up.address, &taken) else { return Ok(None) };
        let mut batch = format!(
            "netns add {OUTSIDE}\nlink set {CABLE} netns {OUTSIDE}\nlink set {} up\n",
            up.name
        );
        let mut inner = Vec::new();
        for (i, network) in bridges.into_iter().enumerate() {
            let Some(address) = free_address(network.network, &taken) else { continue };
            let namespace = format!("ps-in{i}");
            batch += &format!(
                "netns add {namespace}\nlink add ps-v{i} type veth peer name ps-p{i}\n\
                 link set ps-v{i} master {0}\nlink set ps-v{i} up\nlink set {0} up\n\
                 link set ps-p{i} netns {namespace}\n",
                network.bridge
            );
            let arrives_as = network.source.unwrap_or(up.address.addr());
            inner.push((format!("ps-p{i}"), Inner { namespace, address, arrives_as, network }));
        }
        ip_batch(&batch, tools)?;
        let outer = format!(
            "link set lo up\naddr add {outside}/{} dev {CABLE}\nlink set {CABLE} up\n",
            up.address.prefix_len()
        );
        in_namespace(OUTSIDE, || ip_batch(&outer, tools))??;
        for (link, host) in &inner {
            let commands = format!(
                "link set lo up\naddr add {}/{} dev {link}\nlink set {link} up\n\
                 route add default via {}\n",
                host.address,
                host.network.network.prefix_len(),
                host.network.gateway
            );
            in_namespace(&host.namespace, || ip_batch(&commands, tools))??;
        }
        Ok(Some(Hosts { outside, inner: inner.into_iter().map(|(_, host)| host).collect() }))
    }

    /// Sends a packet from each host behind a bridge. Returns the paths on which the packets
    /// arrived.
    ///
    /// # Errors
    /// [`Kind::Rehearsal`] naming the bridge, when a packet does not arrive or has the wrong source
    /// address.
    pub(super) fn probe(&self) -> Result<Vec<String>> {
        self.inner.iter().map(|host| self.probe_from(host)).collect()
    }

    /// Probes before anything is changed. A path that fails now is not probed again. Returns the
    /// paths that work, and the failures.
    pub(super) fn baseline(&mut self) -> (Vec<String>, Vec<Error>) {
        let (mut passed, mut failed) = (Vec::new(), Vec::new());
        for host in std::mem::take(&mut self.inner) {
            match self.probe_from(&host) {
                Ok(proof) => {
                    passed.push(proof);
                    self.inner.push(host);
                }
                Err(e) => failed.push(e),
            }
        }
        (passed, failed)
    }

    fn probe_from(&self, host: &Inner) -> Result<String> {
        let object = format!("{} ({})", host.network.bridge, host.address);
        let failed = |cause: String| Error::new(Kind::Rehearsal, object.clone(), cause);
        let listener = in_namespace(OUTSIDE, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
            .map_err(|e| failed(e.to_string()))?;
        let sender = in_namespace(&host.namespace, || UdpSocket::bind((host.address, 0)))?
            .map_err(|e| failed(e.to_string()))?;
        let source = exchange(&sender, &listener, SocketAddr::from((self.outside, PORT)))
            .map_err(|_| failed(format!("no packet arrived outside within {DEADLINE:?}")))?;
        if source != IpAddr::V4(host.arrives_as) {
            let want = host.arrives_as;
            return Err(failed(format!("its packet arrived outside from {source}, not {want}")));
        }
        let rule = host.network.rule.trim_start_matches("-A POSTROUTING ");
        let bridge = &host.network.bridge;
        Ok(format!("a packet from {bridge} {} arrives as {source} ({rule})", host.address))
    }
}

/// Sends the same packet until it arrives at `listener`. Returns the source address that it arrives
/// with.
fn exchange(sender: &UdpSocket, listener: &UdpSocket, to: SocketAddr) -> io::Result<IpAddr> {
    let word = crate::clock::random().to_be_bytes();
    listener.set_read_timeout(Some(Duration::from_millis(200)))?;
    let until = Instant::now() + DEADLINE;
    let mut buffer = [0; 64];
    loop {
        sender.send_to(&word, to)?;
        match listener.recv_from(&mut buffer) {
            Ok((n, from)) if buffer[..n] == word => return Ok(from.ip()),
            Ok(_) => {}
            Err(e) if Instant::now() > until => return Err(e),
            Err(_) => {}
        }
    }
}

/// The bridge networks from which packets get another source address by the nat rules.
fn masqueraded(state: &NodeState) -> Vec<Masqueraded> {
    let mut found: Vec<Masqueraded> = Vec::new();
    for id in RulesetId::ALL.into_iter().filter(|id| id.family == Family::Ipv4) {
        let Some(ruleset) = state.rulesets.get(&id) else { continue };
        let chain = ruleset.table("nat").and_then(|t| t.chain("POSTROUTING"));
        for rule in chain.into_iter().flat_map(|c| &c.rules) {
            let words = ruleset.words(rule);
            let source = match rule.target.as_deref() {
                Some("MASQUERADE") => None,
                Some("SNAT") => match words.value("--to-source").map(|(_, to)| to.parse()) {
                    Some(Ok(address)) => Some(address),
                    _ => continue,
                },
                _ => continue,
            };
            let (Some((false, net)), Some((true, bridge))) = (words.value("-s"), words.value("-o"))
            else {
                continue;
            };
            let Ok(network) = net.parse::<Ipv4Net>() else { continue };
            let gateway = bridge_address(state, &bridge, network);
            let Some(gateway) = gateway else { continue };
            if found.iter().all(|f| f.bridge != *bridge) {
                let (bridge, rule) = (bridge.into_owned(), ruleset.rule_text(rule).to_owned());
                found.push(Masqueraded { bridge, network, gateway, source, rule });
            }
        }
    }
    found
}

fn bridge_address(state: &NodeState, bridge: &str, network: Ipv4Net) -> Option<Ipv4Addr> {
    let link =
        state.links.iter().find(|l| l.name == bridge && l.kind.as_deref() == Some("bridge"))?;
    link.addresses.iter().find_map(|a| match a {
        IpNet::V4(a) if network.contains(&a.addr()) => Some(a.addr()),
        _ => None,
    })
}

/// Runs `work` on a thread inside a named network namespace. Sockets and programs that `work`
/// creates stay in that namespace.
pub(super) fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let path = PathBuf::from("/run/netns").join(name);
    let file = File::open(&path).map_err(|e| Error::io(&path, &e))?;
    let enter = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| Error::io(&path, &e.into()))?;
        Ok(work())
    };
    thread::scope(|scope| scope.spawn(enter).join())
        .unwrap_or_else(|_| Err(Error::new(Kind::Unexpected, name, "the thread inside it died")))
}
