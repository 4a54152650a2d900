//! Who runs a process, by the paths of its control groups. The kernel puts a process into the
//! control group of its parent, and only root moves it, so unlike a name it cannot be chosen by a
//! stranger.

/// The paths in the text of /proc/PID/cgroup, which has `0::/system.slice/kube-proxy.service`, or
/// one such line per hierarchy.
pub fn paths(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).collect()
}

/// Whether a process with these control groups runs in a container of a pod.
pub fn is_pod(paths: &[impl AsRef<str>]) -> bool {
    paths.iter().any(|path| path.as_ref().contains("kubepods"))
}

/// Whether a process with these control groups may run in a container of a pod: a kubelet names the groups
/// as it is configured, so only the API server knows.
pub fn may_be_pod(paths: &[impl AsRef<str>]) -> bool {
    let names_one = |path: &str| pod_signs(path).next().is_some();
    is_pod(paths) || of_the_system(paths).any(names_one)
}

/// What an element of a path says of the pod that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodSign<'p> {
    /// The uid of a pod: `pod0a1b…`, and of systemd's driver, which writes `_` for each `-` there,
    /// `kubepods-besteffort-pod0a1b….slice`.
    Uid(String),
    /// The id of a container: `9f8e…`, and of systemd's driver `cri-containerd-9f8e….scope`.
    Container(&'p str),
}

/// The signs of pods in a path, from the outside to the inside.
pub fn pod_signs(path: &str) -> impl Iterator<Item = PodSign<'_>> {
    // containerd without systemd's driver, below a unit: `kubepods-pod….slice:cri-containerd:9f8e…`.
    path.split(['/', ':']).filter_map(sign)
}

fn sign(part: &str) -> Option<PodSign<'_>> {
    let slice = part.strip_suffix(".slice").and_then(|slice| slice.rsplit_once("-pod"));
    let uid = match slice {
        Some((_, uid)) => Some(uid.replace('_', "-")),
        None => part.strip_prefix("pod").map(str::to_owned),
    };
    if let Some(uid) = uid.filter(|uid| is_uid(uid)) {
        return Some(PodSign::Uid(uid));
    }
    let scope = part.strip_suffix(".scope").and_then(|scope| scope.rsplit_once('-'));
    let id = scope.map_or(part, |(_, id)| id);
    is_container_id(id).then_some(PodSign::Container(id))
}

/// Whether a text has the form of a uid: 32 digits and 4 dashes.
fn is_uid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

/// Whether a text has the form of a container's id: of containerd, CRI-O and docker 64 digits.
fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a process with these control groups runs in a container, of a pod or not.
pub fn is_container(paths: &[impl AsRef<str>]) -> bool {
    // docker and podman name a scope, or with cgroupfs a folder.
    const ENGINES: [&str; 6] =
        ["docker-", "docker", "nerdctl-", "libpod-", "cri-containerd-", "crio-"];
    let is_engine = |part: &str| {
        ENGINES.iter().any(|engine| match engine.strip_suffix('-') {
            Some(_) => part.starts_with(engine) && part.ends_with(".scope"),
            None => part == *engine,
        })
    };
    is_pod(paths) || paths.iter().any(|path| path.as_ref().split('/').any(is_engine))
}

/// The innermost systemd unit that a process with these control groups belongs to.
pub fn unit(paths: &[impl AsRef<str>]) -> Option<&str> {
    let mut paths = of_the_system(paths);
    paths.find_map(|path| path.rsplit('/').find(|part| part.ends_with(".service")))
}

/// The paths without those of units of a user's own systemd, which the system's systemd does not
/// know.
pub fn of_the_system(paths: &[impl AsRef<str>]) -> impl Iterator<Item = &str> {
    paths.iter().map(AsRef::as_ref).filter(|path| !path.contains("/user.slice"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_the_signs_of_pods_with_each_driver() {
        let uid = "0a1b2c3d-0000-1111-2222-333344445555";
        let (of_systemd, id) = (uid.replace('-', "_"), "9".repeat(64));
        let (pod, container) = (PodSign::Uid(uid.to_owned()), PodSign::Container(&id));
        let both = [pod.clone(), container.clone()];
        for (path, expected) in [
            (format!("/kubepods/besteffort/pod{uid}/{id}"), &both[..]),
            (format!("/kubepods/pod{uid}/{id}"), &both),
            (format!("/kubelet/kubepods/burstable/pod{uid}/{id}"), &both),
            (
                format!("/kubepods.slice/kubepods-pod{of_systemd}.slice/cri-containerd-{id}.scope"),
                &both,
            ),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
                     kubelet-kubepods-besteffort-pod{of_systemd}.slice/crio-{id}.scope"
                ),
                &both,
            ),
            (
                format!(
                    "/system.slice/containerd.service/kubepods-pod{of_systemd}.slice:cri-containerd:{id}"
                ),
                &both,
            ),
            // A kubelet without groups for pods.
            (format!("/pxs-node1/{id}"), &both[1..]),
            (format!("/system.slice/docker-{id}.scope"), &both[1..]),
            ("/kubepods/pod7/9".to_owned(), &[]),
            (format!("/kubepods/pod{id}/9"), &[]),
            ("/system.slice/kube-proxy.service".to_owned(), &[]),
            ("/".to_owned(), &[]),
        ] {
            assert_eq!(pod_signs(&path).collect::<Vec<_>>(), expected, "{path}");
            let may_be = !expected.is_empty() || path.starts_with("/kubepods");
            assert_eq!(may_be_pod(&[&path]), may_be, "{path}");
            assert!(!may_be_pod(&[format!("/user.slice/user-7.slice/{id}")]));
        }
    }

    #[test]
    fn control_groups_name_who_runs_a_process() {
        for (text, pod, container, service) in [
            ("0::/system.slice/kube-proxy.service\n", false, false, Some("kube-proxy.service")),
            ("0::/kubepods.slice/kubepods-pod7.slice/cri-containerd-9.scope\n", true, true, None),
            ("0::/system.slice/docker-9.scope\n", false, true, None),
            ("4:cpu:/docker/9\n0::/\n", false, true, None),
            ("0::/machine.slice/libpod-9.scope\n", false, true, None),
            ("0::/user.slice/user-0.slice/user@0.service/kp.service\n", false, false, None),
            ("0::/system.slice/docker.service\n", false, false, Some("docker.service")),
            ("0::/\n", false, false, None),
        ] {
            let paths = paths(text);
            let found = (is_pod(&paths), is_container(&paths), unit(&paths));
            assert_eq!(found, (pod, container, service), "{text}");
        }
    }
}
