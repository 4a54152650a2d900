//! Which pod a process is of.

use super::ClusterPod;
use crate::state::cgroup::{self, PodSign};

/// The one of `pods`, which must be all pods of this node, in which a process with these control groups
/// runs. How a kubelet names the groups does not matter: what counts are the uids and the containers that
/// the API server has.
///
/// A process may make further groups below its own, and choose their names. So in each path the outermost
/// sign counts that is of any of the pods. None if two hierarchies tell two pods.
pub fn pod_of_process<'a>(
    pods: &'a [ClusterPod],
    cgroups: &[impl AsRef<str>],
) -> Option<&'a ClusterPod> {
    let has = |pod: &ClusterPod, sign: &PodSign<'_>| match sign {
        PodSign::Uid(uid) => pod.metadata.uid == *uid,
        PodSign::Container(id) => pod.container_ids().any(|own| own == *id),
    };
    let of_sign = |sign: PodSign<'_>| pods.iter().find(|pod| has(pod, &sign));
    let of_path = |path: &'_ str| cgroup::pod_signs(path).find_map(of_sign);
    let mut found = cgroup::of_the_system(cgroups).filter_map(of_path);
    let first = found.next()?;
    found.all(|pod| pod.metadata.uid == first.metadata.uid).then_some(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(digit: &str) -> ClusterPod {
        let id = format!("containerd://{}", digit.repeat(64));
        let pod = json!({
            "metadata": {"name": digit, "uid": uid(digit)},
            "status": {"containerStatuses": [{"containerID": id}, {"containerID": null}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    fn uid(digit: &str) -> String {
        format!("{digit}0000000-0000-0000-0000-000000000000")
    }

    #[test]
    fn a_pod_is_found_whatever_the_layout() {
        let pods = [pod("a"), pod("b")];
        let (uid_a, uid_b) = (uid("a"), uid("b"));
        let slice_a = uid_a.replace('-', "_");
        let [id_a, id_b, other] = ["a", "b", "c"].map(|digit| digit.repeat(64));
        let of = |paths: &[String]| pod_of_process(&pods, paths).map(|pod| &*pod.metadata.name);
        for (path, expected) in [
            (format!("/pxs-node1/{id_a}"), Some("a")),
            (format!("/kubepods/besteffort/pod{uid_a}/{other}"), Some("a")),
            (format!("/kubepods.slice/kubepods-besteffort-pod{slice_a}.slice/x.scope"), Some("a")),
            (format!("/besteffort.slice/cri-containerd-{id_b}.scope"), Some("b")),
            (format!("/docker/{other}/kubelet/kubepods/besteffort/pod{uid_b}/{id_b}"), Some("b")),
            (format!("/kubepods/pod{}/{other}/kubepods/pod{uid_b}/{id_b}", uid("d")), Some("b")),
            // What the API server does not know is of no pod.
            (format!("/kubepods/besteffort/pod{}/{other}", uid("d")), None),
            (format!("/pxs-node1/{other}"), None),
            ("/kubepods/x".to_owned(), None),
            ("/".to_owned(), None),
        ] {
            assert_eq!(of(std::slice::from_ref(&path)), expected, "{path}");
            assert_eq!(of(&["/".to_owned(), path.clone(), path.clone()]), expected, "{path}");
        }
        assert_eq!(
            of(&[format!("/kubepods/pod{uid_a}/x"), format!("/kubepods/pod{uid_b}/x")]),
            None
        );
    }

    #[test]
    fn a_process_does_not_choose_its_pod() {
        let pods = [pod("a"), pod("b")];
        let (id_a, id_b) = ("a".repeat(64), "b".repeat(64));
        for path in [
            // Groups that a process of pod b made below its own.
            format!("/pxs-node1/{id_b}/{id_a}"),
            format!("/kubepods/besteffort/pod{}/{id_b}/kubepods/pod{}/{id_a}", uid("b"), uid("a")),
            format!("/kubepods/besteffort/pod{}/{id_a}", uid("b")),
        ] {
            let found = pod_of_process(&pods, &[&path]).map(|pod| &*pod.metadata.name);
            assert_eq!(found, Some("b"), "{path}");
        }
        // The groups below a user's own systemd are that user's.
        let path = format!("/user.slice/user-1000.slice/user@1000.service/{id_a}");
        assert_eq!(pod_of_process(&pods, &[path]), None);
    }
}
