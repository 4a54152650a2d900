//! kube-proxy as a unit of a real systemd, which has its own processes and cgroups.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::Case;
use crate::cluster::FOREIGN;
use crate::common::node::Ended;
use crate::common::tried::tried;
use crate::common::{poll, run, run_with};
use crate::kube_proxy::{self, KubeProxy};
use crate::machine::{inside, place};
use crate::systemd::Systemd;

#[test]
#[ignore = "in the machine"]
fn a_unit_is_found_restarted_and_undone_by_a_unit() {
    if !inside("cases::migrate::systemd::a_unit_is_found_restarted_and_undone_by_a_unit") {
        return;
    }
    let mut case = Case::idle("nft", "store");
    KubeProxy::configure("iptables", &format!("{FOREIGN}/32"));
    let systemd = Systemd::of_node();
    systemd.start(
        "kube-proxy",
        "simple",
        &format!("{} --config=/run/kube-proxy/config.conf --v=2", kube_proxy::program().display()),
        "/run/kube-proxy/log",
    );
    case.cluster.wait("iptables");
    case.serves_from_now_on();
    case.proxyshift.within = systemd.prefix();

    case.migrates_by_itself("iptables", "ipvs").reports(&["unit kube-proxy.service"]);
    case.is_in("ipvs");
    case.proxyshift.expect(6, "status");
    // The boot unit, started in the way in which a reboot would start it.
    systemd.ctl("daemon-reload");
    assert_eq!(systemd.ctl("is-enabled proxyshift-rollback").trim(), "enabled");
    let mut started = Command::new("nsenter");
    started.args(&systemd.prefix()[1..]).args(["systemctl", "start", "proxyshift-rollback"]);
    let code = Ended::of(started).code;
    assert_eq!((code, &case.last_run()["state"]), (Some(0), &json!("rolled-back")), "{}", {
        case.proxyshift.run("report").out
    });
    case.is_in("iptables");
    let units = run(&format!("{} ls /etc/systemd/system", systemd.prefix().join(" ")));
    assert!(!units.contains("proxyshift-rollback"), "{units}");
    let what = "a unit of systemd: from iptables to ipvs mode, rolled back by a unit at boot";
    tried(&kube_proxy::metrics(), place(), what);
}

#[test]
#[ignore = "in the machine"]
fn soak_a_unit_keeps_an_exception_for_ansible() {
    if !inside("cases::migrate::systemd::soak_a_unit_keeps_an_exception_for_ansible") {
        return;
    }
    let mut case = Case::idle("nft", "store");
    let systemd = Systemd::of_node();
    case.cluster.kube_proxy("iptables");
    let run_task = |network: &str, check: bool| {
        let task = json!({
            "_ansible_check_mode": check, "state": "guarded", "for": network,
            "store": case.proxyshift.store,
        });
        fs::write("/run/task.json", task.to_string()).expect("a task");
        let mut command = Command::new("nsenter");
        command.args(&systemd.prefix()[1..]).arg(env!("CARGO_BIN_EXE_proxyshift"));
        command.arg("/run/task.json");
        Ended::of(command)
    };
    let changes = |network: &str, check: bool| {
        let ended = run_task(network, check);
        assert_eq!(ended.code, Some(0), "{}", ended.out);
        ended.json()["changed"].as_bool().expect("a boolean")
    };
    let exists = |network: &str| {
        let rule = format!("-A FORWARD -s {network} -m conntrack --ctstate INVALID");
        case.cluster.save("filter").contains(&rule)
    };
    let (first, second) = ("10.244.0.0/24", "10.244.0.0/25");
    assert!(changes(first, true) && !exists(first), "check mode");
    assert!(changes(first, false) && exists(first));
    assert_eq!(systemd.ctl("is-active proxyshift-guard").trim(), "active");
    assert!(!changes(first, false), "a second time");
    let rule = "-m conntrack --ctstate INVALID -m comment --comment";
    let rule = rule.split(' ').chain(["proxyshift guard", "-j", "ACCEPT"]);
    let delete = ["iptables-nft", "-D", "FORWARD", "-s", first].into_iter().chain(rule);
    run_with("", &delete.collect::<Vec<_>>());
    poll("the exception comes back", || exists(first));
    assert!(changes(second, false) && exists(second) && !exists(first), "another network");
    assert!(!changes(second, true), "check mode, and nothing to do");
    systemd.ctl("stop proxyshift-guard");
    assert!(!exists(second), "it goes with its unit");
    assert!(changes(second, false) && exists(second), "started again");
    // A unit file of that name that proxyshift did not write is not overwritten.
    let unit = "/etc/systemd/system/proxyshift-guard.service";
    run(&format!("{} sed -i 1d {unit}", systemd.prefix().join(" ")));
    let refused = run_task(first, false);
    assert_eq!(refused.json()["code"], 3, "{}", refused.out);
    assert!(refused.out.contains("was not written by this module"), "{}", refused.out);
}
