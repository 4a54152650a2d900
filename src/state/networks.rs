//! The networks that `/etc/cni/net.d` configures. The container runtime sets up new pods by the first
//! configuration that it can read, in the order of the files' names.

use super::NodeState;
use super::cni::{CniConfig, Plugin};

/// The folder of the configurations, as a key of the state's files.
const FOLDER: &str = "files/etc/cni/net.d";

/// Names of networks that belong to container tools and that no kubelet uses.
const OTHERS: [&str; 3] = ["podman", "nerdctl", "cri-o-loopback"];

/// One configuration of pods' networks.
#[derive(Debug)]
pub struct Network<'a> {
    /// The file's path on the node.
    pub path: &'a str,
    /// What the file configures, or why that is not known.
    pub config: Result<CniConfig, String>,
    /// Whether new pods get their network from this file.
    pub is_used: bool,
}

impl Network<'_> {
    /// Whether the file configures a plugin of this type, itself or as what it delegates to.
    pub fn has_plugin(&self, kind: &str) -> bool {
        let delegates = |plugin: &Plugin| plugin.config["delegate"]["type"] == kind;
        let is = |plugin: &Plugin| plugin.kind == kind || delegates(plugin);
        self.config.as_ref().is_ok_and(|config| config.plugins.iter().any(is))
    }
}

/// The configurations of pods' networks, in the order of the files' names.
pub fn networks(state: &NodeState) -> Vec<Network<'_>> {
    let inside = state.files.range(FOLDER.to_owned()..);
    let mut networks: Vec<Network<'_>> = inside
        .take_while(|(name, _)| name.starts_with(FOLDER))
        .filter(|(name, _)| is_configuration(&name[FOLDER.len()..]))
        .map(|(name, text)| Network {
            path: &name["files".len()..],
            config: CniConfig::parse(name, text).map_err(|e| e.cause),
            is_used: false,
        })
        .filter(|network| !network.config.as_ref().is_ok_and(is_none_of_pods))
        .collect();
    let first = networks.iter().position(|network| network.config.is_ok());
    // multus itself calls the other networks.
    let all = first.is_some_and(|first| has_multus(&networks[first]));
    for (at, network) in networks.iter_mut().enumerate() {
        network.is_used = network.config.is_ok() && (all || Some(at) == first);
    }
    networks
}

/// Whether pods get their networks from multus, whose plugin is called `multus-shim` where a daemon of
/// its own does the work.
fn has_multus(network: &Network<'_>) -> bool {
    ["multus", "multus-shim"].into_iter().any(|kind| network.has_plugin(kind))
}

/// Whether the runtime reads the file of that name below the folder. The folder itself stands for
/// files that are not known.
fn is_configuration(name: &str) -> bool {
    let file = name.strip_prefix('/');
    let ends = |file: &str| [".conf", ".conflist", ".json"].iter().any(|e| file.ends_with(e));
    name.is_empty() || file.is_some_and(|file| !file.contains('/') && ends(file))
}

/// True for a network that is not the pods': loopback, or a network of a container tool.
fn is_none_of_pods(config: &CniConfig) -> bool {
    config.plugins.iter().all(|p| p.kind == "loopback") || OTHERS.contains(&config.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(files: &[(&str, &str)]) -> Vec<(String, bool)> {
        let files = files.iter().map(|(name, text)| (format!("{FOLDER}{name}"), (*text).into()));
        let state = NodeState { files: files.collect(), ..NodeState::default() };
        let network = |n: &Network<'_>| (n.path["/etc/cni/net.d".len()..].to_owned(), n.is_used);
        networks(&state).iter().map(network).collect()
    }

    #[test]
    fn the_first_that_can_be_read_is_used() {
        let [one, two] = [r#"{"type": "calico"}"#, r#"{"plugins": [{"type": "flannel"}]}"#];
        let pairs = |found: &[(&str, bool)]| -> Vec<(String, bool)> {
            found.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect()
        };
        for (files, expected) in [
            (
                &[("/10.conf", one), ("/20.conflist", two)][..],
                pairs(&[("/10.conf", true), ("/20.conflist", false)]),
            ),
            (
                &[("/00.conf", ""), ("/20.conflist", two)],
                pairs(&[("/00.conf", false), ("/20.conflist", true)]),
            ),
            (&[("/10.conf.bak", one), ("/20.conflist", two)], pairs(&[("/20.conflist", true)])),
            (&[("/x/10.conf", one), ("-x/10.conf", one)], pairs(&[])),
            (&[("", "")], pairs(&[("", false)])),
            (
                &[("/00.conf", r#"{"type": "loopback"}"#), ("/10.conf", one)],
                pairs(&[("/10.conf", true)]),
            ),
            (
                &[("/00.conf", r#"{"type": "multus-shim"}"#), ("/10.conf", one), ("/20.conf", "{")],
                pairs(&[("/00.conf", true), ("/10.conf", true), ("/20.conf", false)]),
            ),
        ] {
            assert_eq!(used(files), expected, "{files:?}");
        }
    }
}
