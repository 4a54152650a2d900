//! Who runs kube-proxy, by its process, its cgroup and the static pods' manifests.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Controller, manifest};
use crate::error::{Error, Kind, Result};
use crate::state::tools::Process;

/// Where kubelet reads static pods, unless it is told otherwise.
const MANIFESTS: &str = "etc/kubernetes/manifests";

/// Where rke2 writes them, anew at each start.
const RKE2: &str = "var/lib/rancher/rke2/agent/pod-manifests/kube-proxy.yaml";

/// Units that start more than kube-proxy: a process that is not in a cgroup of its own is counted
/// as theirs.
const OTHERS: [&str; 9] = [
    "containerd",
    "cri-docker",
    "crio",
    "docker",
    "k3s",
    "k3s-agent",
    "kubelet",
    "rke2-agent",
    "rke2-server",
];

/// What to do where it cannot be told.
const NAME_IT: &str = "name how it is stopped and started in the playbook: \
    switch: {controller: {commands: {stop: [PROGRAM, …], start: [PROGRAM, …]}}}";

/// What a cgroup says of who started a process.
#[derive(Debug, PartialEq, Eq)]
enum StartedBy<'a> {
    Kubelet,
    Unit(&'a str),
    Unknown,
}

impl Controller {
    /// Who runs the kube-proxy `process`; `root` is `/`, but for tests.
    ///
    /// # Errors
    /// [`Kind::Contested`] for a DaemonSet: its configuration is that of every node.
    /// [`Kind::UnknownController`] where it cannot be told, with what to name instead.
    pub fn detect(process: &Process, root: &Path) -> Result<Controller> {
        let object = format!("{} (pid {})", process.name, process.pid);
        let unknown =
            |cause: String| Error::new(Kind::UnknownController, &object, cause).hint(NAME_IT);
        if process.name != "kube-proxy" {
            return Err(unknown("kube-proxy is a part of this program".into()));
        }
        let path = root.join(format!("proc/{}/cgroup", process.pid));
        let cgroup = fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
        match started_by(&cgroup) {
            StartedBy::Kubelet => pod(&object, root),
            StartedBy::Unit(unit) if OTHERS.contains(&unit.trim_end_matches(".service")) => {
                Err(unknown(format!("it is counted as a part of unit {unit}, which runs more")))
            }
            StartedBy::Unit(unit) => Ok(Controller::Systemd { unit: unit.to_owned() }),
            StartedBy::Unknown => {
                let line = cgroup.lines().last().unwrap_or_default();
                Err(unknown(format!("its cgroup `{line}` does not tell who started it")))
            }
        }
    }
}

/// Reads /proc/PID/cgroup: `0::/system.slice/kube-proxy.service`, or a line a hierarchy.
fn started_by(cgroup: &str) -> StartedBy<'_> {
    let paths = || cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    if paths().any(|path| path.contains("kubepods")) {
        return StartedBy::Kubelet;
    }
    // A user's own systemd has units that the system's does not know.
    let mut system = paths().filter(|path| !path.contains("/user.slice"));
    let unit = system.find_map(|path| path.rsplit('/').find(|part| part.ends_with(".service")));
    unit.map_or(StartedBy::Unknown, StartedBy::Unit)
}

/// The controller of a pod: a static one has its manifest on this node.
fn pod(object: &str, root: &Path) -> Result<Controller> {
    let mut found = manifests(&root.join(MANIFESTS));
    match (found.pop(), found.pop()) {
        (Some(manifest), None) => Ok(Controller::StaticPod { manifest }),
        (Some(one), Some(other)) => {
            let cause = format!("both {} and {} run kube-proxy", other.display(), one.display());
            Err(Error::new(Kind::NotFound, object, cause).hint("take the wrong one away"))
        }
        (None, _) if root.join(RKE2).exists() => {
            let cause = format!("rke2 writes its manifest /{RKE2} anew at each start");
            Err(Error::new(Kind::Contested, object, cause).hint(
                "set kube-proxy-arg in /etc/rancher/rke2/config.yaml and restart rke2, then run \
                 `proxyshift cleanup`",
            ))
        }
        (None, _) => {
            let cause = format!(
                "it is a pod without a manifest in /{MANIFESTS}, so of a DaemonSet: its \
                 configuration is that of every node, and only the API could undo a change"
            );
            Err(Error::new(Kind::Contested, object, cause).hint(
                "change the mode in the ConfigMap kube-system/kube-proxy, delete this node's pod, \
                 and run `proxyshift cleanup`; for a static pod elsewhere, name it in the \
                 playbook: switch: {controller: {static-pod: FILE}}",
            ))
        }
    }
}

/// The manifests in a folder that run kube-proxy, as kubelet would read them.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| entry.path())
        .filter(|path| fs::read_to_string(path).is_ok_and(|t| manifest::runs_kube_proxy(&t)))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_tell_who_started_a_process() {
        use StartedBy::*;
        for (cgroup, expected) in [
            ("0::/system.slice/kube-proxy.service\n", Unit("kube-proxy.service")),
            ("0::/system.slice/kp@a.service/inner\n", Unit("kp@a.service")),
            (
                "3:cpu:/\n1:name=systemd:/system.slice/kube-proxy.service\n0::/\n",
                Unit("kube-proxy.service"),
            ),
            (
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/x.scope\n",
                Kubelet,
            ),
            ("5:cpu:/kubepods/besteffort/pod7/9\n0::/\n", Kubelet),
            ("0::/kubelet.slice/kubelet-kubepods.slice/x.slice/crio-9.scope\n", Kubelet),
            (
                "2:x:/system.slice/containerd.service/kubepods-pod7.slice:cri-containerd:9\n",
                Kubelet,
            ),
            ("0::/user.slice/user-0.slice/session-3.scope\n", Unknown),
            ("0::/user.slice/user-0.slice/user@0.service/app.slice/kp.service\n", Unknown),
            ("0::/system.slice/docker-9.scope\n", Unknown),
            ("0::/\n", Unknown),
            ("", Unknown),
        ] {
            assert_eq!(started_by(cgroup), expected, "{cgroup}");
        }
    }

    /// A root with one process in a cgroup, and manifests.
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
        let process = Process {
            pid: 7,
            name: name.into(),
            args: vec![name.into()],
            version: None,
            version_source: None,
        };
        Controller::detect(&process, root.path()).map(|found| match found {
            Controller::StaticPod { manifest } => Controller::StaticPod {
                manifest: manifest.strip_prefix(root.path()).unwrap().to_owned(),
            },
            other => other,
        })
    }

    #[test]
    fn each_way_is_found_or_stops_before_a_change() {
        let pod = "0::/kubepods.slice/x.scope\n";
        let own = "spec:\n  containers:\n  - {name: kube-proxy}\n";
        let other = "spec:\n  containers:\n  - {name: etcd} # before kube-proxy\n";
        let at = |file: &str| format!("{MANIFESTS}/{file}");
        let (kp, hidden, etcd) = (at("kp.yaml"), at(".kp.yaml.stopped"), at("etcd.yaml"));

        let unit = detected("kube-proxy", "0::/system.slice/kp.service\n", &[]).unwrap();
        assert_eq!(unit, Controller::Systemd { unit: "kp.service".into() });
        let all = [(kp.as_str(), own), (&hidden, own), (&etcd, other)];
        let found = detected("kube-proxy", pod, &all).unwrap();
        assert_eq!(found, Controller::StaticPod { manifest: kp.clone().into() });

        for (name, cgroup, manifests, kind, cause) in [
            ("kube-proxy", pod, &[(etcd.as_str(), other)][..], Kind::Contested, "DaemonSet"),
            ("kube-proxy", pod, &[(RKE2, own)], Kind::Contested, "rke2"),
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
}
