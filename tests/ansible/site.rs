//! The machine from which Ansible is run: the real Ansible and sshd, keys and an inventory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::vm::cache;
use crate::common::{poll, run, run_with};

/// The file or program `name` that `tests/ansible/setup` put into this user's cache.
pub fn cached(name: &str) -> PathBuf {
    let path = cache().join("proxyshift/ansible").join(name);
    assert!(path.exists(), "{} is missing: run tests/ansible/setup", path.display());
    path
}

/// A running sshd, which ends when this value is dropped.
pub struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts sshd in the present namespaces, for the user whose key is in the folder `keys`. When this
/// returns, sshd listens.
pub fn sshd(keys: &Path) -> Sshd {
    // sshd needs the user of its unprivileged process. And root has an empty password, which must
    // not make sshd take the account for a locked one.
    let passwd = fs::read_to_string("/etc/passwd").expect("passwd");
    if !passwd.contains("\nsshd:") {
        // Under sshd, bash would read the .bashrc of the user who runs the test.
        let plain = passwd.replace(":/root:/bin/bash\n", ":/root:/bin/sh\n");
        fs::write("/etc/passwd", plain + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
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
    let sshd = Command::new(cached("sshd/usr/sbin/sshd"))
        .args(["-D", "-E", "/run/sshd.log", "-f", "/run/sshd.conf"])
        .env("LD_LIBRARY_PATH", cached("sshd/usr/lib/x86_64-linux-gnu"))
        .spawn()
        .expect("sshd starts");
    poll("sshd listens", || run("ss -Htln sport = :22").contains(":22"));
    Sshd(sshd)
}

/// A folder with ssh keys, the inventory and the installed collection.
pub struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    /// Creates the ssh keys, which must exist before the hosts start.
    pub fn new() -> Site {
        let folder = tempfile::tempdir().expect("a folder");
        for key in ["host", "user"] {
            let file = folder.path().join(key).display().to_string();
            run_with("", &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", &file]);
        }
        let site = Site { folder };
        let collections = site.path("collections/ansible_collections/proxyshift");
        fs::create_dir_all(&collections).expect("a folder");
        symlink(collection(), collections.join("node")).expect("a link");
        site
    }

    /// The folder with the keys.
    pub fn keys(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the inventory. `hosts` are pairs of a host's name and its address.
    pub fn inventory(&self, hosts: &[(String, String)]) {
        let mut text = "nodes:\n  hosts:\n".to_owned();
        for (name, address) in hosts {
            text += &format!("    {name}:\n      ansible_host: {address}\n");
        }
        text += &format!(
            "  vars:\n    ansible_user: root\n    ansible_ssh_private_key_file: {}\n    \
             ansible_remote_tmp: /run/ansible\n    ansible_python_interpreter: /usr/bin/python3\n    \
             ansible_ssh_common_args: -o ServerAliveInterval=5 -o ServerAliveCountMax=3 \
             -o UserKnownHostsFile=/dev/null\n    proxyshift_store: /run/store\n    proxyshift_wait: 1\n",
            self.path("user").display()
        );
        self.write("inventory.yml", &text);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    /// Runs a playbook of the collection, given by its full name, with the Ansible whose programs
    /// are in `bin`. Unless `within` is empty, the command `within` runs Ansible, for example in
    /// other namespaces.
    pub fn play(&self, within: &[&str], bin: &Path, playbook: &str, more: &[&str]) -> Played {
        let program = bin.join("ansible-playbook").display().to_string();
        let words: Vec<&str> = within.iter().copied().chain([&*program]).collect();
        let playbook = format!("proxyshift.node.{playbook}");
        let output = Command::new(words[0])
            .args(&words[1..])
            .arg("-i")
            .arg(self.path("inventory.yml"))
            .arg(playbook)
            .args(more)
            .env("HOME", self.folder.path())
            // Ansible's files are below the folder of the site, on this machine, from which a node
            // is probed.
            .env("ANSIBLE_REMOTE_TEMP", self.path("tmp"))
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
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        Played { code: output.status.code(), output: text }
    }
}

/// The folder of the collection, including the program, as `make dist` makes the folder.
pub fn collection() -> PathBuf {
    let collection = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/dist/collection");
    let program = collection.join("plugins/modules/proxyshift");
    let make = "make dist out=target/dist";
    assert!(program.exists(), "{} is missing: run `{make}`", program.display());
    collection
}

/// The exit code and the output of a playbook that has ended.
pub struct Played {
    pub code: Option<i32>,
    pub output: String,
}

impl Played {
    /// Fails unless the playbook succeeded.
    pub fn well(self) -> Played {
        assert_eq!(self.code, Some(0), "{}", self.output);
        self
    }

    /// The number that the recap gives for `what` on a host: `changed`, `failed` or `unreachable`;
    /// 0 for an unknown host.
    pub fn count(&self, host: &str, what: &str) -> u32 {
        let recap = self.output.split("PLAY RECAP").nth(1).expect(&self.output);
        let line = recap.lines().find(|l| l.split(':').next().is_some_and(|n| n.trim() == host));
        let field = line.and_then(|l| l.split_whitespace().find_map(|w| w.strip_prefix(what)));
        field.map_or(0, |n| n.trim_start_matches('=').parse().expect("a number"))
    }
}
