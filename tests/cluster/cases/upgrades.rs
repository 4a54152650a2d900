//! An upgrade from the last version that deletes no rules of other modes at its start.

use proxyshift::state::kube_proxy::Mode;

use super::moves::Site;
use super::upgrades_to_today;
use crate::common::tried::tried;
use crate::machine::AT_SOAK;

/// The last of 1.28.
const OLD: &str = "1.28.15";

#[test]
#[ignore = "of the cluster"]
fn soak_no_connection_is_lost_when_1_28_is_upgraded() {
    let site = Site::of(OLD, Mode::Iptables);
    let proxyshift = site.node.proxyshift();
    // It has no such mode: the upgrade comes first.
    let refused = proxyshift.expect(3, "migrate --to nftables --yes");
    println!("{}", refused.err);
    let words = upgrades_to_today(&site.node, "iptables");
    site.unharmed(&format!("{OLD} upgraded"), || {
        println!("{}", proxyshift.expect(0, &words).err);
    });
    site.is_in(Mode::Iptables);
    proxyshift.expect(0, "confirm");
    let what = format!("a static pod in iptables mode: upgraded from {OLD}, no connection lost");
    tried(&site.node.asks("/metrics"), AT_SOAK, &what);
    site.unharmed(&format!("{OLD} upgraded, to nftables"), || {
        println!("{}", proxyshift.expect(0, "migrate --to nftables --yes").err);
    });
    site.is_in(Mode::Nftables);
    proxyshift.expect(0, "confirm");
}
