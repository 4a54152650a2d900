//! Hosts with sshd, each in namespaces of its own that are loaded with a captured node.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::node::{Node, without_counters};
use crate::common::{MACHINE, again, run};
use crate::site::{Played, Site, sshd};
use proxyshift::state::Backend;

/// The captured node that is loaded on each host. It has one leftover.
const NODE: &str = "canal-stale-flannel-1.20";

/// The environment variable that is set in those copies of a test that serve as a host. Its value
/// is the folder with the ssh keys.
const KEYS: &str = "PROXYSHIFT_TEST_KEYS";

/// If this copy of the test is a host, serves as one until the fleet ends, and returns true.
pub fn served() -> bool {
    let Some(keys) = std::env::var_os(KEYS).map(PathBuf::from) else { return false };
    let _node = Node::load(NODE, Backend::Nft);
    let _sshd = sshd(&keys);
    fs::write("/run/ready", "").expect("a file");
    // Blocks until the fleet closes standard input, or ends.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    true
}

/// A host of the fleet. The host's processes end when this value is dropped.
pub struct Host {
    pub name: String,
    child: Child,
}

impl Host {
    /// The path under which the test sees the file that the host has at `path`.
    pub fn sees(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.child.id()))
    }

    /// Runs a command line in the host's network namespace.
    pub fn run(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n {command}", self.child.id()))
    }

    /// The host's rules, without counters.
    pub fn rules(&self) -> String {
        without_counters(&self.run("iptables-nft-save"))
    }

    /// The state of the last run on the host; none if there was no run.
    pub fn last_run(&self) -> Option<String> {
        let runs = fs::read_dir(self.sees("/run/store/runs")).ok()?;
        let last = runs.map(|e| e.expect("an entry").path()).max()?;
        let run = fs::read(last.join("run.json")).expect("run.json");
        let run: serde_json::Value = serde_json::from_slice(&run).expect("JSON");
        run["state"].as_str().map(str::to_owned)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hosts on one network, and the machine from which Ansible reaches them.
pub struct Fleet {
    pub hosts: Vec<Host>,
    pub site: Site,
}

impl Fleet {
    /// Starts `size` hosts, `h1` and so on, as copies of the test `test`, which must have called
    /// [`served`] first.
    pub fn new(test: &str, size: usize) -> Fleet {
        let site = Site::new();
        run("ip link set lo up");
        run("ip link add fleet type bridge");
        run("ip addr add 198.18.0.254/24 dev fleet");
        run("ip link set fleet up");
        let start = |n: usize| {
            let mut command = again(test, MACHINE);
            command.env(KEYS, site.keys()).stdin(Stdio::piped()).stdout(Stdio::null());
            Host { name: format!("h{n}"), child: command.spawn().expect("unshare runs") }
        };
        let hosts: Vec<Host> = (1..=size).map(start).collect();
        for (host, n) in hosts.iter().zip(1..) {
            let until = Instant::now() + Duration::from_secs(60);
            while !host.sees("/run/ready").exists() {
                assert!(Instant::now() < until, "{} does not come up", host.name);
                std::thread::sleep(Duration::from_millis(20));
            }
            let (name, pid) = (&host.name, host.child.id());
            run(&format!("ip link add {name} type veth peer name mgmt0 netns {pid}"));
            run(&format!("ip link set {name} master fleet up"));
            host.run(&format!("ip addr add 198.18.0.{n}/24 dev mgmt0"));
            host.run("ip link set mgmt0 up");
        }
        let address = |(host, n): (&Host, u32)| (host.name.clone(), format!("198.18.0.{n}"));
        site.inventory(&hosts.iter().zip(1..).map(address).collect::<Vec<_>>());
        Fleet { hosts, site }
    }

    /// Runs a playbook of the collection with the Ansible whose programs are in `bin`.
    pub fn play(&self, bin: &Path, playbook: &str, more: &[&str]) -> Played {
        self.site.play(&[], bin, playbook, more)
    }
}
