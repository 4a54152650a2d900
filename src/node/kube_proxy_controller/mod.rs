//! Finds the controller of kube-proxy on this node, and where kube-proxy's configuration is. Only
//! reads. Each kind of controller has one file in this module.

mod arrangement;
mod commands;
mod daemonset;
mod kind;
mod pod_update;
mod static_pod;
mod supervisor;
mod systemd;
mod unsupported;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use self::kind::Origin;
use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::controller::{PROGRAM, for_kind};
use crate::state::kube_proxy::{CommandLine, ConfigSource, Controller};
use crate::state::tools::Process;

pub(in crate::node) use self::arrangement::difference;
pub use self::daemonset::{contested, pods_of_node};
pub use self::kind::ReadController;
pub use self::pod_update::find_update;
pub use self::supervisor::{Predecessor, pod_of};

/// Detects one kind of controller. Returns `None` if the process has a controller of another kind,
/// and an error to end the search.
type Detect = fn(&Origin<'_>) -> Result<Option<Controller>>;

/// The detectors of all kinds, in the order in which they are tried.
const DETECTORS: [Detect; 4] =
    [static_pod::detect, daemonset::detect, unsupported::refuse, systemd::detect];

/// Detects the controller of the kube-proxy `process`. `root` is `/`, except in tests.
///
/// # Errors
/// [`crate::error::Kind::Contested`] for a pod that somebody else decides on, and
/// [`crate::error::Kind::Blocked`] for one of a DaemonSet in a cluster that is not arranged for moves.
/// [`crate::error::Kind::UnknownController`] if the node does not show what the controller
/// is; the hint says what to write in the playbook.
pub fn detect(process: &Process, root: &Path) -> Result<Controller> {
    let path = root.join(format!("proc/{}/cgroup", process.pid));
    if process.name != PROGRAM {
        let origin = Origin::of(process, "", root);
        return Err(origin.unknown("kube-proxy is a part of this program".into()));
    }
    let cgroup = fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
    let origin = Origin::of(process, &cgroup, root);
    for detect in DETECTORS {
        if let Some(controller) = detect(&origin)? {
            return Ok(controller);
        }
    }
    let line = cgroup.lines().last().unwrap_or_default();
    Err(origin.unknown(format!("its cgroup `{line}` does not tell who started it")))
}

/// Succeeds if the kube-proxy `process` is the controller's own, so that its end and its start can
/// be waited for.
///
/// # Errors
/// [`crate::error::Kind::UnknownController`], with the process's cgroup.
pub fn must_own(controller: &Controller, process: &Process, root: &Path) -> Result<()> {
    let path = root.join(format!("proc/{}/cgroup", process.pid));
    let cgroup = fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
    if for_kind!(controller, kind => kind.owns(&cgroup)) {
        return Ok(());
    }
    let line = cgroup.lines().last().unwrap_or_default();
    let cause = format!("its cgroup `{line}` is none of {controller}");
    let object = format!("{} (pid {})", process.name, process.pid);
    Err(Error::new(Kind::UnknownController, object, cause)
        .hint("name the controller that runs it in the playbook"))
}

/// Finds where the configuration of the running kube-proxy `process` under `controller` is.
///
/// # Errors
/// [`crate::error::Kind::Parse`], with a hint, if the configuration is not in a file that can be
/// edited: flags of a unit or a command, or a file inside a container.
pub fn config_source(controller: &Controller, process: &Process) -> Result<ConfigSource> {
    let line = CommandLine::parse(&process.args)?;
    for_kind!(controller, kind => kind.config_source(process, line))
}

/// The address of the API server by which `controller` stops and starts kube-proxy, if it needs one.
///
/// # Errors
/// As [`ReadController::api_server`].
pub fn api_server(controller: &Controller) -> Result<Option<IpAddr>> {
    for_kind!(controller, kind => kind.api_server())
}

/// Reads the text of kube-proxy's configuration as it is now; none if it is gone.
///
/// # Errors
/// As [`ReadController::read_config`].
pub fn read_config(controller: &Controller, source: &ConfigSource) -> Result<Option<String>> {
    for_kind!(controller, kind => kind.read_config(source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::argv::{Argv, Rerun};
    use crate::state::kube_proxy::controller::{Commands, StaticPod, SystemdUnit};

    #[test]
    fn cgroups_name_the_controller() {
        let pod = Err(Kind::Contested);
        let unknown = Err(Kind::UnknownController);
        let unit = |name: &str| Ok(Controller::Systemd(SystemdUnit { unit: name.to_owned() }));
        for (cgroup, expected) in [
            ("0::/system.slice/kube-proxy.service\n", unit("kube-proxy.service")),
            ("0::/system.slice/kp@a.service/inner\n", unit("kp@a.service")),
            (
                "3:cpu:/\n1:name=systemd:/system.slice/kube-proxy.service\n0::/\n",
                unit("kube-proxy.service"),
            ),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/x.scope\n",
                pod.clone(),
            ),
            ("5:cpu:/kubepods/besteffort/pod7/9\n0::/\n", pod.clone()),
            ("0::/kubelet.slice/kubelet-kubepods.slice/x.slice/crio-9.scope\n", pod.clone()),
            (
                "2:x:/system.slice/containerd.service/kubepods-pod7.slice:cri-containerd:9\n",
                pod.clone(),
            ),
            ("0::/user.slice/user-0.slice/session-3.scope\n", unknown.clone()),
            ("0::/user.slice/user-0.slice/user@0.service/app.slice/kp.service\n", unknown.clone()),
            ("0::/system.slice/docker-9.scope\n", unknown.clone()),
            ("0::/\n", unknown.clone()),
            ("", unknown.clone()),
        ] {
            let found = detected("kube-proxy", cgroup, &[]).map_err(|e| e.kind);
            assert_eq!(found, expected, "{cgroup}");
        }
    }

    /// Detects the controller of a process with this name and cgroup, under a root with these
    /// manifests.
    fn detected(name: &str, cgroup: &str, manifests: &[(&str, &str)]) -> Result<Controller> {
        let root = tempfile::tempdir().unwrap();
        let write = |path: String, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/7/cgroup".into(), cgroup);
        for (path, text) in manifests {
            write((*path).to_owned(), text);
        }
        let process =
            Process { pid: 7, name: name.into(), args: vec![name.into()], ..Process::default() };
        detect(&process, root.path()).map(|found| match found {
            Controller::StaticPod(StaticPod { manifest }) => Controller::StaticPod(StaticPod {
                manifest: manifest.strip_prefix(root.path()).unwrap().to_owned(),
            }),
            other => other,
        })
    }

    #[test]
    fn each_way_is_found_or_stops_before_a_change() {
        let pod = "0::/kubepods.slice/x.scope\n";
        let own = "spec:\n  containers:\n  - {name: kube-proxy}\n";
        let other = "spec:\n  containers:\n  - {name: etcd} # before kube-proxy\n";
        let at = |file: &str| format!("etc/kubernetes/manifests/{file}");
        let (kp, hidden, etcd) = (at("kp.yaml"), at(".kp.yaml.stopped"), at("etcd.yaml"));

        let unit = detected("kube-proxy", "0::/system.slice/kp.service\n", &[]).unwrap();
        assert_eq!(unit, Controller::Systemd(SystemdUnit { unit: "kp.service".into() }));
        let all = [(kp.as_str(), own), (&hidden, own), (&etcd, other)];
        let found = detected("kube-proxy", pod, &all).unwrap();
        assert_eq!(found, Controller::StaticPod(StaticPod { manifest: kp.clone().into() }));

        for (name, cgroup, manifests, kind, cause) in [
            ("kube-proxy", pod, &[(etcd.as_str(), other)][..], Kind::Contested, "DaemonSet"),
            ("kube-proxy", pod, &[(unsupported::RKE2, own)], Kind::Contested, "rke2"),
            ("kube-proxy", pod, &[(kp.as_str(), own), (&etcd, own)], Kind::NotFound, "both"),
            (
                "kube-proxy",
                "0::/system.slice/kubelet.service\n",
                &[],
                Kind::UnknownController,
                "part of unit",
            ),
            ("kube-proxy", "0::/\n", &[], Kind::UnknownController, "`0::/`"),
            (
                "k3s",
                "0::/system.slice/k3s.service\n",
                &[],
                Kind::UnknownController,
                "a part of this program",
            ),
        ] {
            let error = detected(name, cgroup, manifests).unwrap_err();
            assert_eq!((error.kind, error.kind.exit_code()), (kind, 3), "{error}");
            assert!(error.cause.contains(cause) && error.hint.is_some(), "{error}");
        }
    }

    fn process(args: &[&str]) -> Process {
        Process {
            pid: std::process::id(),
            name: "kube-proxy".into(),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            ..Process::default()
        }
    }

    #[test]
    fn a_named_controller_must_run_the_process() {
        let root = tempfile::tempdir().unwrap();
        let mut process = process(&["kube-proxy"]);
        process.pid = 7;
        fs::create_dir_all(root.path().join("proc/7")).unwrap();
        let unit = Controller::Systemd(SystemdUnit { unit: "kube-proxy".into() });
        let pod = Controller::StaticPod(StaticPod { manifest: "/kp.yaml".into() });
        let argv = || Argv::try_from(vec!["true".to_owned()]).unwrap();
        let (stop, start, program) = (argv(), argv(), "kube-proxy".into());
        let commands = Commands { stop, start, restart: None, again: Rerun::Ask, program };
        let commands = Controller::Commands(commands);
        for (cgroup, expected) in [
            ("0::/system.slice/kube-proxy.service\n", [true, false, true]),
            ("0::/kubepods.slice/kubepods-pod7.slice/a.scope\n", [false, true, true]),
            ("0::/user.slice/user-0.slice/session-3.scope\n", [false, false, true]),
        ] {
            fs::write(root.path().join("proc/7/cgroup"), cgroup).unwrap();
            let owns = [&unit, &pod, &commands].map(|controller| {
                let owned = must_own(controller, &process, root.path());
                assert!(owned.as_ref().err().is_none_or(|e| e.kind.exit_code() == 3), "{owned:?}");
                owned.is_ok()
            });
            assert_eq!(owns, expected, "{cgroup}");
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
        let unit = Controller::Systemd(SystemdUnit { unit: "kube-proxy.service".into() });
        let pod = Controller::StaticPod(StaticPod { manifest: manifest.clone() });
        let with_file = process(&["kube-proxy", "--config=/c/f", "--proxy-mode=ipvs"]);
        let with_flags = process(&["kube-proxy", "--proxy-mode=ipvs"]);
        let path = |c, p| config_source(c, p).map(|s| s.to_string());
        assert_eq!(path(&unit, &with_file).unwrap(), "/c/f");
        assert_eq!(path(&pod, &with_file).unwrap(), "/etc/kp/f");
        assert_eq!(config_source(&pod, &with_flags).unwrap(), ConfigSource::Manifest(manifest));
        let error = path(&unit, &with_flags).unwrap_err();
        assert!(error.cause.contains("unit kube-proxy.service"), "{error}");
        assert!(error.hint.unwrap().contains("--write-config"));
        assert_eq!(error.kind.exit_code(), 3);
        assert!(path(&unit, &process(&["kube-proxy", "--config=f"])).is_err());
    }

    #[test]
    fn a_controller_of_commands_reads_the_hosts_files() {
        let argv = || Argv::try_from(vec!["true".to_owned()]).unwrap();
        let commands = Controller::Commands(Commands {
            stop: argv(),
            start: argv(),
            restart: None,
            again: Rerun::Ask,
            program: "kube-proxy".into(),
        });
        let found = config_source(&commands, &process(&["kube-proxy", "--config", "/f"])).unwrap();
        assert_eq!(found, ConfigSource::File("/f".into()));
    }
}
