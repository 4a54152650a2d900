//! Migrations that fail: each exits with 4, names the cause in one line and in its journal, and
//! leaves the node as it was.

use std::fs;

use super::{Case, START, STOP, script, starts_after, starts_with};
use crate::api::Api;
use crate::cluster;
use crate::common::run;
use crate::kube_proxy::kubeconfig;
use crate::machine::inside;

const CONFIGURATION: &str = "/run/kube-proxy/config.conf";

/// The operator's hook, which causes the failure.
const HOOK: &str = "/run/bin/hook";

/// Verifies that a migration to ipvs mode fails with `cause`, in a line that begins with `object`.
fn fails(case: &Case, what: &str, object: &str, cause: &str) {
    println!("-- {what}");
    let ended = case.migrate("ipvs", "");
    assert_eq!(ended.code, Some(4), "{what}");
    let line = ended.err.lines().find(|l| l.contains(object) && l.contains(cause));
    assert!(line.is_some(), "{what}: no line has {object:?} and {cause:?}: {}", ended.err);
    let journal = case.journal();
    let failed = journal.iter().find(|e| e["kind"] == "failed").expect("the journal says it");
    assert!(failed["payload"].to_string().contains(cause), "{failed}");
    assert_eq!(case.last_run()["state"], "rolled-back");
    case.proxyshift.expect(0, "status");
    case.is_in("iptables");
}

fn hook(point: &str) -> String {
    format!("hooks: {{{point}: [{{run: [{HOOK}], timeout: 60s, again: safe}}]}}\n")
}

/// A playbook with a short timeout, for a case that waits until the timeout.
fn impatient(text: String) -> String {
    let short = text.replace("parity: services, timeout: 2m", "parity: services, timeout: 40s");
    assert_ne!(short, text);
    short
}

#[test]
#[ignore = "in the machine"]
fn soak_a_hook_that_fails_is_undone_wherever_it_is() {
    if !inside("cases::migrate::fails::soak_a_hook_that_fails_is_undone_wherever_it_is") {
        return;
    }
    let case = Case::new("nft", "iptables");
    script(HOOK, "echo not today >&2; exit 1\n");
    for point in ["before_switch", "after_switch", "after_clean", "after_settle"] {
        case.playbook("iptables", "ipvs", |text| text + &hook(point));
        fails(&case, point, HOOK, "not today");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_a_kube_proxy_that_does_not_take_over_is_undone() {
    if !inside("cases::migrate::fails::soak_a_kube_proxy_that_does_not_take_over_is_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let in_ipvs_mode = format!("grep -q '^mode: ipvs' {CONFIGURATION}");
    starts_after(&format!("{in_ipvs_mode} && {{ echo no such luck >&2; exit 1; }}"), CONFIGURATION);
    fails(&case, "it does not start", "start-kube-proxy", "no such luck");

    // One service stays missing, because in ipvs mode kube-proxy reads from an API that does not
    // have it.
    let lacking = Api::start();
    let rest = cluster::objects().into_iter().filter(|o| o["metadata"]["name"] != "web");
    rest.for_each(|object| lacking.apply(object));
    fs::write("/run/kube-proxy/lacking", kubeconfig(lacking.address)).expect("a kubeconfig");
    let elsewhere = "/run/kube-proxy/elsewhere.conf";
    let to = format!("{in_ipvs_mode} && kubeconfig=lacking || kubeconfig=kubeconfig");
    let change = format!("sed s,/kubeconfig$,/$kubeconfig, {CONFIGURATION} >{elsewhere}");
    starts_after(&format!("{to}\n{change}"), elsewhere);
    case.playbook("iptables", "ipvs", impatient);
    fails(&case, "a service is missing", "ipvs mode", "10.96.1.1:80/tcp (default/web:http)");
    starts_with(CONFIGURATION);
    run(STOP);
    run(START);
    case.cluster.wait("iptables");

    // kube-proxy 1.25 and earlier start in iptables mode when ip_vs is not available.
    let wrong = "/run/kube-proxy/wrong.conf";
    starts_after(&format!("sed 's/^mode: .*/mode: iptables/' {CONFIGURATION} >{wrong}"), wrong);
    fails(&case, "it starts in the wrong mode", "ipvs mode", "it runs in iptables mode");
}

#[test]
#[ignore = "in the machine"]
fn soak_what_fails_at_the_end_is_undone() {
    if !inside("cases::migrate::fails::soak_what_fails_at_the_end_is_undone") {
        return;
    }
    let store = "/run/store";
    fs::create_dir(store).expect(store);
    run(&format!("mount -t tmpfs -o size=300m,mode=700 store {store}"));
    let mut case = Case::new("nft", "iptables");

    // A rule drops the packets through ipvs, though all objects of ipvs mode are where they should
    // be.
    script(HOOK, "iptables -A OUTPUT -m ipvs --ipvs -j DROP\n");
    case.playbook("iptables", "ipvs", |text| text + &hook("after_clean"));
    let before = case.foreign.clone();
    case.foreign = with_rule(&before, "filter: -A OUTPUT -m ipvs --ipvs -j DROP");
    fails(&case, "a probe fails", "10.96.", "answered before, and now");
    run("iptables -D OUTPUT -m ipvs --ipvs -j DROP");
    case.foreign = before;

    // From the middle of the run on, the disk of the store is full.
    script(HOOK, &format!("dd if=/dev/zero of={store}/full bs=64k 2>/dev/null; true\n"));
    case.playbook("iptables", "ipvs", |text| text + &hook("after_converge"));
    fails(&case, "the disk is full", store, "are missing");
    fs::remove_file(format!("{store}/full")).expect("it is there");
}

/// The lines of `foreign`, with the foreign rule `rule` inserted after the rules of its table.
fn with_rule(foreign: &str, rule: &str) -> String {
    let (mut lines, table) = (foreign.lines().collect::<Vec<_>>(), rule.split(':').next());
    let later = |l: &&str| match table {
        Some("filter") => !l.starts_with("nat:") && !l.starts_with("filter:"),
        _ => true,
    };
    let index = lines.iter().position(later).unwrap_or(lines.len());
    lines.insert(index, rule);
    lines.iter().map(|l| format!("{l}\n")).collect()
}
