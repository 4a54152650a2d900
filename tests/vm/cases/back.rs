//! ipvs → iptables: virtual servers, sets and kube-ipvs0 are taken away, and put back.

use super::{servers, sets};
use crate::cluster::{Cluster, FOREIGN};
use crate::common::node::{Proxyshift, assert_same};
use crate::common::run;
use crate::machine::inside;
use crate::traffic::Traffic;

#[test]
#[ignore = "in the machine"]
fn what_ipvs_mode_left_goes_and_comes_back() {
    if !inside("cases::back::what_ipvs_mode_left_goes_and_comes_back") {
        return;
    }
    let mut cluster = Cluster::new("nft");
    cluster.foreign_server();
    cluster.kube_proxy("ipvs");
    cluster.serves();
    cluster.kube_proxy("iptables");
    let before = (servers(), sets(), addresses());
    let foreign = of_foreign();
    assert_eq!(foreign.len(), 3, "{foreign:?}");
    assert!(before.0.len() > 20 && before.1.len() > 10, "{before:?}");

    let proxyshift = Proxyshift::new("store");
    let traffic = Traffic::start();
    proxyshift.expect(0, "cleanup --yes");
    traffic.stop("cleanup");
    assert_eq!(servers().into_iter().collect::<Vec<_>>(), foreign, "only the foreign one");
    assert!(sets().is_empty(), "{:?}", sets());
    assert!(addresses().is_empty(), "{}", addresses());
    cluster.serves();

    let traffic = Traffic::start();
    proxyshift.expect(0, "rollback --yes");
    traffic.stop("rollback");
    assert_eq!((servers(), sets()), (before.0, before.1));
    assert_same(&addresses(), &before.2, "kube-ipvs0");
    assert_eq!(of_foreign(), foreign);
}

/// The foreign virtual server with its real servers.
fn of_foreign() -> Vec<String> {
    servers().into_iter().filter(|l| l.contains(FOREIGN)).collect()
}

/// kube-ipvs0 with its addresses, as `ip` shows them, without its number.
fn addresses() -> String {
    let all = run("ip -o -d address show");
    let of_link = all.lines().filter(|l| l.contains(" kube-ipvs0 "));
    let mut lines: Vec<_> =
        of_link.map(|l| l.split_once(' ').map_or("", |(_, l)| l).to_owned()).collect();
    lines.sort();
    lines.join("\n")
}
