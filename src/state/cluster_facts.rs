//! The format of `cluster.json`: what the API server says of a kube-proxy that is a pod of a DaemonSet,
//! and at which address this node reaches the server. Nothing secret is in it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::Mode;
use crate::state::kubernetes::name_for_mode;

/// The name of the file.
pub const CLUSTER: &str = "cluster.json";

/// What a node knows of its cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFacts {
    /// Where the kubeconfigs of this node have the API server.
    pub servers: Vec<ServerInUse>,
    /// kube-proxy as the API server has it; none if it is no pod of a DaemonSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kube_proxy: Option<ClusterAnswer>,
}

/// Where a program reaches the API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerInUse {
    /// The program: `kubelet`, `kube-proxy`.
    pub program: String,
    /// The path of its kubeconfig, as the program has it.
    pub kubeconfig: String,
    /// The address there: `https://10.20.0.1:6443`.
    pub server: String,
}

/// What came of asking the API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClusterAnswer {
    /// It was not asked, or did not answer. The string says why.
    Unanswered(String),
    /// What it has.
    Objects(Box<ProxyObjects>),
}

/// The objects of a kube-proxy that is a pod of a DaemonSet. What the node may not read of them is not
/// among them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyObjects {
    /// The Node.
    pub node: NamedUid,
    /// The value of its label `proxyshift.dev/mode`, if it has one.
    pub label: Option<String>,
    /// The namespace of all the others.
    pub namespace: String,
    /// The name of the DaemonSet of Nodes without the label.
    pub original: String,
    /// The pods whose processes run here.
    pub pods: Vec<ProxyPod>,
    /// The original DaemonSet, and those of its name for a mode.
    pub daemon_sets: Vec<ProxyDaemonSet>,
    /// The ConfigMaps with their configurations.
    pub config_maps: Vec<ProxyConfigMap>,
    /// The first key but `mode` by which the configurations of two DaemonSets differ.
    pub differ_by: Option<String>,
    /// What could not be read.
    pub unread: Vec<UnreadObject>,
}

/// An object, by its name and uid.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedUid {
    /// Its name.
    pub name: String,
    /// Its uid. An object of the same name that is made later has another.
    pub uid: String,
}

/// A pod that runs kube-proxy on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyPod {
    /// The pod.
    #[serde(flatten)]
    pub id: NamedUid,
    /// The DaemonSet that made it.
    pub daemon_set: NamedUid,
    /// The image of its kube-proxy.
    pub image: Option<String>,
    /// The name of the ConfigMap with its configuration.
    pub config_map: Option<String>,
    /// Whether it is Ready, which for kube-proxy means that its process has started.
    pub is_ready: bool,
}

/// A DaemonSet that runs kube-proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyDaemonSet {
    /// The DaemonSet.
    #[serde(flatten)]
    pub id: NamedUid,
    /// The image of its template's kube-proxy.
    pub image: Option<String>,
    /// The value of the mode label by which it passes over Nodes.
    pub passes_over: Option<String>,
    /// The value of the mode label of the Nodes to which it keeps.
    pub keeps_to: Option<String>,
    /// Whether a change of its template reaches no pod that is there.
    pub is_on_delete: bool,
    /// The name of the ConfigMap with its configuration.
    pub config_map: Option<String>,
    /// Who writes it again and again, if somebody is known to.
    pub managed_by: Option<String>,
}

/// A ConfigMap with a configuration of kube-proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyConfigMap {
    /// The ConfigMap.
    #[serde(flatten)]
    pub id: NamedUid,
    /// The key of the configuration: `config.conf`.
    pub key: String,
    /// The mode there; none if the configuration is not understood.
    pub mode: Option<Mode>,
    /// Who writes it again and again, if somebody is known to.
    pub managed_by: Option<String>,
}

/// An object that could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadObject {
    /// Which: `DaemonSet kube-system/kube-proxy`.
    pub object: String,
    /// Why.
    pub why: String,
}

impl ProxyObjects {
    /// The DaemonSet of this name, if it was read.
    pub fn daemon_set(&self, name: &str) -> Option<&ProxyDaemonSet> {
        self.daemon_sets.iter().find(|set| set.id.name == name)
    }

    /// The ConfigMap of this name, if it was read.
    pub fn config_map(&self, name: &str) -> Option<&ProxyConfigMap> {
        self.config_maps.iter().find(|map| map.id.name == name)
    }

    /// The DaemonSets of the original's name for a mode, each with the mode.
    pub fn of_modes(&self) -> impl Iterator<Item = (Mode, &ProxyDaemonSet)> {
        let of = |mode: Mode| Some((mode, self.daemon_set(&name_for_mode(&self.original, mode))?));
        Mode::ALL.into_iter().filter_map(of)
    }
}

impl ServerInUse {
    /// The address of the server; none if it is a name.
    pub fn address(&self) -> Option<IpAddr> {
        address_in(&self.server)
    }

    /// The port of the server, which is 443 where none is named.
    pub fn port(&self) -> u16 {
        let place = place_in(&self.server).filter(|place| !place.ends_with(']'));
        let port = place.and_then(|place| place.rsplit_once(':'));
        port.and_then(|(_, port)| port.parse().ok()).unwrap_or(443)
    }
}

/// The address in `https://10.20.0.1:6443`, or `https://[fd00::1]:6443/`; none if it is a name.
pub fn address_in(url: &str) -> Option<IpAddr> {
    let place = place_in(url)?;
    let bare = place.rsplit_once(':').map_or(place, |(address, _)| address);
    [place, bare].iter().find_map(|text| text.trim_matches(['[', ']']).parse().ok())
}

/// The host of a URL, with its port if there is one.
fn place_in(url: &str) -> Option<&str> {
    url.split_once("://")?.1.split('/').next()
}

/// Parses `cluster.json`. Errors name `file` and the line.
///
/// # Errors
/// [`Kind::Parse`] for another text.
pub fn parse(file: &str, text: &str) -> Result<ClusterFacts> {
    serde_json::from_str(text).map_err(|e| Error::new(Kind::Parse, file, e))
}

/// Renders the text of `cluster.json`.
///
/// # Errors
/// Never, as far as is known.
pub fn render(facts: &ClusterFacts) -> Result<String> {
    serde_json::to_string_pretty(facts)
        .map(|text| text + "\n")
        .map_err(|e| Error::new(Kind::Unexpected, CLUSTER, e))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn what_is_known_survives() {
        let id = |name: &str| NamedUid { name: name.into(), uid: format!("uid of {name}") };
        let set = |name: &str| ProxyDaemonSet { id: id(name), ..ProxyDaemonSet::default() };
        let objects = ProxyObjects {
            node: id("node-1"),
            original: "kube-proxy".into(),
            pods: vec![ProxyPod { id: id("kube-proxy-x"), ..ProxyPod::default() }],
            daemon_sets: vec![set("kube-proxy"), set("kube-proxy-nftables")],
            config_maps: vec![ProxyConfigMap { mode: Some(Mode::Ipvs), ..Default::default() }],
            ..ProxyObjects::default()
        };
        let of_modes: Vec<Mode> = objects.of_modes().map(|(mode, _)| mode).collect();
        assert_eq!(of_modes, [Mode::Nftables]);
        let server = ServerInUse {
            program: "kubelet".into(),
            kubeconfig: "/etc/kubernetes/kubelet.conf".into(),
            server: "https://10.20.0.1:6443".into(),
        };
        for answer in [
            None,
            Some(ClusterAnswer::Unanswered("it is away".into())),
            Some(ClusterAnswer::Objects(Box::new(objects))),
        ] {
            let facts = ClusterFacts { servers: vec![server.clone()], kube_proxy: answer };
            assert_eq!(parse(CLUSTER, &render(&facts).unwrap()).unwrap(), facts);
        }
        assert!(parse(CLUSTER, "[]").is_err());
    }
}
