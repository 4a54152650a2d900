//! Small hosts around the rehearsed node: one behind each docker bridge, one outside. A packet
//! from each of the first must arrive at the last with the node's address.

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
use crate::run::inside::world::{CABLE, Uplink, free_address, ip_batch, uplink};
use crate::state::NodeState;
use crate::state::{Family, RulesetId};

/// The namespace of the host outside.
const OUTSIDE: &str = "ps-outside";
/// Where that host listens.
const PORT: u16 = 9999;
/// How long a packet may take, bridges learning and neighbours resolving included.
const DEADLINE: Duration = Duration::from_secs(10);

/// A host behind a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Inner {
    namespace: String,
    bridge: String,
    address: Ipv4Addr,
    /// The address with which its packets must arrive.
    arrives_as: Ipv4Addr,
    /// The rule that sees to it.
    rule: String,
}

/// The hosts that hang on the rehearsed node.
#[derive(Debug)]
pub(super) struct Hosts {
    outside: Ipv4Addr,
    inner: Vec<Inner>,
}

/// A bridge network whose packets leave with another address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Masqueraded {
    bridge: String,
    network: Ipv4Net,
    gateway: Ipv4Addr,
    /// The address of an SNAT rule; none for MASQUERADE.
    source: Option<Ipv4Addr>,
    /// The rule's text.
    rule: String,
}

impl Hosts {
    /// Hangs the hosts on the node; none if it has no masqueraded bridge, or no way out.
    pub(super) fn hang(state: &NodeState, tools: &Tools) -> Result<Option<Hosts>> {
        let bridges = masqueraded(state);
        let Some(up) = uplink(state).filter(|_| !bridges.is_empty()) else { return Ok(None) };
        let taken: Vec<IpNet> = state.links.iter().flat_map(|l| &l.addresses).copied().collect();
        let Some(outside) = free_address(up.address, &taken) else { return Ok(None) };
        let mut batch = outside_commands(&up, outside);
        let mut inner = Vec::new();
        for (i, bridge) in bridges.into_iter().enumerate() {
            let Some(address) = free_address(bridge.network, &taken) else { continue };
            let namespace = format!("ps-in{i}");
            batch += &inner_commands(&namespace, i, &bridge, address);
            let arrives_as = bridge.source.unwrap_or(up.address.addr());
            let (rule, bridge) = (bridge.rule, bridge.bridge);
            inner.push(Inner { namespace, bridge, address, arrives_as, rule });
        }
        ip_batch(&batch, tools)?;
        for (namespace, setup) in setup_in(&inner, outside, &up, state) {
            in_namespace(&namespace, || run_in(&setup, tools))??;
        }
        Ok(Some(Hosts { outside, inner }))
    }

    /// Sends a packet from each host; returns what arrived, in words.
    ///
    /// # Errors
    /// [`Kind::Rehearsal`] naming the bridge, when a packet does not arrive or has the wrong source.
    pub(super) fn probe(&self) -> Result<Vec<String>> {
        self.inner.iter().map(|host| self.probe_from(host)).collect()
    }

    fn probe_from(&self, host: &Inner) -> Result<String> {
        let object = format!("{} ({})", host.bridge, host.address);
        let failed = |cause: String| Error::new(Kind::Rehearsal, object.clone(), cause);
        let listener = in_namespace(OUTSIDE, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)))?
            .map_err(|e| failed(e.to_string()))?;
        let sender = in_namespace(&host.namespace, || UdpSocket::bind((host.address, 0)))?
            .map_err(|e| failed(e.to_string()))?;
        let source = exchange(&sender, &listener, SocketAddr::from((self.outside, PORT)))
            .map_err(|e| failed(format!("no packet arrived outside: {e}")))?;
        if source != IpAddr::V4(host.arrives_as) {
            let want = host.arrives_as;
            return Err(failed(format!("its packet arrived outside from {source}, not {want}")));
        }
        let rule = host.rule.trim_start_matches("-A POSTROUTING ");
        Ok(format!("a packet from {} {} arrives as {source} ({rule})", host.bridge, host.address))
    }
}

/// Sends until something of ours arrives; returns where it came from.
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

/// The bridge networks of the node whose packets the nat rules send out under another address.
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

fn outside_commands(up: &Uplink, _outside: Ipv4Addr) -> String {
    format!("netns add {OUTSIDE}\nlink set {CABLE} netns {OUTSIDE}\nlink set {} up\n", up.name)
}

fn inner_commands(namespace: &str, i: usize, bridge: &Masqueraded, _address: Ipv4Addr) -> String {
    format!(
        "netns add {namespace}\nlink add ps-v{i} type veth peer name ps-p{i}\n\
         link set ps-v{i} master {0}\nlink set ps-v{i} up\nlink set {0} up\n\
         link set ps-p{i} netns {namespace}\n",
        bridge.bridge
    )
}

/// The commands to run inside each host's namespace.
fn setup_in(
    inner: &[Inner],
    outside: Ipv4Addr,
    up: &Uplink,
    state: &NodeState,
) -> Vec<(String, String)> {
    let bits = up.address.prefix_len();
    let mut all = vec![(
        OUTSIDE.to_owned(),
        format!("link set lo up\naddr add {outside}/{bits} dev {CABLE}\nlink set {CABLE} up\n"),
    )];
    for (host, bridge) in inner.iter().zip(masqueraded(state)) {
        let (i, bits) = (host.namespace.trim_start_matches("ps-in"), bridge.network.prefix_len());
        let (address, gateway) = (host.address, bridge.gateway);
        all.push((
            host.namespace.clone(),
            format!(
                "link set lo up\naddr add {address}/{bits} dev ps-p{i}\nlink set ps-p{i} up\n\
                 route add default via {gateway}\n"
            ),
        ));
    }
    all
}

fn run_in(commands: &str, tools: &Tools) -> Result<()> {
    ip_batch(commands, tools)
}

/// Runs `work` on a thread of its own inside a named network namespace. Sockets made there stay
/// there; so do programs started there.
fn in_namespace<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
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
