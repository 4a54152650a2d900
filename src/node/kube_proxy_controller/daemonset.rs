//! Detects kube-proxy as a pod of a DaemonSet, and reads how the cluster is arranged for its Node.
//!
//! A Node moves by its label [`MODE_LABEL`]: one DaemonSet passes over the Nodes that have it, and
//! another has its pods there alone (`proxyshift cluster prepare`). Whatever made them, what is read
//! here is what counts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::kind::{Origin, ReadController};
use super::unsupported::RKE2;
use crate::api::read;
use crate::error::{Error, Kind, Result};
use crate::node::kubelet;
use crate::state::cgroup;
use crate::state::kube_proxy::KubeProxyConfig;
use crate::state::kube_proxy::controller::{ConfigMapKey, DaemonSetPair, ModeDaemonSet};
use crate::state::kube_proxy::{CommandLine, ConfigSource, Controller, Delivery, Mode};
use crate::state::kubernetes::{
    ApiKind, ClusterNode, ClusterPod, ConfigMapObject, DaemonSet, MODE_LABEL, ObjectRef,
    mode_of_terms, name_for_mode,
};
use crate::state::tools::Process;
use crate::yaml;

/// How long the API server may take to be there before a run begins.
const BEFORE: Duration = Duration::from_secs(10);

/// The next step where the cluster is not arranged.
const PREPARE: &str = "an administrator arranges the cluster, once, without a restart: \
    `proxyshift cluster prepare --to MODE`";

pub(super) fn detect(origin: &Origin<'_>) -> Result<Option<Controller>> {
    let is_other = matches!(origin.delivery, Delivery::Rke2 | Delivery::Managed(_))
        || origin.root.join(RKE2).exists();
    if !origin.is_pod() || is_other {
        return Ok(None);
    }
    let Some(kubeconfig) = kubelet::kubeconfig(origin.root)? else { return Ok(None) };
    let (Some(uid), Some(config)) = (cgroup::pod_uid(&origin.cgroups), &origin.config) else {
        return Ok(None);
    };
    let node = kubelet::node_name(&kubeconfig)?;
    let pods = pods_of_node(&kubeconfig, &node, BEFORE)?;
    let Some(pod) = pods.iter().find(|pod| pod.metadata.uid == uid) else { return Ok(None) };
    let Some(owner) = pod.metadata.controller().filter(|owner| owner.kind == "DaemonSet") else {
        return Ok(None);
    };
    let key = Path::new(config).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let reader =
        ArrangementReader { kubeconfig: &kubeconfig, namespace: &pod.metadata.namespace, key };
    let node = reader.node(&node)?;
    let label = node.metadata.labels.get(MODE_LABEL).cloned();
    // The other's name is this one's with the mode.
    let name = match &label {
        None => owner.name.as_str(),
        Some(mode) => owner.name.strip_suffix(&format!("-{mode}")).ok_or_else(|| {
            let cause = format!("runs here, where the Node has the label {MODE_LABEL}={mode}");
            contested(&reader.reference(&owner.name), cause)
        })?,
    };
    let ArrangedPair { unlabelled, labelled, .. } = reader.arrangement(name)?;
    let is_moved = label.is_some();
    let (current, other) = if is_moved { (labelled, unlabelled) } else { (unlabelled, labelled) };
    if current.uid != owner.uid || current.label != label {
        let cause = format!(
            "has no pod here, where the Node has the label {MODE_LABEL}={}",
            label.as_deref().unwrap_or("(none)")
        );
        return Err(contested(&reader.reference(&current.name), cause));
    }
    let pair = DaemonSetPair {
        node: node.metadata.name,
        node_uid: node.metadata.uid,
        namespace: pod.metadata.namespace.clone(),
        kubeconfig: kubeconfig.clone(),
        current,
        other,
    };
    let own: Vec<&str> = pair.own(&pods).map(|pod| pod.metadata.name.as_str()).collect();
    if own.len() != 1 {
        let cause = format!("kube-proxy has {} pods on this Node: {}", own.len(), own.join(", "));
        return Err(contested(&reader.reference(name), cause));
    }
    Ok(Some(Controller::DaemonSet(Box::new(pair))))
}

/// The pods of this Node, in all namespaces.
///
/// # Errors
/// [`Kind::Blocked`] when they cannot be read `within` that time.
pub fn pods_of_node(kubeconfig: &Path, node: &str, within: Duration) -> Result<Vec<ClusterPod>> {
    let selector = format!("spec.nodeName={node}");
    let selectors = [("fieldSelector", selector.as_str())];
    kubelet::request(kubeconfig, within, |client| {
        read::list_of_kind(client, ApiKind::Pod, None, &selectors)
    })
    .map_err(|failure| kubelet::error(&format!("the pods of Node {node}"), &failure))
}

/// Reads how the cluster is arranged.
struct ArrangementReader<'a> {
    kubeconfig: &'a Path,
    namespace: &'a str,
    /// The key of kube-proxy's configuration in a ConfigMap.
    key: String,
}

/// How the cluster is arranged.
struct ArrangedPair {
    unlabelled: ModeDaemonSet,
    labelled: ModeDaemonSet,
    /// The configurations of both.
    texts: [String; 2],
}

impl ArrangementReader<'_> {
    fn reference(&self, name: &str) -> ObjectRef {
        ObjectRef::new(ApiKind::DaemonSet, self.namespace, name)
    }

    /// An object. Of what this node may not read, or what is not there, the cluster is not prepared.
    fn object<T: serde::de::DeserializeOwned>(&self, named: &ObjectRef) -> Result<T> {
        kubelet::request(self.kubeconfig, BEFORE, |client| read::read(client, named))
            .map_err(|failure| kubelet::error(&named.to_string(), &failure).hint(PREPARE))
    }

    fn node(&self, name: &str) -> Result<ClusterNode> {
        self.object(&ObjectRef::of_cluster(ApiKind::Node, name))
    }

    /// The DaemonSet `name` of the Nodes without the label, and the one of those that have it.
    ///
    /// # Errors
    /// [`Kind::Blocked`], naming what is not arranged so that the label alone moves a Node.
    fn arrangement(&self, name: &str) -> Result<ArrangedPair> {
        let unlabelled: DaemonSet = self.object(&self.reference(name))?;
        let mode = mode_of_terms(&unlabelled.spec.template["spec"], "NotIn").ok_or_else(|| {
            let cause = format!("does not pass over Nodes by the label {MODE_LABEL}");
            unprepared(&self.reference(name), cause)
        })?;
        let mode: Mode = mode.parse().map_err(|_| {
            let cause =
                format!("passes over Nodes with the label {MODE_LABEL}={mode}, which is no mode");
            unprepared(&self.reference(name), cause)
        })?;
        let named = self.reference(&name_for_mode(name, mode));
        let labelled: DaemonSet = self.object(&named)?;
        if mode_of_terms(&labelled.spec.template["spec"], "In") != Some(mode.name()) {
            let cause = format!("does not select the Nodes with the label {MODE_LABEL}={mode}");
            return Err(unprepared(&named, cause));
        }
        for set in [&unlabelled, &labelled] {
            if !set.is_on_delete() {
                let cause =
                    "has not the update strategy OnDelete, so its pods may be replaced any time";
                return Err(unprepared(&self.reference(&set.metadata.name), cause));
            }
        }
        let images = |set: &DaemonSet| -> BTreeMap<String, String> {
            set.pod_spec().containers.into_iter().map(|c| (c.name, c.image)).collect()
        };
        if images(&unlabelled) != images(&labelled) {
            let cause = format!(
                "has another image than {}: the move would change the version too",
                named.name
            );
            return Err(unprepared(&self.reference(name), cause));
        }
        let (unlabelled, first) = self.of_mode(&unlabelled, None)?;
        let (labelled, second) = self.of_mode(&labelled, Some(mode.name()))?;
        if labelled.mode != mode || unlabelled.mode == mode {
            let [a, b] =
                [&unlabelled, &labelled].map(|set| format!("{} {}", set.config_map, set.mode));
            let cause = format!("the mode of {a}, and of {b}");
            return Err(unprepared(&named, cause));
        }
        let arrangement = ArrangedPair { unlabelled, labelled, texts: [first, second] };
        let [a, b] = &arrangement.texts;
        let other = difference(a, b, &["mode"])?;
        if let Some(key) = other {
            let cause = format!("`{key}` is not as in {}", arrangement.unlabelled.config_map);
            let map = &arrangement.labelled.config_map;
            return Err(Error::new(Kind::Blocked, map.to_string(), cause).hint(PREPARE));
        }
        Ok(arrangement)
    }

    /// A DaemonSet of Nodes with this label, with its configuration.
    fn of_mode(&self, set: &DaemonSet, label: Option<&str>) -> Result<(ModeDaemonSet, String)> {
        let pod = ClusterPod { spec: set.pod_spec(), ..ClusterPod::default() };
        let mut missing = None;
        for name in pod.config_maps() {
            let named = ObjectRef::new(ApiKind::ConfigMap, self.namespace, name);
            let mut map: ConfigMapObject = self.object(&named)?;
            let Some(text) = map.data.remove(&self.key) else {
                missing = Some(named);
                continue;
            };
            let config_map = ConfigMapKey {
                namespace: self.namespace.to_owned(),
                name: name.to_owned(),
                key: self.key.clone(),
            };
            let mode = KubeProxyConfig::parse(&config_map.to_string(), &text)?.mode();
            let found = ModeDaemonSet {
                name: set.metadata.name.clone(),
                uid: set.metadata.uid.clone(),
                label: label.map(str::to_owned),
                config_map,
                mode,
            };
            return Ok((found, text));
        }
        let named = missing.unwrap_or_else(|| self.reference(&set.metadata.name));
        Err(unprepared(&named, format!("has no {} of kube-proxy", self.key)))
    }
}

/// The first key by which two configurations differ in what they mean, but for the keys `aside`.
fn difference(a: &str, b: &str, aside: &[&str]) -> Result<Option<String>> {
    type Document = BTreeMap<String, Value>;
    let [a, b] = [a, b].map(|text| yaml::parse::<Document>("kube-proxy's configuration", text));
    let (a, b) = (a?, b?);
    let mut keys = a.keys().chain(b.keys()).filter(|key| !aside.contains(&key.as_str()));
    Ok(keys.find(|key| a.get(*key) != b.get(*key)).cloned())
}

/// The address in `https://10.20.0.1:6443`, or `https://[fd00::1]:6443/`.
fn address_in(url: &str) -> Option<IpAddr> {
    let host = url.split_once("://")?.1.split('/').next()?;
    let bare = host.rsplit_once(':').map_or(host, |(address, _)| address);
    [host, bare].iter().find_map(|text| text.trim_matches(['[', ']']).parse().ok())
}

fn unprepared(named: &ObjectRef, cause: impl Into<String>) -> Error {
    Error::new(Kind::Blocked, named.to_string(), cause.into()).hint(PREPARE)
}

/// The error that somebody has changed what was arranged.
pub fn contested(named: &ObjectRef, cause: String) -> Error {
    Error::new(Kind::Contested, named.to_string(), cause)
        .hint("`proxyshift cluster status` says what is not as it was arranged")
}

impl DaemonSetPair {
    /// The pods of both that have neither ended nor are about to.
    pub fn own<'a>(&'a self, pods: &'a [ClusterPod]) -> impl Iterator<Item = &'a ClusterPod> {
        let sets = [&self.current, &self.other];
        let is_own = move |pod: &&ClusterPod| {
            let owner = pod.metadata.controller();
            owner.is_some_and(|owner| sets.iter().any(|set| set.uid == owner.uid))
        };
        pods.iter().filter(|pod| pod.is_alive()).filter(is_own)
    }

    /// The Node as it is now.
    ///
    /// # Errors
    /// [`Kind::Contested`] for a Node that was registered anew; [`Kind::Blocked`] when it cannot be
    /// read `within` that time.
    pub fn read_node(&self, within: Duration) -> Result<ClusterNode> {
        let named = ObjectRef::of_cluster(ApiKind::Node, &self.node);
        let node: ClusterNode =
            kubelet::request(&self.kubeconfig, within, |client| read::read(client, &named))
                .map_err(|failure| kubelet::error(&named.to_string(), &failure))?;
        if node.metadata.uid == self.node_uid {
            return Ok(node);
        }
        Err(contested(&named, "was registered anew meanwhile".into()))
    }

    /// The text of the configuration of one of both.
    fn read_text(&self, set: &ModeDaemonSet) -> Result<Option<String>> {
        let ConfigMapKey { namespace, name, key } = &set.config_map;
        let named = ObjectRef::new(ApiKind::ConfigMap, namespace, name);
        let map: Option<ConfigMapObject> = kubelet::request(&self.kubeconfig, BEFORE, |client| {
            read::read_if_there(client, &named)
        })
        .map_err(|failure| kubelet::error(&named.to_string(), &failure).hint(PREPARE))?;
        Ok(map.and_then(|mut map| map.data.remove(key)))
    }

    /// Succeeds if the cluster is arranged as it was found, so that the label moves kube-proxy from the
    /// configuration `from` to one that means `to`, and back.
    ///
    /// # Errors
    /// [`Kind::Blocked`] or [`Kind::Contested`], naming what is not.
    pub fn verify(&self, from: &str, to: &str) -> Result<()> {
        let key = self.current.config_map.key.clone();
        let reader =
            ArrangementReader { kubeconfig: &self.kubeconfig, namespace: &self.namespace, key };
        let is_moved = self.current.label.is_some();
        let [first, second] =
            if is_moved { [&self.other, &self.current] } else { [&self.current, &self.other] };
        let ArrangedPair { unlabelled, labelled, texts } = reader.arrangement(&first.name)?;
        for (now, before) in [(&unlabelled, first), (&labelled, second)] {
            if now != before {
                let cause = "has been changed since this run was planned".to_owned();
                return Err(contested(&reader.reference(&before.name), cause));
            }
        }
        let [mut old, mut new] = texts;
        if is_moved {
            std::mem::swap(&mut old, &mut new);
        }
        for (set, text, wanted) in [(&self.current, old, from), (&self.other, new, to)] {
            if let Some(key) = difference(&text, wanted, &[])? {
                let cause = format!("its `{key}` is not what the plan says");
                return Err(
                    Error::new(Kind::Blocked, set.config_map.to_string(), cause).hint(PREPARE)
                );
            }
        }
        Ok(())
    }
}

impl ReadController for DaemonSetPair {
    /// Any pod's kube-proxy: of which DaemonSet a pod is, only the API server knows.
    fn owns(&self, text: &str) -> bool {
        cgroup::is_pod(&cgroup::paths(text))
    }

    fn config_source(&self, _: &Process, _: CommandLine) -> Result<ConfigSource> {
        Ok(ConfigSource::ConfigMap(Box::new(self.current.config_map.clone())))
    }

    fn api_server(&self) -> Result<Option<IpAddr>> {
        let server = kubelet::access(&self.kubeconfig)?.server;
        Ok(address_in(&server))
    }

    /// The configuration of the DaemonSet that the Node's label selects.
    fn read_config(&self, _: &ConfigSource) -> Result<Option<String>> {
        let node = self.read_node(BEFORE)?;
        let label = node.metadata.labels.get(MODE_LABEL).map(String::as_str);
        match self.of_label(label) {
            Some(set) => self.read_text(set),
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_compared_by_what_they_mean() {
        let old = "mode: iptables\nclusterCIDR: 10.0.0.0/8\nipvs: {strictARP: false}\n";
        let new =
            "# moved\nclusterCIDR: \"10.0.0.0/8\"\nipvs:\n  strictARP: false\nmode: nftables\n";
        let differ = |a, b, aside: &[&str]| difference(a, b, aside).unwrap();
        assert_eq!(differ(old, new, &["mode"]), None);
        assert_eq!(differ(old, new, &[]).as_deref(), Some("mode"));
        let wider = new.replace("strictARP: false", "strictARP: true");
        assert_eq!(differ(old, &wider, &["mode"]).as_deref(), Some("ipvs"));
        assert_eq!(differ("mode: a\n", "mode: a\nx: 1\n", &[]).as_deref(), Some("x"));
        assert!(difference("[", "", &[]).is_err());
    }

    #[test]
    fn a_server_is_an_address_or_a_name() {
        for (url, address) in [
            ("https://10.20.0.1:6443", Some("10.20.0.1")),
            ("https://10.20.0.1/", Some("10.20.0.1")),
            ("https://[fd00::1]:6443", Some("fd00::1")),
            ("https://[fd00::1]", Some("fd00::1")),
            ("https://api.example:6443", None),
        ] {
            assert_eq!(address_in(url), address.map(|text| text.parse().unwrap()), "{url}");
        }
    }
}
