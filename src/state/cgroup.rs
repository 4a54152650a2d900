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

/// The uid of the pod in whose container a process with these control groups runs: the kubelet names
/// the pod's group by it, and systemd's driver writes `_` for each `-` there.
pub fn pod_uid(paths: &[impl AsRef<str>]) -> Option<String> {
    let parts = paths.iter().filter(|path| path.as_ref().contains("kubepods"));
    let mut parts = parts.flat_map(|path| path.as_ref().split(['/', ':']));
    parts.find_map(|part| {
        let slice = part.strip_suffix(".slice").and_then(|slice| slice.rsplit_once("-pod"));
        let uid = match slice {
            Some((_, uid)) => uid.replace('_', "-"),
            None => part.strip_prefix("pod")?.to_owned(),
        };
        (uid.len() == UID && uid.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())).then_some(uid)
    })
}

/// The length of a uid: 32 digits and 4 dashes.
const UID: usize = 36;

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
    fn a_pod_is_named_by_its_uid_with_each_driver() {
        let uid = "0a1b2c3d-0000-1111-2222-333344445555";
        let of_systemd = uid.replace('-', "_");
        for text in [
            format!("0::/kubepods/besteffort/pod{uid}/9\n"),
            format!("5:cpu:/kubepods/pod{uid}/9\n0::/\n"),
            format!("0::/kubelet/kubepods/burstable/pod{uid}/9\n"),
            format!("0::/kubepods.slice/kubepods-pod{of_systemd}.slice/cri-containerd-9.scope\n"),
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
                 kubelet-kubepods-besteffort-pod{of_systemd}.slice/crio-9.scope\n"
            ),
            format!(
                "2:x:/system.slice/containerd.service/kubepods-pod{of_systemd}.slice:cri-containerd:9\n"
            ),
        ] {
            assert_eq!(pod_uid(&paths(&text)).as_deref(), Some(uid), "{text}");
        }
        for text in ["0::/kubepods/pod7/9\n".to_owned(), format!("0::/x/pod{uid}/9\n")] {
            assert_eq!(pod_uid(&paths(&text)), None, "{text}");
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
