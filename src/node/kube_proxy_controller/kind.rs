//! Shared by all kinds of controllers: the trait that reads a controller, and the facts about a
//! process by which its controller is detected.

use std::fmt::Display;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::supervisor::cgroup_of;
use crate::error::{Error, Kind, Result};
use crate::node::{files, processes};
use crate::runtime::ProcessId;
use crate::state::cgroup;
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::kube_proxy::{CommandLine, ConfigSource, Delivery};
use crate::state::tools::Process;

/// The hint of the error that the controller is unknown.
const NAME_IT: &str = "name how it is stopped and started in the playbook: \
    switch: {controller: {commands: {stop: [PROGRAM, …], start: [PROGRAM, …]}}}";

/// Each kind of controller implements this trait, to find which processes are its own, and where
/// its kube-proxy's configuration is.
pub trait ReadController {
    /// The process name of the kube-proxy that this controller runs.
    fn program(&self) -> &str {
        PROGRAM
    }

    /// Whether a process of that name is this controller's own; `cgroup` is the text of its
    /// /proc/PID/cgroup.
    fn owns(&self, cgroup: &str) -> bool;

    /// Whether this controller takes every process of that name for its own, because no cgroup
    /// shows which are.
    fn owns_by_name(&self) -> bool {
        false
    }

    /// This controller's own processes that run now, sorted by PID.
    ///
    /// # Errors
    /// When /proc cannot be read.
    fn processes(&self) -> Result<Vec<ProcessId>> {
        let own = |pid: u32| {
            let process = ProcessId::of(pid)?;
            self.owns(&cgroup_of(pid)?).then_some(process)
        };
        Ok(processes::pids(self.program())?.into_iter().filter_map(own).collect())
    }

    /// Finds the configuration of the running kube-proxy `process`, whose command line is `line`.
    ///
    /// # Errors
    /// [`Kind::Parse`], with a hint, if the configuration is not in a file that can be edited.
    fn config_source(&self, process: &Process, line: CommandLine) -> Result<ConfigSource>;

    /// The address of the API server by which kube-proxy is stopped and started here; none if no server
    /// is needed for it, or it is a name.
    ///
    /// # Errors
    /// When that cannot be read.
    fn api_server(&self) -> Result<Option<IpAddr>> {
        Ok(None)
    }

    /// Reads the text of kube-proxy's configuration as it is now; none if it is gone.
    ///
    /// # Errors
    /// As [`files::read`].
    fn read_config(&self, source: &ConfigSource) -> Result<Option<String>> {
        files::read(source.path()?)
    }
}

/// The facts about a kube-proxy process by which its controller is detected.
pub(super) struct Origin<'a> {
    /// The name and PID of the process, as errors name it.
    pub(super) object: String,
    /// The paths of the process's cgroups.
    pub(super) cgroups: Vec<&'a str>,
    /// The path of its configuration file, as the process has it.
    pub(super) config: Option<String>,
    /// How the process is delivered, as far as it shows that itself.
    pub(super) delivery: Delivery,
    /// The root of the file system: `/`, except in tests.
    pub(super) root: &'a Path,
}

impl<'a> Origin<'a> {
    /// The facts about `process`, of which `cgroup` is the text of /proc/PID/cgroup.
    pub(super) fn of(process: &Process, cgroup: &'a str, root: &'a Path) -> Origin<'a> {
        Origin {
            object: format!("{} (pid {})", process.name, process.pid),
            cgroups: cgroup::paths(cgroup),
            config: CommandLine::parse(&process.args).ok().and_then(|line| line.config),
            delivery: Delivery::of(process, None),
            root,
        }
    }

    /// True if the process runs in a container of a pod.
    pub(super) fn is_pod(&self) -> bool {
        cgroup::is_pod(&self.cgroups)
    }

    pub(super) fn unknown(&self, cause: String) -> Error {
        Error::new(Kind::UnknownController, &self.object, cause).hint(NAME_IT)
    }
}

/// The `--config` file of a process that has the host's root. `starter`, such as a unit, started
/// the process, and is named in errors.
pub(super) fn host_config(
    starter: &dyn Display,
    process: &Process,
    line: CommandLine,
) -> Result<ConfigSource> {
    let Some(config) = line.config else {
        let object = format!("kube-proxy (pid {})", process.pid);
        let cause = format!("its mode is given by flags of {starter}, not by a configuration file");
        return Err(Error::new(Kind::Parse, object, cause).hint(
            "`proxyshift check --write-config FILE` writes a file that means the same; start \
             kube-proxy with --config=FILE in place of the flags",
        ));
    };
    let refused =
        |cause: &str| Error::new(Kind::Parse, format!("kube-proxy's --config={config}"), cause);
    if !config.starts_with('/') {
        return Err(refused("a path that is not absolute").hint("give it an absolute path"));
    }
    // The path /proc/PID/root/ ends with a slash, so that the link `root` is followed.
    let root = |path: &str| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    match root(&format!("/proc/{}/root/", process.pid)) {
        Some(theirs) if Some(theirs) == root("/") => Ok(ConfigSource::File(config.into())),
        Some(_) => Err(refused("a file within its container")
            .hint("run kube-proxy as a unit or a static pod, or change the file by a hook")),
        None => Err(refused("the process that has it is gone").hint("begin again")),
    }
}
