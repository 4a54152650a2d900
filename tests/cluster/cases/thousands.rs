//! Moves of a node with thousands of Services, for which kube-proxy is busy for a minute.

use std::time::{Duration, Instant};

use proxyshift::state::kube_proxy::Mode;
use serde_json::{Value, json};

use super::moves::{BACK, FORWARD, Site, short};
use super::services::{Endpoint, READY, with_slices};
use crate::common::clients::OWN;
use crate::common::tried::tried;
use crate::control_plane::Cluster;
use crate::machine::AT_SOAK;
use crate::traffic::pods::SERVERS;
use crate::traffic::{How, Kind};

/// How many Services there are, unless PROXYSHIFT_SERVICES says another number.
const SERVICES: usize = 5000;

/// How many endpoints each of them has.
const ENDPOINTS: u8 = 5;

/// The longest that kube-proxy may take until it has written all of them.
const SYNC: Duration = Duration::from_secs(600);

impl Site {
    /// Makes `count` more Services at a ClusterIP, and waits until kube-proxy has written them in
    /// iptables mode.
    fn offer_many(&self, count: usize) {
        (1..=ENDPOINTS)
            .filter(|last| !SERVERS.contains(last))
            .for_each(|last| self.add_server(last));
        let spec = json!({"ports": [{"name": "http", "port": 80, "targetPort": 8080}],
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"]});
        let endpoints: Vec<Endpoint> =
            (1..=ENDPOINTS).map(|last| Endpoint(last, true, READY)).collect();
        let all = (0..count).flat_map(|number| {
            let name = format!("many-{number}");
            let all =
                with_slices(&self.namespace, &self.node.name, &name, spec.clone(), &endpoints);
            // The slice of the other family is of no use.
            all.into_iter().take(2)
        });
        let items: Vec<Value> = all.collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        Cluster::shared().create(&list);
        let (began, wanted) = (Instant::now(), count * usize::from(ENDPOINTS));
        let count = "iptables-nft-save -t nat | grep -c -- '-j KUBE-SEP-' || true";
        while self.node.run(count).trim().parse::<usize>().expect("a number") < wanted {
            assert!(began.elapsed() < SYNC, "kube-proxy has not written {wanted} endpoints");
            std::thread::sleep(Duration::from_secs(1));
        }
        println!("{wanted} endpoints are written {:.0?} after they were made", began.elapsed());
    }

    /// Traffic by IPv4 alone, of which there is no more than kube-proxy leaves time for.
    fn lean(&self) -> Vec<Kind> {
        let to = |port: usize, place: usize| {
            self.services.iter().map(|s| self.addresses_of(s, 0, port)[place]).collect()
        };
        let kind = |name: &str, from: &str, how, to| Kind {
            name: format!("{name} from {from}"),
            from: from.to_owned(),
            how,
            to,
        };
        vec![
            kind("TCP", &self.pods.client, How::Connect, to(0, 0)),
            kind("UDP", &self.pods.client, How::Query, to(1, 0)),
            kind("a stream", &self.pods.client, How::Stream, to(0, 0)),
            kind("TCP", &self.node.name, How::Connect, to(0, 0)),
            kind("TCP", OWN, How::Connect, to(0, 1)),
            kind("a stream", OWN, How::Stream, to(0, 1)),
        ]
    }
}

#[test]
#[ignore = "of the cluster"]
fn soak_no_connection_is_lost_with_thousands_of_services() {
    let count = std::env::var("PROXYSHIFT_SERVICES")
        .map_or(SERVICES, |number| number.parse().expect("PROXYSHIFT_SERVICES is a number"));
    let mut site = Site::new(Mode::Iptables);
    site.offer_many(count);
    site.instead = site.lean();
    let proxyshift = site.node.proxyshift();
    for (playbook, from, to) in
        [(FORWARD, Mode::Iptables, Mode::Nftables), (BACK, Mode::Nftables, Mode::Iptables)]
    {
        site.node.write("/run/playbook.yaml", &short(playbook));
        let what = format!("{count} Services of {ENDPOINTS} endpoints, {from} to {to}");
        let [served, _] = site.unharmed(&what, || {
            let words = format!("migrate --to {to} --playbook /run/playbook.yaml --yes");
            println!("{}", proxyshift.expect(0, &words).err);
        });
        assert!(served.translated > 0, "nobody needed the bridge");
        assert_eq!(site.node.asks("/proxyMode"), to.to_string());
        proxyshift.expect(0, "confirm");
    }
    let what = format!(
        "{count} Services of {ENDPOINTS} endpoints: from iptables to nftables mode and back, no \
         connection lost"
    );
    tried(&site.node.asks("/metrics"), AT_SOAK, &what);
}
