//! Migrations that succeed, beside traffic that notices what they break.

use super::{Case, PLAYBOOK};
use crate::machine::inside;
use crate::traffic::Traffic;

/// From one mode to the other and confirmed, without a single failure of new connections.
fn carries_over(backend: &'static str, from: &str, to: &str) {
    let case = Case::new(backend, from);
    case.playbook(from, to, |text| text);
    let traffic = Traffic::start();
    assert_eq!(case.migrate(to, "").code, Some(0), "{PLAYBOOK}");
    case.proxyshift.expect(6, "status");
    case.proxyshift.expect(0, "confirm");
    traffic.stop(&format!("{from} to {to}, {backend}"));
    case.is_in(to);
    case.proxyshift.expect(0, "status");
}

#[test]
#[ignore = "in the machine"]
fn iptables_to_ipvs_breaks_nothing() {
    if inside("cases::migrate::carries::iptables_to_ipvs_breaks_nothing") {
        carries_over("nft", "iptables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn ipvs_to_iptables_breaks_nothing() {
    if inside("cases::migrate::carries::ipvs_to_iptables_breaks_nothing") {
        carries_over("nft", "ipvs", "iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_iptables_to_ipvs_breaks_nothing_in_legacy() {
    if inside("cases::migrate::carries::soak_iptables_to_ipvs_breaks_nothing_in_legacy") {
        carries_over("legacy", "iptables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_ipvs_to_iptables_breaks_nothing_in_legacy() {
    if inside("cases::migrate::carries::soak_ipvs_to_iptables_breaks_nothing_in_legacy") {
        carries_over("legacy", "ipvs", "iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn what_nobody_confirms_is_undone() {
    if !inside("cases::migrate::carries::what_nobody_confirms_is_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let traffic = Traffic::start();
    assert_eq!(case.migrate("ipvs", "--confirm-within 3s").code, Some(0));
    case.wait_until_undone();
    traffic.stop("undone");
    case.is_in("iptables");
    case.proxyshift.expect(3, "confirm").says(&["was rolled back"]);
}
