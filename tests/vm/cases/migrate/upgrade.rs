//! An upgrade of kube-proxy to another version in the same mode.

use std::fs;

use super::{Case, PLAYBOOK, START, STOP, script};
use crate::common::run;
use crate::machine::inside;

/// The operator's command that replaces kube-proxy by another version.
const UPGRADE: &str = "/run/bin/upgrade";

/// An ipset that is an old leftover of another mode.
const LEFT: &str = "KUBE-LOAD-BALANCER-SOURCE-CIDR";

#[test]
#[ignore = "in the machine"]
fn soak_an_upgrade_is_finished_or_undone() {
    if !inside("cases::migrate::upgrade::soak_an_upgrade_is_finished_or_undone") {
        return;
    }
    let case = Case::prepared("nft", "iptables", |_| {
        run(&format!("ipset create {LEFT} hash:ip,port,net"));
    });
    let file = format!("{}/playbooks/upgrade.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(file).expect("a playbook");
    let ask = text.lines().find(|l| l.trim_start().starts_with("ask: ")).expect("it asks");
    fs::write(PLAYBOOK, text.replace(ask, &format!("      run: [{UPGRADE}]"))).expect(PLAYBOOK);

    script(UPGRADE, "echo no such version >&2; exit 1\n");
    let ended = case.migrate("iptables", "");
    assert_eq!(ended.code, Some(4));
    ended.reports(&[UPGRADE, "no such version"]);
    case.proxyshift.expect(0, "status");
    case.cluster.serves();
    case.keeps_what_is_foreign();
    assert!(run("ipset list -n").contains(LEFT), "nothing was cleaned");

    script(UPGRADE, &format!("{STOP}; {START}\n"));
    assert_eq!(case.migrate("iptables", "").code, Some(0));
    case.proxyshift.expect(0, "confirm");
    case.is_in("iptables");
    assert!(!run("ipset list -n").contains(LEFT), "it is cleaned");
    case.proxyshift.expect(0, "rollback");
    assert!(run("ipset list -n").contains(LEFT), "it is back");
    case.cluster.serves();
}
