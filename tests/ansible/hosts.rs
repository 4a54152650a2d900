//! Hosts with sshd, each of namespaces of its own and with a captured node's state.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::node::{Node, without_counters};
use crate::common::{MACHINE, again, poll, run};
use proxyshift::state::Backend;

/// The captured node that each host is; it has one leftover.
const NODE: &str = "canal-stale-flannel-1.20";

/// Set in the copy of a test that is a host: the folder with the keys.
const KEYS: &str = "PROXYSHIFT_TEST_KEYS";

/// What `tests/ansible/setup` put into the cache of this user.
pub fn cached(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache")
    });
    let path = cache.join("proxyshift/ansible").join(name);
    assert!(path.exists(), "{} is missing: run tests/ansible/setup", path.display());
    path
}

/// Serves as a host until the fleet ends, if this copy of the test is one.
pub fn served() -> bool {
    let Some(keys) = std::env::var_os(KEYS).map(PathBuf::from) else { return false };
    let _node = Node::load(NODE, Backend::Nft);
    // The user of sshd's unprivileged half; and a root without a password is not a locked one.
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    if !passwd.contains("\nsshd:") {
        fs::write("/etc/passwd", passwd + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
            .expect("passwd");
    }
    run("sed -i s/^root:[^:]*:/root:*:/ /etc/shadow");
    run("mkdir /run/sshd /run/ansible");
    let keys = keys.display();
    let config = format!(
        "HostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\nStrictModes no\nUsePAM no\n\
         UseDNS no\nPidFile none\nMaxStartups 100\nSubsystem sftp internal-sftp\n"
    );
    fs::write("/run/sshd.conf", config).expect("a file");
    let mut sshd = Command::new(cached("sshd/usr/sbin/sshd"))
        .args(["-D", "-E", "/run/sshd.log", "-f", "/run/sshd.conf"])
        .env("LD_LIBRARY_PATH", cached("sshd/usr/lib/x86_64-linux-gnu"))
        .spawn()
        .expect("sshd starts");
    poll("sshd listens", || run("ss -Htln sport = :22").contains(":22"));
    fs::write("/run/ready", "").expect("a file");
    // Until the fleet closes it, or is gone.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    let _ = sshd.kill();
    let _ = sshd.wait();
    true
}

/// A host of the fleet. All that runs on it ends with it.
pub struct Host {
    pub name: String,
    child: Child,
}

impl Host {
    /// What the host sees at `path`.
    pub fn sees(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.child.id()))
    }

    /// Runs a command line in its network.
    pub fn run(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n {command}", self.child.id()))
    }

    /// Its rules, without counters.
    pub fn rules(&self) -> String {
        without_counters(&self.run("iptables-nft-save"))
    }

    /// How its last run ended; none if there was none.
    pub fn last_run(&self) -> Option<String> {
        let runs = fs::read_dir(self.sees("/run/store/runs")).ok()?;
        let last = runs.map(|e| e.expect("an entry").path()).max()?;
        let told = fs::read(last.join("run.json")).expect("run.json");
        let told: serde_json::Value = serde_json::from_slice(&told).expect("JSON");
        told["state"].as_str().map(str::to_owned)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hosts on one network, and what Ansible needs to reach them.
pub struct Fleet {
    pub hosts: Vec<Host>,
    folder: tempfile::TempDir,
}

impl Fleet {
    /// The hosts `h1` … of `test`, which has called [`served`] first.
    pub fn new(test: &str, size: usize) -> Fleet {
        let folder = tempfile::tempdir().expect("a folder");
        let keys = folder.path().display();
        for key in ["host", "user"] {
            run_words(&[
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-f",
                &format!("{keys}/{key}"),
            ]);
        }
        run("ip link set lo up");
        run("ip link add fleet type bridge");
        run("ip addr add 198.18.0.254/24 dev fleet");
        run("ip link set fleet up");
        let start = |n: usize| {
            let mut command = again(test, MACHINE);
            command.env(KEYS, folder.path()).stdin(Stdio::piped()).stdout(Stdio::null());
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
        let fleet = Fleet { hosts, folder };
        fleet.write("inventory.yml", &fleet.inventory());
        let collections = fleet.path("collections/ansible_collections/proxyshift");
        fs::create_dir_all(&collections).expect("a folder");
        std::os::unix::fs::symlink(collection(), collections.join("node")).expect("a link");
        fleet
    }

    fn inventory(&self) -> String {
        let mut text = "nodes:\n  hosts:\n".to_owned();
        for (host, n) in self.hosts.iter().zip(1..) {
            text += &format!("    {}:\n      ansible_host: 198.18.0.{n}\n", host.name);
        }
        text + &format!(
            "  vars:\n    ansible_user: root\n    ansible_ssh_private_key_file: {}\n    \
             ansible_remote_tmp: /run/ansible\n    ansible_python_interpreter: /usr/bin/python3\n    \
             ansible_ssh_common_args: -o ServerAliveInterval=5 -o ServerAliveCountMax=3 \
             -o UserKnownHostsFile=/dev/null\n    proxyshift_store: /run/store\n    proxyshift_wait: 1\n",
            self.path("user").display()
        )
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    /// Runs a playbook of the collection, by its full name, with the Ansible whose programs are in `bin`.
    pub fn play(&self, bin: &Path, playbook: &str, more: &[&str]) -> Played {
        let playbook = format!("proxyshift.node.{playbook}");
        let output = Command::new(bin.join("ansible-playbook"))
            .arg("-i")
            .arg(self.path("inventory.yml"))
            .arg(playbook)
            .args(more)
            .env("HOME", self.folder.path())
            .env("ANSIBLE_COLLECTIONS_PATH", self.path("collections"))
            .env("ANSIBLE_HOST_KEY_CHECKING", "False")
            .env("ANSIBLE_SSH_ARGS", "-o ControlMaster=auto -o ControlPersist=30s")
            .env("ANSIBLE_SSH_CONTROL_PATH_DIR", "/run/ssh")
            .env("ANSIBLE_NOCOLOR", "1")
            .env("LC_ALL", "C.UTF-8")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("ansible-playbook runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Played { code: output.status.code(), said }
    }
}

/// The collection with the program in it, as `make dist` makes it.
pub fn collection() -> PathBuf {
    let collection = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist/collection");
    let program = collection.join("plugins/modules/proxyshift");
    assert!(program.exists(), "{} is missing: run `make dist`", program.display());
    collection
}

fn run_words(argv: &[&str]) {
    crate::common::run_with("", argv);
}

/// How a playbook went.
pub struct Played {
    pub code: Option<i32>,
    pub said: String,
}

impl Played {
    /// Fails unless it ended well.
    pub fn well(self) -> Played {
        assert_eq!(self.code, Some(0), "{}", self.said);
        self
    }

    /// A host's number in the recap: `changed`, `failed`, `unreachable`; 0 for a host that is not
    /// there.
    pub fn count(&self, host: &str, what: &str) -> u32 {
        let recap = self.said.split("PLAY RECAP").nth(1).expect(&self.said);
        let line = recap.lines().find(|l| l.split(':').next().is_some_and(|n| n.trim() == host));
        let field = line.and_then(|l| l.split_whitespace().find_map(|w| w.strip_prefix(what)));
        field.map_or(0, |n| n.trim_start_matches('=').parse().expect("a number"))
    }
}
