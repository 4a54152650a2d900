//! Whole migrations of a kube-proxy.

pub(super) mod bridge;
mod carries;
mod fails;
mod killed;
mod meanwhile;
mod static_pod;
mod streams;
mod systemd;
mod upgrade;
mod ways_in;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, FOREIGN, native_services};
use crate::common::node::{Ended, Proxyshift, assert_same, without_counters};
use crate::common::{run, run_with};
use crate::kube_proxy;
use crate::network::of_family;

/// The controller's command that starts kube-proxy. [`STOP`] is the command that stops it.
const START: &str = "/run/bin/start-kube-proxy";
const STOP: &str = "/run/bin/stop-kube-proxy";
const PLAYBOOK: &str = "/run/playbook.yaml";

/// How long an emulated CPU may take to undo a migration.
const PATIENCE: Duration = Duration::from_secs(240);

/// A node on which commands of the operator's start and stop kube-proxy.
pub(super) struct Case {
    pub(super) cluster: Cluster,
    pub(super) proxyshift: Proxyshift,
    /// The foreign rules and virtual servers at the beginning, as text.
    foreign: String,
}

impl Case {
    /// A node on which kube-proxy serves in `mode`, beside a foreign virtual server.
    pub(super) fn new(backend: &'static str, mode: &str) -> Case {
        Case::prepared(backend, mode, |_| {})
    }

    /// As [`Case::new`], without the foreign virtual server: nftables mode removes all there are.
    fn without_foreign_server(backend: &'static str, mode: &str) -> Case {
        let mut case = Case::started(backend, mode, |_| {});
        case.serves_as_now();
        case
    }

    /// As [`Case::new`], with `prepare` called before kube-proxy starts.
    fn prepared(backend: &'static str, mode: &str, prepare: impl Fn(&Cluster)) -> Case {
        let mut case = Case::started(backend, mode, prepare);
        case.serves_from_now_on();
        case
    }

    /// A node on which kube-proxy has come to serve in `mode`.
    fn started(backend: &'static str, mode: &str, prepare: impl Fn(&Cluster)) -> Case {
        // These folders are mounted empty, so that settings for the next boot are seen by this case
        // alone.
        for dir in ["/etc/modules-load.d", "/etc/sysctl.d"] {
            run(&format!("mount -t tmpfs etc {dir}"));
        }
        let mut case = Case::idle(backend, "store");
        prepare(&case.cluster);
        case.cluster.kube_proxy(mode);
        case
    }

    /// A node on which no kube-proxy runs.
    pub(super) fn idle(backend: &'static str, store: &str) -> Case {
        let cluster = Cluster::new(backend);
        starts_with("/run/kube-proxy/config.conf");
        script(STOP, "pkill -x --ns $$ --nslist net kube-proxy; true\n");
        Case { cluster, proxyshift: Proxyshift::new(store), foreign: String::new() }
    }

    /// Hands the running kube-proxy over to the commands, which stop and start it from now on, and
    /// adds a foreign virtual server.
    pub(super) fn serves_from_now_on(&mut self) {
        self.cluster.foreign_server();
        self.serves_as_now();
    }

    /// Hands the running kube-proxy over to the commands, which stop and start it from now on.
    pub(super) fn serves_as_now(&mut self) {
        self.cluster.release();
        self.cluster.serves();
        self.foreign = foreign(&self.cluster);
    }

    /// Writes the playbook file: the built-in playbook from one mode to the other, with [`START`]
    /// and [`STOP`] as the controller, edited by `change`.
    pub(super) fn playbook(&self, from: &str, to: &str, change: impl Fn(String) -> String) {
        let text = built_in(from, to);
        let commands =
            format!("controller: {{commands: {{stop: [{STOP}], start: [{START}], again: safe}}}}");
        assert!(text.contains("controller: auto"));
        fs::write(PLAYBOOK, change(text.replace("controller: auto", &commands))).expect(PLAYBOOK);
    }

    /// Migrates with the built-in playbook, and no commands, until the run waits to be confirmed. What
    /// kube-proxy and the run itself may take is for an emulated CPU that others keep busy.
    fn migrates_by_itself(&self, from: &str, to: &str) -> Ended {
        let text = built_in(from, to);
        assert!(text.contains("timeout: 2m"), "{text}");
        fs::write(PLAYBOOK, text.replace("timeout: 2m", "timeout: 10m")).expect(PLAYBOOK);
        let ended = self.migrate(to, "--confirm-within 30m");
        assert_eq!(ended.code, Some(0));
        ended
    }

    pub(super) fn words(to: &str) -> String {
        format!("migrate --to {to} --playbook {PLAYBOOK} --yes")
    }

    /// Runs a migration to the mode `to` until it ends, whatever its exit code, and prints its
    /// output.
    pub(super) fn migrate(&self, to: &str, more: &str) -> Ended {
        let began = Instant::now();
        let ended = self.proxyshift.run(&format!("{} {more}", Case::words(to)));
        println!("{}{}-- after {} s", ended.err, ended.out, began.elapsed().as_secs());
        ended
    }

    /// Fails unless the foreign objects are the same as at the beginning, in the same order.
    pub(super) fn keeps_what_is_foreign(&self) {
        assert_same(&foreign(&self.cluster), &self.foreign, "what is not kube-proxy's");
        self.cluster.container_goes_out();
    }

    /// Fails unless kube-proxy serves in `mode`, without leftovers of the other mode.
    pub(super) fn is_in(&self, mode: &str) {
        self.cluster.serves();
        self.keeps_what_is_foreign();
        let left = super::removals(&self.proxyshift);
        assert!(left.is_empty(), "{left:#?}");
        let (nat, servers) = (self.cluster.save("nat"), run("ipvsadm -Sn"));
        assert_eq!(nat.contains("KUBE-SVC-"), mode == "iptables", "{nat}");
        assert_eq!(servers.contains(&of_family("10.96.1.1:80")), mode == "ipvs", "{servers}");
        let link = run("ip -o link show type dummy");
        assert_eq!(link.contains("kube-ipvs0"), mode == "ipvs", "{link}");
        assert_eq!(!native_services().is_empty(), mode == "nftables");
    }

    /// The last run, as `status` prints it.
    pub(super) fn last_run(&self) -> Value {
        self.proxyshift.run("status -o json").json()["runs"][0].clone()
    }

    /// The lines of the journal of the last run.
    fn journal(&self) -> Vec<Value> {
        let id = self.last_run()["id"].as_str().expect("a run").to_owned();
        let path = self.proxyshift.store.join("runs").join(id).join("journal.jsonl");
        let text = fs::read_to_string(path).expect("a journal");
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits until the stage `clean` of the last run has taken its snapshot.
    fn wait_until_cleaning(&self) {
        let until = Instant::now() + PATIENCE;
        let runs = self.proxyshift.store.join("runs");
        let cleans = || {
            let mut all = fs::read_dir(&runs).into_iter().flatten().flatten();
            all.any(|run| {
                let json = fs::read(run.path().join("run.json")).unwrap_or_default();
                let json: Value = serde_json::from_slice(&json).unwrap_or_default();
                json["pending"]["clean_snapshot"].is_string()
            })
        };
        while !cleans() {
            assert!(Instant::now() < until, "it does not come to clean");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until the last run is undone.
    fn wait_until_undone(&self) {
        let until = Instant::now() + PATIENCE;
        while self.last_run()["state"] != "rolled-back" {
            assert!(Instant::now() < until, "it is not undone: {}", self.last_run());
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

impl Drop for Case {
    /// Stops the kube-proxy that the commands started.
    fn drop(&mut self) {
        run_with("", &[STOP]);
    }
}

/// The text of the built-in playbook from one mode to the other.
fn built_in(from: &str, to: &str) -> String {
    let file = format!("{}/playbooks/{from}-to-{to}.yaml", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(file).expect("a playbook")
}

fn script(path: &str, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}")).expect(path);
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect(path);
}

/// Writes the command that starts kube-proxy with this configuration file. The shell command
/// `first` runs before kube-proxy.
fn starts_after(first: &str, configuration: &str) {
    let program = kube_proxy::program();
    script(START, &format!("{first}\n{}", starting(&program, configuration)));
}

/// The shell command that starts this kube-proxy with this configuration file.
fn starting(program: &Path, configuration: &str) -> String {
    format!(
        "PATH=/run/bin:$PATH setsid {} --config={configuration} --v=2 \
         >>/run/kube-proxy/log 2>&1 </dev/null &\n",
        program.display()
    )
}

fn starts_with(configuration: &str) {
    starts_after("", configuration);
}

/// The foreign rules and virtual servers, one a line, in their order.
fn foreign(cluster: &Cluster) -> String {
    let mut text = String::new();
    for table in ["nat", "filter", "mangle"] {
        let save = without_counters(&cluster.save(table));
        let rest = save.lines().filter(|l| l.starts_with("-A") && !l.contains("KUBE-"));
        text.extend(rest.map(|l| format!("{table}: {l}\n")));
    }
    let servers = run("ipvsadm -Sn");
    let rest = servers.lines().filter(|l| l.contains(&of_family(FOREIGN)));
    text.extend(rest.map(|l| format!("{}\n", l.trim())));
    text
}
