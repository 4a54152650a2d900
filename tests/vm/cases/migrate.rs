//! Whole migrations, beside traffic that notices what they break.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, FOREIGN};
use crate::common::node::Proxyshift;
use crate::common::run;
use crate::common::schemas::Schemas;
use crate::common::vm::cached;
use crate::machine::inside;
use crate::traffic::Traffic;

/// Where the commands that stop and start kube-proxy are, and their playbook.
const START: &str = "/run/bin/start-kube-proxy";
const STOP: &str = "/run/bin/stop-kube-proxy";
const PLAYBOOK: &str = "/run/playbook.yaml";

/// A node whose kube-proxy is run by commands.
struct Case {
    cluster: Cluster,
    proxyshift: Proxyshift,
    backend: &'static str,
}

fn script(path: &str, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).expect(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect(path);
}

impl Case {
    /// kube-proxy serves in `mode`; a virtual server of somebody else stands beside it.
    fn new(backend: &'static str, mode: &str) -> Case {
        let mut cluster = Cluster::new(backend);
        cluster.kube_proxy(mode);
        // From here on it is the commands' to stop and start.
        cluster.release();
        let kube_proxy = cached("kube-proxy");
        script(
            START,
            &format!(
                "PATH=/run/bin:$PATH setsid {} --config=/run/kube-proxy/config.conf --v=2 \
                 >>/run/kube-proxy/log 2>&1 </dev/null &\n",
                kube_proxy.display()
            ),
        );
        script(STOP, "pkill -x --ns $$ --nslist net kube-proxy; true\n");
        cluster.foreign_server();
        cluster.serves();
        Case { cluster, proxyshift: Proxyshift::new("store"), backend }
    }

    /// The built-in playbook between the two modes, with these commands, and `change`d.
    fn playbook(&self, from: &str, to: &str, change: impl Fn(String) -> String) {
        let file = format!("{}/playbooks/{from}-to-{to}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(file).expect("a playbook");
        let commands =
            format!("controller: {{commands: {{stop: [{STOP}], start: [{START}], again: safe}}}}");
        assert!(text.contains("controller: auto"));
        fs::write(PLAYBOOK, change(text.replace("controller: auto", &commands))).expect(PLAYBOOK);
    }

    fn migrate(&self, to: &str) -> String {
        format!("migrate --to {to} --playbook {PLAYBOOK} --yes")
    }

    /// What is not kube-proxy's: docker's masquerading, and the foreign virtual server.
    fn keeps_what_is_foreign(&self) {
        let nat = self.cluster.save("nat");
        let masquerade = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
        assert!(nat.lines().any(|l| l == masquerade), "{nat}");
        let servers = run("ipvsadm -Sn");
        let foreign = format!("-a -t {FOREIGN}:7000 -r 10.244.0.12:8080 -m -w 7");
        assert!(servers.lines().any(|l| l.trim() == foreign), "{servers}");
        self.cluster.container_goes_out();
    }

    /// The node serves in `mode`, and the other one has left nothing.
    fn is_in(&self, mode: &str) {
        self.cluster.serves();
        self.keeps_what_is_foreign();
        let plan = self.proxyshift.expect(0, "plan -o json").json();
        let objects = plan["objects"].as_array().expect("objects");
        let left: Vec<_> = objects.iter().filter(|o| o["action"] == "remove").collect();
        assert!(left.is_empty(), "{left:#?}");
        let (nat, servers) = (self.cluster.save("nat"), run("ipvsadm -Sn"));
        assert_eq!(nat.contains("KUBE-SVC-"), mode == "iptables", "{nat}");
        assert_eq!(servers.contains("10.96.1.1:80"), mode == "ipvs", "{servers}");
        let link = run("ip -o link show type dummy");
        assert_eq!(link.contains("kube-ipvs0"), mode == "ipvs", "{link}");
    }
}

/// From one mode to the other and confirmed, without a single failure of new connections.
fn carries_over(backend: &'static str, from: &str, to: &str) {
    let case = Case::new(backend, from);
    case.playbook(from, to, |text| text);
    let traffic = Traffic::start();
    let ended = case.proxyshift.expect(0, &format!("{} -o json", case.migrate(to)));
    println!("{}{}", ended.err, ended.out);
    let mut schemas = Schemas::load();
    schemas.hold(&ended.json(), "migrate");
    case.proxyshift.expect(6, "status");
    case.proxyshift.expect(0, "confirm");
    let report = case.proxyshift.expect(0, "report -o json").json();
    schemas.hold(&report, "report");
    assert_eq!(report["shift"]["to"], to, "{report}");
    println!("{}", case.proxyshift.expect(0, "report").out);
    traffic.stop(&format!("{from} to {to}, {}", case.backend));
    case.is_in(to);
    case.proxyshift.expect(0, "status");
}

#[test]
#[ignore = "in the machine"]
fn iptables_to_ipvs_breaks_nothing() {
    if inside("cases::migrate::iptables_to_ipvs_breaks_nothing") {
        carries_over("nft", "iptables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn ipvs_to_iptables_breaks_nothing() {
    if inside("cases::migrate::ipvs_to_iptables_breaks_nothing") {
        carries_over("nft", "ipvs", "iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn soak_iptables_to_ipvs_breaks_nothing_in_legacy() {
    if inside("cases::migrate::soak_iptables_to_ipvs_breaks_nothing_in_legacy") {
        carries_over("legacy", "iptables", "ipvs");
    }
}

#[test]
#[ignore = "in the machine"]
fn what_nobody_confirms_is_undone() {
    if !inside("cases::migrate::what_nobody_confirms_is_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let traffic = Traffic::start();
    case.proxyshift.expect(0, &format!("{} --confirm-within 3s", case.migrate("ipvs")));
    // An emulated CPU takes its time.
    let until = Instant::now() + Duration::from_secs(240);
    while case.proxyshift.run("status").code != Some(0) {
        assert!(Instant::now() < until, "it is not undone");
        std::thread::sleep(Duration::from_secs(1));
    }
    traffic.stop("undone");
    case.is_in("iptables");
    case.proxyshift.expect(3, "confirm").says(&["was rolled back"]);
}

/// A migration that fails ends with 4, names the cause, and leaves the node as it was.
fn fails(case: &Case, cause: &[&str]) {
    let ended = case.proxyshift.run(&case.migrate("ipvs"));
    assert_eq!(ended.code, Some(4), "{}", ended.err);
    ended.says(cause);
    case.is_in("iptables");
    case.proxyshift.expect(0, "status");
}

#[test]
#[ignore = "in the machine"]
fn soak_whatever_fails_is_undone() {
    if !inside("cases::migrate::soak_whatever_fails_is_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    let hook = |point: &str| {
        format!("hooks: {{{point}: [{{run: [/bin/false], timeout: 10s, again: safe}}]}}\n")
    };
    for point in ["before_switch", "after_converge", "after_clean"] {
        case.playbook("iptables", "ipvs", |text| text + &hook(point));
        println!("-- hook {point}");
        fails(&case, &["/bin/false"]);
    }
    // kube-proxy does not start in the new mode.
    let start = fs::read_to_string(START).expect("a script");
    let refuses = start.replacen(
        "PATH=",
        "grep -q '^mode: ipvs' /run/kube-proxy/config.conf && exit 1\nPATH=",
        1,
    );
    fs::write(START, &refuses).expect(START);
    case.playbook("iptables", "ipvs", |text| text);
    println!("-- kube-proxy does not start");
    fails(&case, &["start-kube-proxy"]);
}

#[test]
#[ignore = "in the machine"]
fn soak_killed_at_every_stage_it_is_resumed_or_undone() {
    if !inside("cases::migrate::soak_killed_at_every_stage_it_is_resumed_or_undone") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let mut killed = 0;
    for line in 1..40 {
        let mut command = case.proxyshift.command(&case.migrate("ipvs"));
        let point = format!("{}:{line}", if line % 2 == 0 { "before" } else { "after" });
        let output = command.env("PROXYSHIFT_CRASH", &point).output().expect("starts");
        if output.status.signal() != Some(9) {
            let err = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{point}: {}\n{err}", output.status);
            case.proxyshift.expect(0, "rollback");
            break;
        }
        killed += 1;
        println!("-- killed {point}");
        case.proxyshift.expect(6, "status");
        if line % 3 == 0 {
            case.proxyshift.expect(0, "resume");
            case.cluster.serves();
        }
        case.proxyshift.expect(0, "rollback");
        case.is_in("iptables");
    }
    assert!(killed > 5, "{killed}");
    assert!(Path::new("/run/kube-proxy/config.conf").exists());
}
