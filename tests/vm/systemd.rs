//! A systemd for one case, which has its own processes and cgroups.

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use crate::cluster::BIN;
use crate::common::{poll_for, run};

/// The folder into which the case writes units, from outside of systemd's namespaces.
const UNITS: &str = "/run/systemd/system";

/// How long systemd may take to begin, on an emulated CPU.
const CEILING: Duration = Duration::from_secs(240);

/// The default target, which makes this systemd do nothing but start units when it is asked.
const TARGET: &str = "[Unit]\nDefaultDependencies=no\n";

/// The script that becomes systemd, as the first program in its namespaces. This systemd sees only
/// its own processes, no cgroup above its own, and neither the units nor the /tmp of this machine: a
/// unit with default dependencies would let it empty that.
const BOOT: &str = "mount -t tmpfs -o mode=1777 tmp /tmp
    mount -t tmpfs units /etc/systemd/system
    [ -e /sys/fs/cgroup/cgroup.procs ] || mount -t cgroup2 cgroup /sys/fs/cgroup
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
    done
    echo 0 >$(mktemp -d /sys/fs/cgroup/systemd.XXXXXX)/cgroup.procs
    exec unshare -C sh -ec 'umount /sys/fs/cgroup
        mount -t cgroup2 cgroup /sys/fs/cgroup
        exec env -i container=test PATH=$PATH /lib/systemd/systemd --log-target=null --unit=test.target'";

/// A running systemd. It and its processes end when this value is dropped.
pub struct Systemd {
    child: Child,
    /// The PID of this systemd, as seen from outside of its namespaces.
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
        // Should it not begin, it is ended all the same: it holds the output of the case.
        let mut systemd = Systemd { pid: String::new(), child };
        poll_for(CEILING, "systemd begins", || Path::new("/run/systemd/private").exists());
        systemd.pid = fs::read_to_string(children).unwrap_or_default().trim().to_owned();
        systemd
    }

    /// A systemd with a process that stands for the node's kubelet. Without one, the processes in
    /// systemd's namespaces would not count as a node's.
    pub fn of_node() -> Systemd {
        let systemd = Systemd::boot();
        let kubelet = format!("{BIN}/kubelet");
        fs::create_dir_all(BIN).expect(BIN);
        fs::copy("/bin/sleep", &kubelet).expect("a copy of sleep");
        systemd.start("kubelet", "exec", &format!("{kubelet} infinity"), "/run/kubelet.log");
        systemd
    }

    /// The beginning of a command line that runs a program inside of systemd's namespaces.
    pub fn prefix(&self) -> Vec<String> {
        ["nsenter", "-t", &self.pid, "-p", "-m", "--"].map(str::to_owned).into()
    }

    pub fn ctl(&self, words: &str) -> String {
        run(&format!("{} systemctl {words}", self.prefix().join(" ")))
    }

    /// Starts a unit called `name` whose service type is `kind`, with its output in the file `log`.
    /// Waits until the unit has started; what counts as started depends on the service type.
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
