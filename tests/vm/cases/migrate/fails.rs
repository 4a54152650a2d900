//! Migrations that fail: each exits with 4, names the cause in one line and in its journal, and
//! leaves the node unchanged.

use std::fs;

use super::{Case, START, STOP, script, starts_after, starts_with};
use crate::api::Api;
use crate::cluster;
use crate::common::run;
use crate::kube_proxy::kubeconfig;
use crate::machine::inside;

const CONFIGURATION: &str = "/run/kube-proxy/config.conf";

/// The operator's command that causes a failure.
const HOOK: &str = "/run/bin/hook";

/// A migration to ipvs fails with `cause`; its line begins with `object`.
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

/// A short time for an expected timeout.
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

    // A service that stays away: in ipvs mode, kube-proxy reads an API without it.
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

    // As 1.25 and earlier behave without ip_vs.
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

    // Packets through ipvs are dropped, though all objects are in position.
    script(HOOK, "iptables -A OUTPUT -m ipvs --ipvs -j DROP\n");
    case.playbook("iptables", "ipvs", |text| text + &hook("after_clean"));
    let before = case.foreign.clone();
    case.foreign = with_rule(&before, "filter: -A OUTPUT -m ipvs --ipvs -j DROP");
    fails(&case, "a probe fails", "10.96.", "answered before, and now");
    run("iptables -D OUTPUT -m ipvs --ipvs -j DROP");
    case.foreign = before;

    // The disk is full from the middle of the run on.
    script(HOOK, &format!("dd if=/dev/zero of={store}/full bs=64k 2>/dev/null; true\n"));
    case.playbook("iptables", "ipvs", |text| text + &hook("after_converge"));
    fails(&case, "the disk is full", store, "are missing");
    fs::remove_file(format!("{store}/full")).expect("it is there");
}

/// The foreign rules, with a further foreign rule in its position between the tables.
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
