//! ipvs → iptables: the virtual servers, ipsets and kube-ipvs0 are removed, and restored by a
//! rollback.

use super::{names, removals, servers, sets, succeeds};
use crate::cluster::{Cluster, FOREIGN};
use crate::common::node::{Proxyshift, assert_same};
use crate::common::run;
use crate::machine::inside;
use crate::traffic::Traffic;

#[test]
#[ignore = "in the machine"]
fn soak_what_ipvs_mode_left_goes_and_comes_back() {
    if !inside("cases::back::soak_what_ipvs_mode_left_goes_and_comes_back") {
        return;
    }
    let mut cluster = Cluster::new("nft");
    let proxyshift = Proxyshift::new("store");
    cluster.foreign_server();
    let foreign = servers();
    assert_eq!(foreign.len(), 3, "{foreign:?}");
    cluster.kube_proxy("ipvs");
    cluster.serves();
    assert!(removals(&proxyshift).is_empty());
    let manifest = proxyshift.expect(0, "snapshot create -o json");
    println!("{}", manifest.out);

    cluster.kube_proxy("iptables");
    let before = (servers(), sets(), link());
    let plan = removals(&proxyshift);
    assert_eq!(names(&plan, "link"), ["kube-ipvs0"]);
    assert_eq!(names(&plan, "set").len(), before.1.len(), "{plan:#?}");
    let own = before.0.difference(&foreign).filter(|l| l.starts_with("-A"));
    assert_eq!(names(&plan, "virtual-server").len(), own.count(), "{plan:#?}");

    let traffic = Traffic::start();
    succeeds(&proxyshift, "cleanup --yes");
    traffic.stop("cleanup");
    assert_eq!(servers(), foreign, "only the foreign one");
    assert!(sets().is_empty(), "{:?}", sets());
    assert_eq!(link(), "");
    cluster.serves();

    let traffic = Traffic::start();
    succeeds(&proxyshift, "rollback --yes");
    traffic.stop("rollback");
    assert_eq!((servers(), sets()), (before.0, before.1));
    assert_same(&link(), &before.2, "kube-ipvs0");
    assert_eq!(foreign.difference(&servers()).count(), 0, "{FOREIGN} is as it was");
}

/// The link kube-ipvs0 with its addresses, as `ip` prints them, without the link's index.
fn link() -> String {
    let all = run("ip -o address show");
    let of_link = all.lines().filter(|l| l.contains(" kube-ipvs0 "));
    let mut lines: Vec<_> =
        of_link.map(|l| l.split_once(' ').map_or("", |(_, l)| l).to_owned()).collect();
    lines.sort();
    lines.join("\n")
}
