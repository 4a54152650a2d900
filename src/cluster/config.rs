//! Where a DaemonSet's kube-proxy has its configuration: a key of a ConfigMap.

use std::path::Path;

use serde_json::Value;

use crate::cluster::refusal::ClusterRefusal;
use crate::state::kube_proxy::{CommandLine, KubeProxyConfig};
use crate::state::kubernetes::{ConfigMapObject, DaemonSet, PodContainer};

/// Where a DaemonSet's kube-proxy has its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigLocation {
    /// The name of the ConfigMap, in the DaemonSet's namespace.
    pub config_map: String,
    /// The key of it that is the file which `--config` names.
    pub key: String,
    /// Which of the pod's volumes mounts it.
    pub(super) volume: usize,
}

/// The container that runs kube-proxy: the one of that name, or the only one.
pub(super) fn container(daemon_set: &DaemonSet) -> Option<PodContainer> {
    let mut containers = daemon_set.pod_spec().containers;
    let named = containers.iter().position(|container| container.name == "kube-proxy");
    match (named, containers.len()) {
        (Some(index), _) => Some(containers.swap_remove(index)),
        (None, 1) => containers.pop(),
        _ => None,
    }
}

impl ConfigLocation {
    /// Finds it by the template of the DaemonSet.
    ///
    /// # Errors
    /// [`ClusterRefusal::NoConfigFile`] for a kube-proxy whose arguments are its configuration, or whose file is of
    /// no ConfigMap.
    pub fn of(daemon_set: &DaemonSet) -> Result<ConfigLocation, ClusterRefusal> {
        let none = |why: &str| ClusterRefusal::NoConfigFile { why: why.to_owned() };
        let container =
            container(daemon_set).ok_or_else(|| none("no container is kube-proxy's"))?;
        // Without a command, the image's own program gets the arguments.
        let program =
            if container.command.is_empty() { &["kube-proxy".to_owned()][..] } else { &[] };
        let words: Vec<&String> =
            program.iter().chain(&container.command).chain(&container.args).collect();
        let line = CommandLine::parse(&words).map_err(|e| none(&e.to_string()))?;
        let file = line.config.ok_or_else(|| none("its arguments name no --config"))?;
        let path = Path::new(&file);
        let (folder, name) = (path.parent(), path.file_name().and_then(|name| name.to_str()));
        let (Some(folder), Some(name)) = (folder, name) else {
            return Err(none("its --config is no path of a file"));
        };
        let spec = &daemon_set.spec.template["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let of_name = list(&spec["containers"]).into_iter().find(|c| c["name"] == container.name);
        let mounts = of_name.map(|c| list(&c["volumeMounts"])).unwrap_or_default();
        let mount = mounts.iter().find(|mount| {
            let at = mount["mountPath"].as_str().map(|path| Path::new(path).components());
            at.is_some_and(|at| at.eq(folder.components())) && mount["subPath"].is_null()
        });
        let mount = mount.ok_or_else(|| none("its --config is in no volume"))?;
        let volumes = list(&spec["volumes"]);
        let volume = volumes.iter().position(|volume| volume["name"] == mount["name"]);
        let source = volume.and_then(|index| volumes[index].get("configMap"));
        let (Some(volume), Some(source)) = (volume, source) else {
            return Err(none("its --config is in no ConfigMap"));
        };
        let items = list(&source["items"]);
        let item = items.iter().find(|item| item["path"] == name).map(|item| &item["key"]);
        let key = match item {
            Some(key) => key.as_str().unwrap_or_default(),
            None if items.is_empty() => name,
            None => return Err(none("its --config is in no key of its ConfigMap")),
        };
        let config_map = source["name"].as_str().unwrap_or_default().to_owned();
        Ok(ConfigLocation { config_map, key: key.to_owned(), volume })
    }

    /// The configuration that is there.
    ///
    /// # Errors
    /// [`ClusterRefusal::NoConfigFile`] if there is none, or none that is understood.
    pub fn config(&self, config_map: &ConfigMapObject) -> Result<KubeProxyConfig, ClusterRefusal> {
        let none = |why: String| ClusterRefusal::NoConfigFile { why };
        let text = config_map.data.get(&self.key);
        let text =
            text.ok_or_else(|| none(format!("{} has no key {}", self.config_map, self.key)))?;
        KubeProxyConfig::parse(&self.key, text).map_err(|e| none(e.to_string()))
    }
}
