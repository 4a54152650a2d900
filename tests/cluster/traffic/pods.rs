//! Pods of a node: a client, and servers at three addresses that are endpoints of Services.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use crate::common::clients::{at, connect, serve};
use crate::common::{poll, run, run_with};

/// The last parts of the servers' addresses, which begin as those of the other endpoints of the cases
/// do.
pub const SERVERS: [u8; 3] = [1, 2, 3];

/// The pods. Their namespaces go when this value is dropped.
pub struct Pods {
    /// The namespace of the servers.
    pub servers: String,
    /// The namespace of the client.
    pub client: String,
}

impl Pods {
    /// Makes the pods of a node, by the name of its namespace.
    pub fn of(node: &str) -> Pods {
        let pods = Pods { servers: format!("{node}-web"), client: format!("{node}-pod") };
        // A server that answers UDP at several addresses would answer from another one.
        let servers = plug(node, "to-web", &pods.servers, 77, &SERVERS);
        servers.iter().for_each(|address| serve(&pods.servers, *address));
        plug(node, "to-pod", &pods.client, 78, &[1]);
        // The first packet to a neighbour may be lost on a new link.
        for from in [node, &pods.client] {
            at(from, || servers.iter().for_each(reach));
        }
        pods
    }
}

/// Makes a pod's namespace, and returns its addresses: in the network `third` of each family, with these
/// last parts. It is reached from the node by a link of its own: what comes back passes through the
/// node.
fn plug(node: &str, link: &str, pod: &str, third: u8, last: &[u8]) -> Vec<IpAddr> {
    let (ipv4, ipv6) = (format!("10.244.{third}."), format!("fd00:244:0:{third}::"));
    run(&format!("ip netns add {pod}"));
    let batch = format!(
        "link add {link} type veth peer name eth0 netns {pod}\n\
         addr add {ipv4}254/24 dev {link}\n\
         addr add {ipv6}fe/64 dev {link} nodad\n\
         link set {link} up\n"
    );
    run_with(&batch, &["ip", "-n", node, "-batch", "-"]);
    let own = last.iter().flat_map(|last| [format!("{ipv4}{last}"), format!("{ipv6}{last}")]);
    let own: Vec<IpAddr> = own.map(|text| text.parse().expect("an address")).collect();
    let add = |address: &IpAddr| {
        let rest = if address.is_ipv6() { "/64 dev eth0 nodad" } else { "/24 dev eth0" };
        format!("addr add {address}{rest}\n")
    };
    let batch = format!(
        "link set lo up\n{}link set eth0 up\n\
         route add default via {ipv4}254\nroute add default via {ipv6}fe\n",
        own.iter().map(add).collect::<String>()
    );
    run_with(&batch, &["ip", "-n", pod, "-batch", "-"]);
    own
}

/// Waits until a server answers.
fn reach(server: &IpAddr) {
    poll(&format!("{server} answers"), || connect(SocketAddr::new(*server, 8080)).is_ok());
}

impl Drop for Pods {
    fn drop(&mut self) {
        for pod in [&self.servers, &self.client] {
            let _ = Command::new("ip").args(["netns", "del", pod]).status();
        }
    }
}
