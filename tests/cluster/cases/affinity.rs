//! Session affinity: while nothing but the bridge serves, each client stays with the endpoint of each
//! Service that it had before.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use proxyshift::kube_proxy::bridge::TABLE;
use proxyshift::state::kube_proxy::Mode;

use super::follows::{Moving, without_iptables};
use super::moves::{SERVICES, Site, without_nft};
use super::services::reads_as_the_api_says;
use crate::common::clients::{OWN, at, connect};
use crate::common::tried::tried;
use crate::control_plane::{VERSION, poll};
use crate::machine::AT;
use crate::node::{MANIFEST, manifest};

/// How often each client asks each Service.
const TIMES: usize = 3;

/// How many clients ask: a pod, the node, and one outside, each in both families.
const CLIENTS: usize = 6;

/// The endpoints that each client got, by where it connected to.
type Met = BTreeMap<(IpAddr, SocketAddr), BTreeSet<IpAddr>>;

impl Site {
    /// Lets every client ask every Service, and returns the endpoints that conntrack has of it.
    fn met(&self) -> Met {
        self.seen.run("conntrack -F");
        for (from, is_outside) in
            [(&*self.pods.client, false), (&*self.node.name, false), (OWN, true)]
        {
            at(from, || {
                for (family, service) in
                    [0, 1].into_iter().flat_map(|f| self.services.iter().map(move |s| (f, s)))
                {
                    let [cluster, node] = self.addresses_of(service, family, 0);
                    let to = if is_outside { node } else { cluster };
                    for _ in 0..TIMES {
                        connect(to).unwrap_or_else(|e| panic!("{from} → {to}: {e}"));
                    }
                }
            });
        }
        let mut met = Met::new();
        for family in ["ipv4", "ipv6"] {
            for line in self.seen.run(&format!("conntrack -L -p tcp -f {family}")).lines() {
                let values = |key: &str| -> Vec<&str> {
                    line.split_whitespace().filter_map(|word| word.strip_prefix(key)).collect()
                };
                let address = |text: &str| text.parse::<IpAddr>().expect("an address");
                let [from, endpoint] = values("src=")[..] else { panic!("{line}") };
                let (to, port) = (address(values("dst=")[0]), values("dport=")[0]);
                // Those of kube-proxy and of the kubelet are not translated.
                if address(endpoint) != to {
                    let to = SocketAddr::new(to, port.parse().expect("a port"));
                    met.entry((address(from), to)).or_default().insert(address(endpoint));
                }
            }
        }
        met
    }

    /// Begins to move kube-proxy, which cannot start in its new mode, and fails unless the bridge alone
    /// leads every client to the endpoint that it had. Then lets kube-proxy start. Returns how many
    /// clients have the same endpoint of a Service in the new mode, and of how many.
    fn keeps_clients(&self, from: Mode, to: Mode, broken: &str) -> (usize, usize) {
        self.runs_in(from, broken);
        let before = self.met();
        assert_eq!(before.len(), CLIENTS * SERVICES);
        assert!(before.values().all(|endpoints| endpoints.len() == 1), "{before:#?}");
        // By its address alone, a client would get the same one of all Services.
        let of_pod = before.iter().filter(|((from, _), _)| from.to_string() == "10.244.78.1");
        assert!(of_pod.map(|(_, met)| met).collect::<BTreeSet<_>>().len() > 1, "{before:#?}");
        let moving = Moving::begin(self, to, "5m");
        poll("only the bridge serves", || {
            let rules = self.node.run("iptables-nft-save -t nat; nft list tables");
            let tables: Vec<&str> = rules.lines().collect();
            rules.contains(TABLE)
                && !rules.contains("-j KUBE-SVC-")
                && !tables.contains(&"table ip kube-proxy")
        });
        assert_eq!(self.met(), before, "by the bridge");
        self.node.write(MANIFEST, &manifest(VERSION));
        let said = moving.ends(0);
        let known = format!("session affinity: {CLIENTS} clients stay with their endpoints");
        assert!(said.contains(&known), "{said}");
        reads_as_the_api_says(&self.seen, to);
        self.node.proxyshift().expect(0, "confirm");
        let now = self.met();
        (
            before.iter().filter(|(client, endpoints)| now.get(client) == Some(endpoints)).count(),
            now.len(),
        )
    }
}

#[test]
#[ignore = "of the cluster"]
fn a_client_stays_with_its_endpoint_while_the_bridge_serves() {
    let site = Site::with_affinity(Mode::Iptables);
    for (from, to, broken) in [
        (Mode::Iptables, Mode::Nftables, without_nft()),
        (Mode::Nftables, Mode::Iptables, without_iptables()),
    ] {
        let (same, all) = site.keeps_clients(from, to, &broken);
        println!("{from} to {to}: {same} of {all} clients have the same endpoint in the new mode");
    }
    let what = "session affinity: each client stays with its endpoint while the bridge serves";
    tried(&site.node.asks("/metrics"), AT, what);
}
