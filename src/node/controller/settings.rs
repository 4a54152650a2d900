//! Where kube-proxy is told its mode, and the change of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Controller, configuration, file, manifest};
use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::{CommandLine, Mode};
use crate::state::tools::Process;

/// A change of kube-proxy's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The mode that it shall run in.
    pub mode: Mode,
    /// Networks whose virtual servers it shall leave alone, besides those that it leaves alone now
    /// (`ipvs.excludeCIDRs`).
    pub exclude: Vec<IpNet>,
}

impl Change {
    /// The networks that `excluded` does not cover yet.
    pub(super) fn missing(&self, excluded: &[IpNet]) -> Vec<IpNet> {
        let mut missing: Vec<IpNet> = Vec::new();
        for network in self.exclude.iter().map(IpNet::trunc) {
            if !excluded.iter().chain(&missing).any(|known| known.contains(&network)) {
                missing.push(network);
            }
        }
        missing
    }
}

/// The file that tells kube-proxy its mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Settings {
    /// Its configuration file.
    Configuration {
        /// Where it is on the host.
        path: PathBuf,
    },
    /// The manifest of its static pod, in kube-proxy's arguments.
    Manifest {
        /// Where it is.
        path: PathBuf,
    },
}

impl Settings {
    /// Finds the file for a running kube-proxy and its controller.
    ///
    /// # Errors
    /// [`Kind::Parse`], with what to do, where the settings are in no file that can be edited:
    /// flags of a unit or a command, or a file within a container.
    pub fn find(controller: &Controller, process: &Process) -> Result<Settings> {
        let line = CommandLine::parse(&process.args)?;
        match (controller, line.config) {
            (Controller::StaticPod { manifest }, None) => {
                Ok(Settings::Manifest { path: manifest.clone() })
            }
            (Controller::StaticPod { manifest }, Some(config)) => {
                let name = manifest.display().to_string();
                let text = file::read(manifest)?.ok_or_else(|| {
                    Error::new(Kind::NotFound, name.as_str(), "no such manifest of a static pod")
                })?;
                let path = manifest::host_path(&name, &text, &config)?;
                Ok(Settings::Configuration { path })
            }
            (_, None) => Err(Error::new(
                Kind::Parse,
                format!("kube-proxy (pid {})", process.pid),
                format!("its mode is given by flags of {controller}, not by a configuration file"),
            )
            .hint(
                "`proxyshift check --write-config FILE` writes a file that means the same; \
                 start kube-proxy with --config=FILE in place of the flags",
            )),
            (_, Some(config)) => host_file(process.pid, config),
        }
    }

    /// The file's path on the host.
    pub fn path(&self) -> &Path {
        match self {
            Settings::Configuration { path } | Settings::Manifest { path } => path,
        }
    }

    /// The file's text with `change` made: the lines concerned and no other byte. The same text, if
    /// there is nothing to change.
    ///
    /// # Errors
    /// [`Kind::Parse`], with file and line, for a form that is not understood.
    pub fn edit(&self, text: &str, change: &Change) -> Result<String> {
        let name = self.path().display().to_string();
        match self {
            Settings::Configuration { .. } => configuration::edit(&name, text, change),
            Settings::Manifest { .. } => manifest::edit(&name, text, change),
        }
    }
}

/// A configuration file of a process that sees the host's own files.
fn host_file(pid: u32, config: String) -> Result<Settings> {
    let refused =
        |cause: &str| Error::new(Kind::Parse, format!("kube-proxy's --config={config}"), cause);
    if !config.starts_with('/') {
        return Err(refused("a path that is not absolute").hint("give it an absolute path"));
    }
    // The slash behind it leads into the root itself.
    let root = |path: String| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    match root(format!("/proc/{pid}/root/")) {
        Some(theirs) if Some(theirs) == root("/".into()) => {
            Ok(Settings::Configuration { path: config.into() })
        }
        Some(_) => Err(refused("a file within its container")
            .hint("run kube-proxy as a unit or a static pod, or change the file by a hook")),
        None => Err(refused("the process that has it is gone").hint("begin again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::controller::Argv;

    fn process(args: &[&str]) -> Process {
        Process {
            pid: std::process::id(),
            name: "kube-proxy".into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            version: None,
            version_source: None,
        }
    }

    #[test]
    fn the_file_depends_on_the_controller() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = dir.path().join("kube-proxy.yaml");
        let text = "spec:\n  containers:\n  - name: kube-proxy\n    volumeMounts:\n    \
                    - {name: c, mountPath: /c}\n  volumes:\n  \
                    - {name: c, hostPath: {path: /etc/kp}}\n";
        fs::write(&manifest, text).unwrap();
        let unit = Controller::Systemd { unit: "kube-proxy.service".into() };
        let pod = Controller::StaticPod { manifest: manifest.clone() };
        let with_file = process(&["kube-proxy", "--config=/c/f", "--proxy-mode=ipvs"]);
        let with_flags = process(&["kube-proxy", "--proxy-mode=ipvs"]);
        let path = |c, p| Settings::find(c, p).map(|s| s.path().display().to_string());
        assert_eq!(path(&unit, &with_file).unwrap(), "/c/f");
        assert_eq!(path(&pod, &with_file).unwrap(), "/etc/kp/f");
        let settings = Settings::find(&pod, &with_flags).unwrap();
        assert_eq!(settings, Settings::Manifest { path: manifest });
        let error = path(&unit, &with_flags).unwrap_err();
        assert!(error.cause.contains("unit kube-proxy.service"), "{error}");
        assert!(error.hint.unwrap().contains("--write-config"));
        assert_eq!(error.kind.exit_code(), 3);
        assert!(path(&unit, &process(&["kube-proxy", "--config=f"])).is_err());
    }

    #[test]
    fn networks_that_are_covered_are_not_missing() {
        let nets = |all: &[&str]| all.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let exclude = nets(&["10.0.0.5/32", "10.9.0.7/24", "10.9.0.0/24", "fd00::1/128"]);
        let change = Change { mode: Mode::Ipvs, exclude };
        assert_eq!(change.missing(&nets(&["10.0.0.0/16"])), nets(&["10.9.0.0/24", "fd00::1/128"]));
    }

    #[test]
    fn a_controller_of_commands_reads_the_hosts_files() {
        let argv = || Argv::try_from(vec!["true".to_owned()]).unwrap();
        let commands = Controller::Commands {
            stop: argv(),
            start: argv(),
            restart: None,
            program: "kube-proxy".into(),
        };
        let found = Settings::find(&commands, &process(&["kube-proxy", "--config", "/f"])).unwrap();
        assert_eq!(found.path(), Path::new("/f"));
    }
}
