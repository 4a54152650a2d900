//! A real server whose pod is gone, while earlier clients are still sent to it.

use std::net::UdpSocket;
use std::time::Duration;

use super::{removals, servers, succeeds};
use crate::cluster::Cluster;
use crate::common::node::Proxyshift;
use crate::common::run;
use crate::machine::inside;
use crate::network::at;

const DNS: &str = "10.96.0.10:53";

/// Sends a query from a socket that may have been used before. Returns the name of the server that
/// answers.
fn query(socket: &UdpSocket) -> std::io::Result<String> {
    socket.send(b"who")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    let text = String::from_utf8_lossy(&buffer[..length]);
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

#[test]
#[ignore = "in the machine"]
fn soak_a_black_hole_goes_when_the_operator_asks() {
    if !inside("cases::black_holes::soak_a_black_hole_goes_when_the_operator_asks") {
        return;
    }
    let mut cluster = Cluster::new("nft");
    let proxyshift = Proxyshift::new("store");
    cluster.kube_proxy("ipvs");
    cluster.serves();
    // This client never pauses, and keeps its source port. When the pod that answers it ends, an
    // older kube-proxy only stops sending other clients to that pod.
    let client = at("pod", || UdpSocket::bind("0.0.0.0:0")).expect("a port");
    client.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
    client.connect(DNS).expect("an address");
    let server = query(&client).expect("an answer");
    let (_, address) = *crate::network::BACKENDS.iter().find(|(n, _)| *n == server).expect("known");
    let real = format!("{address}:8053");
    run(&format!("ip link set v-{server} down"));
    run(&format!("ipvsadm -e -u {DNS} -r {real} -m -w 0"));
    assert!(query(&client).is_err(), "nobody is there");
    assert!(removals(&proxyshift).is_empty(), "unless asked for, kube-proxy's own stays");

    let before = servers();
    let ended = succeeds(&proxyshift, "cleanup --owner kube-proxy --black-holes --yes");
    ended.reports(&[DNS, &real]);
    let now = servers();
    let gone: Vec<_> = before.difference(&now).collect();
    assert_eq!(gone, [&format!("-a -u {DNS} -r {real} -m -w 0")]);
    assert_eq!(now.difference(&before).count(), 0);
    assert_ne!(query(&client).expect("another one answers"), server);

    succeeds(&proxyshift, "rollback --yes");
    assert_eq!(servers(), before, "as it was");
}
