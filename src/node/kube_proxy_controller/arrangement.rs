//! Reads how the cluster is arranged so that the label of the Node alone moves its kube-proxy.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::api::read;
use crate::error::{Error, Kind, Result};
use crate::node::kubelet;
use crate::state::kube_proxy::controller::{ConfigMapKey, ModeDaemonSet};
use crate::state::kube_proxy::{KubeProxyConfig, Mode};
use crate::state::kubernetes::{
    ApiKind, ClusterNode, ClusterPod, ConfigMapObject, DaemonSet, MODE_LABEL, ObjectRef,
    mode_of_terms, name_for_mode,
};
use crate::yaml;

/// How long the API server may take to be there before a run begins.
pub(super) const BEFORE: Duration = Duration::from_secs(10);

/// The next step where the cluster is not arranged.
pub(super) const PREPARE: &str = "an administrator arranges the cluster, once, without a restart: \
    `proxyshift cluster prepare --to MODE`";

/// The key that kube-proxy's configuration at the path `config` has in a ConfigMap.
pub(super) fn config_key(config: &str) -> String {
    Path::new(config).file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads how the cluster is arranged.
pub(super) struct ArrangementReader<'a> {
    pub(super) kubeconfig: &'a Path,
    pub(super) namespace: &'a str,
    /// The key of kube-proxy's configuration in a ConfigMap.
    pub(super) key: String,
}

/// How the cluster is arranged.
pub(super) struct ArrangedPair {
    pub(super) unlabelled: ModeDaemonSet,
    pub(super) labelled: ModeDaemonSet,
    /// The configurations of both.
    pub(super) texts: [String; 2],
}

impl ArrangementReader<'_> {
    pub(super) fn reference(&self, name: &str) -> ObjectRef {
        ObjectRef::new(ApiKind::DaemonSet, self.namespace, name)
    }

    /// An object. Of what this node may not read, or what is not there, the cluster is not prepared.
    pub(super) fn object<T: serde::de::DeserializeOwned>(&self, named: &ObjectRef) -> Result<T> {
        kubelet::request(self.kubeconfig, BEFORE, |client| read::read(client, named))
            .map_err(|failure| kubelet::error(&named.to_string(), &failure).hint(PREPARE))
    }

    pub(super) fn node(&self, name: &str) -> Result<ClusterNode> {
        self.object(&ObjectRef::of_cluster(ApiKind::Node, name))
    }

    /// The DaemonSet `name` of the Nodes without the label, and the one of those that have it.
    ///
    /// # Errors
    /// [`Kind::Blocked`], naming what is not arranged so that the label alone moves a Node.
    pub(super) fn arrangement(&self, name: &str) -> Result<ArrangedPair> {
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
        if unlabelled.pod_spec().images() != labelled.pod_spec().images() {
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
    pub(super) fn of_mode(
        &self,
        set: &DaemonSet,
        label: Option<&str>,
    ) -> Result<(ModeDaemonSet, String)> {
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
pub(in crate::node) fn difference(a: &str, b: &str, aside: &[&str]) -> Result<Option<String>> {
    type Document = BTreeMap<String, Value>;
    let [a, b] = [a, b].map(|text| yaml::parse::<Document>("kube-proxy's configuration", text));
    let (a, b) = (a?, b?);
    let mut keys = a.keys().chain(b.keys()).filter(|key| !aside.contains(&key.as_str()));
    Ok(keys.find(|key| a.get(*key) != b.get(*key)).cloned())
}

pub(super) fn unprepared(named: &ObjectRef, cause: impl Into<String>) -> Error {
    Error::new(Kind::Blocked, named.to_string(), cause.into()).hint(PREPARE)
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
}
