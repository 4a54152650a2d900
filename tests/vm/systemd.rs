//! A systemd of a case's own, with processes and cgroups of its own.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use crate::cluster::BIN;
use crate::common::{poll, run};

/// Where the case, who is outside of its namespaces, writes units for it.
const UNITS: &str = "/run/systemd/system";

/// A unit that starts at once is all that this systemd has to do.
const TARGET: &str = "[Unit]\nDefaultDependencies=no\n";

/// What comes first in its namespaces. It sees the processes of its own only, no cgroup above its
/// own, and none of this machine's units.
const BOOT: &str = "mount -t tmpfs units /etc/systemd/system
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup /sys/fs/cgroup
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
    done
    echo 0 >$(mktemp -d /sys/fs/cgroup/systemd.XXXXXX)/cgroup.procs
    exec unshare -C sh -ec 'umount /sys/fs/cgroup
        mount -t cgroup2 cgroup /sys/fs/cgroup
        exec env -i container=test PATH=$PATH /lib/systemd/systemd --log-target=null --unit=test.target'";

/// It ends with this, and all that it started.
pub struct Systemd {
    child: Child,
    /// Its process, as seen from outside.
    pid: String,
}

impl Systemd {
    pub fn boot() -> Systemd {
        fs::create_dir_all(UNITS).expect(UNITS);
        fs::write(format!("{UNITS}/test.target"), TARGET).expect("a unit");
        let child = Command::new("unshare")
            .args(["-pfm", "--propagation", "private", "--mount-proc", "--kill-child"])
            .args(["sh", "-ec", BOOT])
            .spawn()
            .expect("unshare, of util-linux, runs");
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let pid = || fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
        poll("systemd begins", || Path::new("/run/systemd/private").exists());
        Systemd { pid: pid(), child }
    }

    /// What comes before a command, so that it runs inside.
    pub fn prefix(&self) -> Vec<String> {
        ["nsenter", "-t", &self.pid, "-p", "-m", "--"].map(str::to_owned).into()
    }

    pub fn ctl(&self, words: &str) -> String {
        run(&format!("{} systemctl {words}", self.prefix().join(" ")))
    }

    /// Starts a unit of this name and type, which says what it says in the file `log`, and waits
    /// until it has started, as its type means it.
    pub fn start(&self, name: &str, kind: &str, command: &str, log: &str) {
        let unit = format!(
            "[Unit]\nDefaultDependencies=no\n[Service]\nType={kind}\nTimeoutStartSec=300\nDelegate=yes\n\
             Environment=PATH={BIN}:/usr/sbin:/usr/bin\nExecStart={command}\n\
             StandardOutput=append:{log}\nStandardError=append:{log}\n",
        );
        fs::write(format!("{UNITS}/{name}.service"), unit).expect("a unit");
        self.ctl("daemon-reload");
        self.ctl(&format!("start {name}"));
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
