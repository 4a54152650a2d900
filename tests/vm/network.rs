//! A node with pods, a container and a host outside: network namespaces with real servers in them.
//! The test's own namespace is the node.
//!
//! ```text
//! web-1 10.244.0.11 ┐
//! web-2 10.244.0.12 ├ cni0 10.244.0.1 ┐
//! pod   10.244.0.20 ┘                 ├ node ─ eth0 192.168.100.1 ─ outside 192.168.100.2
//! box   172.17.0.2 ── docker0 172.17.0.1 ┘                                  203.0.113.2
//! ```

use std::io::Result;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::OnceLock;

use crate::common::clients::{self, OWN};
pub use crate::common::clients::{Answer, at};
use crate::common::{run, run_with};

/// In place of a namespace's name: the node itself.
pub const NODE: &str = OWN;

/// The pods that are endpoints, each with its name and address.
pub const BACKENDS: [(&str, &str); 2] = [("web-1", "10.244.0.11"), ("web-2", "10.244.0.12")];

/// Set if this case uses IPv6. It can be static, because each case has a process of its own.
static IPV6: OnceLock<()> = OnceLock::new();

/// Makes this case use IPv6 addresses from now on.
pub fn use_ipv6() {
    IPV6.set(()).expect("said once");
}

/// Whether this case uses IPv6.
pub fn is_ipv6() -> bool {
    IPV6.get().is_some()
}

/// Translates the addresses in a text into the address family of the case: in IPv6, 10.96.0.10:53
/// becomes [fd00::10:96:0:10]:53, and 10.244.0.0/16 becomes fd00::10:244:0:0/96. Loopback addresses
/// are kept.
pub fn of_family(text: &str) -> String {
    if !is_ipv6() {
        return text.to_owned();
    }
    let pattern = r"\b(\d+)\.(\d+)\.(\d+)\.(\d+)(?:/(\d+)|:(\d+))?\b";
    let address = regex::Regex::new(pattern).expect("a pattern");
    let translated = address.replace_all(text, |found: &regex::Captures<'_>| {
        let ip = format!("fd00::{}:{}:{}:{}", &found[1], &found[2], &found[3], &found[4]);
        match (found.get(5), found.get(6)) {
            _ if &found[1] == "127" => found[0].to_owned(),
            (Some(bits), _) => {
                format!("{ip}/{}", 64 + bits.as_str().parse::<u32>().expect("a length") * 2)
            }
            (_, Some(port)) => format!("[{ip}]:{}", port.as_str()),
            _ => ip,
        }
    });
    translated.into_owned()
}

/// Runs a batch of `ip` commands, with their addresses in the family of the case.
fn ip(arguments: &[&str], batch: &str) {
    let mut batch = of_family(batch);
    if is_ipv6() {
        let line = |l: &str| match l.starts_with("addr add ") {
            // Duplicate address detection is off, because addresses under detection cannot be used
            // at once.
            true => format!("{l} nodad\n"),
            false => format!("{l}\n"),
        };
        batch = batch.lines().map(line).collect();
    }
    run_with(&batch, &[&["ip"], arguments, &["-batch", "-"]].concat());
}

/// Creates the whole network, and docker's masquerade rule in `backend`.
pub fn make(backend: &str) {
    ip(
        &[],
        "link set lo up\n\
         link add cni0 type bridge\n\
         addr add 10.244.0.1/24 dev cni0\n\
         link set cni0 up\n\
         link add docker0 type bridge\n\
         addr add 172.17.0.1/16 dev docker0\n\
         link set docker0 up\n\
         netns add outside\n\
         link add eth0 type veth peer name eth0 netns outside\n\
         addr add 192.168.100.1/24 dev eth0\n\
         link set eth0 up\n\
         route add default via 192.168.100.2\n",
    );
    within(
        "outside",
        "addr add 192.168.100.2/24 dev eth0\n\
         addr add 203.0.113.2/32 dev lo\n\
         link set eth0 up\n\
         route add default via 192.168.100.1\n",
    );
    for (pod, address) in BACKENDS.into_iter().chain([("pod", "10.244.0.20")]) {
        behind("cni0", pod, &format!("{address}/24"), "10.244.0.1");
    }
    behind("docker0", "box", "172.17.0.2/16", "172.17.0.1");
    run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let masquerade = of_family("-s 172.17.0.0/16 ! -o docker0 -j MASQUERADE");
    run(&format!("{}-{backend} -t nat -A POSTROUTING {masquerade}", iptables()));
    for (pod, _) in BACKENDS.into_iter().chain([("outside", "")]) {
        clients::serve(pod, any());
    }
}

/// The name of the iptables program for the family of the case.
pub fn iptables() -> &'static str {
    if is_ipv6() { "ip6tables" } else { "iptables" }
}

fn behind(bridge: &str, name: &str, address: &str, gateway: &str) {
    let batch = format!(
        "netns add {name}\n\
         link add v-{name} type veth peer name eth0 netns {name}\n\
         link set v-{name} master {bridge}\n\
         link set v-{name} up\n"
    );
    ip(&[], &batch);
    within(
        name,
        &format!(
            "addr add {address} dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
        ),
    );
}

fn within(namespace: &str, batch: &str) {
    let batch = format!("link set lo up\n{batch}");
    ip(&["-n", namespace], &batch);
}

/// The unspecified address, which stands for every address of the namespace.
pub fn any() -> IpAddr {
    clients::any(is_ipv6())
}

/// Opens a TCP connection from a namespace to `to`. Returns what the server answers.
pub fn tcp(namespace: &str, to: &str) -> Result<Answer> {
    stream(namespace, to).map(|(answer, _)| answer)
}

/// Opens a TCP connection from a namespace to `to`. Returns what the server answers, and the open
/// connection.
pub fn stream(namespace: &str, to: &str) -> Result<(Answer, TcpStream)> {
    at(namespace, || connect(to))
}

/// Opens a TCP connection from the current namespace. Returns what the server answers, and the
/// connection.
pub fn connect(to: &str) -> Result<(Answer, TcpStream)> {
    clients::connect(socket_address(to))
}

/// Sends a UDP query from a namespace, from a new source port.
pub fn udp(namespace: &str, to: &str) -> Result<Answer> {
    at(namespace, || query(to))
}

/// Sends a UDP query from the current namespace, from a new source port.
pub fn query(to: &str) -> Result<Answer> {
    clients::query(socket_address(to))
}

/// An address with a port, in the family of the case.
pub fn socket_address(to: &str) -> SocketAddr {
    of_family(to).parse().expect(to)
}
