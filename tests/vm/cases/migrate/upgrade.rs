//! An upgrade of kube-proxy to today's version in the same mode.

use std::fs;

use super::{Case, PLAYBOOK, STOP, script, starting};
use crate::cluster::FOREIGN;
use crate::common::run;
use crate::common::tried::tried;
use crate::common::vm::kubernetes;
use crate::kube_proxy;
use crate::machine::{TODAY, inside, place};
use crate::traffic::Traffic;

/// The operator's command that replaces kube-proxy by another version.
const UPGRADE: &str = "/run/bin/upgrade";

/// An ipset that is an old leftover of another mode.
const LEFT: &str = "KUBE-LOAD-BALANCER-SOURCE-CIDR";

/// Today's configuration, which lies beside the old one.
const CONFIGURATION: &str = "/run/kube-proxy/today.conf";

/// Writes the command [`UPGRADE`], which starts today's kube-proxy in place of the old one, and the
/// playbook that runs it.
fn prepare(mode: &str) {
    let file = format!("{}/playbooks/upgrade.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(file).expect("a playbook");
    let ask = text.lines().find(|l| l.trim_start().starts_with("ask: ")).expect("it asks");
    fs::write(PLAYBOOK, text.replace(ask, &format!("      run: [{UPGRADE}]"))).expect(PLAYBOOK);
    let configuration = kube_proxy::configuration(TODAY, mode, &format!("{FOREIGN}/32"));
    fs::write(CONFIGURATION, configuration).expect(CONFIGURATION);
    let today = starting(&kubernetes(TODAY, "kube-proxy"), CONFIGURATION);
    script(UPGRADE, &format!("{STOP}\n{today}"));
}

/// Upgrades kube-proxy in `mode` and confirms; no new connection may fail meanwhile, and nothing
/// that only the old version uses may be left.
fn upgrades(mode: &str) {
    let case = Case::new("nft", mode);
    prepare(mode);
    let traffic = Traffic::start();
    assert_eq!(case.migrate(mode, "").code, Some(0));
    case.proxyshift.expect(0, "confirm");
    traffic.stop(&format!("upgrade in {mode} mode to {TODAY}"));
    case.is_in(mode);
    let taken = case.proxyshift.expect(0, "snapshot create -o json").json();
    let file = format!("{}/processes.json", taken["directory"].as_str().expect("a folder"));
    let processes = fs::read_to_string(&file).expect(&file);
    assert!(processes.contains(&format!("\"v{TODAY}\"")), "{processes}");
    let what =
        format!("{mode} mode: upgraded from {}, no connection failed", kube_proxy::version());
    tried(&kube_proxy::metrics(), place(), &what);
}

#[test]
#[ignore = "in the machine"]
fn soak_what_the_old_version_left_goes() {
    if inside("cases::migrate::upgrade::soak_what_the_old_version_left_goes") {
        upgrades("iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_what_the_old_version_left_goes_in_ipvs_mode() {
    if inside("cases::migrate::upgrade::soak_what_the_old_version_left_goes_in_ipvs_mode") {
        upgrades("ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_an_upgrade_is_finished_or_undone() {
    if !inside("cases::migrate::upgrade::soak_an_upgrade_is_finished_or_undone") {
        return;
    }
    let case = Case::prepared("nft", "iptables", |_| {
        run(&format!("ipset create {LEFT} hash:ip,port,net"));
    });
    prepare("iptables");
    let upgrade = fs::read_to_string(UPGRADE).expect(UPGRADE);

    script(UPGRADE, "echo no such version >&2; exit 1\n");
    let ended = case.migrate("iptables", "");
    assert_eq!(ended.code, Some(4));
    ended.reports(&[UPGRADE, "no such version"]);
    case.proxyshift.expect(0, "status");
    case.cluster.serves();
    case.keeps_what_is_foreign();
    assert!(run("ipset list -n").contains(LEFT), "nothing was cleaned");

    script(UPGRADE, &upgrade);
    assert_eq!(case.migrate("iptables", "").code, Some(0));
    case.proxyshift.expect(0, "confirm");
    case.is_in("iptables");
    assert!(!run("ipset list -n").contains(LEFT), "it is cleaned");
    case.proxyshift.expect(0, "rollback");
    assert!(run("ipset list -n").contains(LEFT), "it is back");
    case.cluster.serves();
}
