//! Parsers of flannel's `subnet.env` and of the CNI configurations in `/etc/cni/net.d`.

use std::str::FromStr;

use ipnet::IpNet;
use serde_json::Value;

use super::lines;
use crate::error::{Error, Kind, Result};

/// The keys of a CNI configuration whose values are used, at any depth. A snapshot keeps no other
/// values.
pub const USED_KEYS: &[&str] = &[
    "bridge",
    "cniVersion",
    "delegate",
    "externalSetMarkChain",
    "ipam",
    "markMasqBit",
    "name",
    "plugins",
    "ranges",
    "snat",
    "subnet",
    "type",
];

/// The file in which flannel keeps its lease. flannel never deletes it; the next boot does.
pub const SUBNET_ENV: &str = "/run/flannel/subnet.env";

/// flannel's networks and its lease on this node, from [`SUBNET_ENV`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The cluster's pod networks, IPv4 first.
    pub networks: Vec<IpNet>,
    /// The networks that flannel leased to this node, IPv4 first, with the host bits masked.
    pub subnets: Vec<IpNet>,
    /// The MTU of the pods' links, in bytes.
    pub mtu: Option<u32>,
    /// Whether flannel masquerades (`FLANNEL_IPMASQ`).
    pub ipmasq: Option<bool>,
}

impl SubnetEnv {
    /// Parses lines of `NAME=value`, and skips names that are not flannel's. flannel writes a lease
    /// with the gateway's address (`192.168.75.1/24`), whose host bits are masked here. Errors name
    /// `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<SubnetEnv> {
        let mut env = SubnetEnv { networks: vec![], subnets: vec![], mtu: None, ipmasq: None };
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let error = |cause: String| lines::error(file, at + 1, cause);
            let Some((name, value)) = line.split_once('=') else {
                return Err(error(format!("`{line}` has no `=`")));
            };
            let value = value.trim_matches('"');
            match name {
                "FLANNEL_NETWORK" | "FLANNEL_IPV6_NETWORK" => {
                    env.networks.extend(lines::networks(value).map_err(error)?);
                }
                "FLANNEL_SUBNET" | "FLANNEL_IPV6_SUBNET" => {
                    env.subnets.extend(lines::networks(value).map_err(error)?);
                }
                "FLANNEL_MTU" => env.mtu = Some(word(value).map_err(error)?),
                "FLANNEL_IPMASQ" => env.ipmasq = Some(word(value).map_err(error)?),
                _ => {}
            }
        }
        env.networks.sort_by_key(|net| net.addr().is_ipv6());
        env.subnets.sort_by_key(|net| net.addr().is_ipv6());
        if env.networks.is_empty() || env.subnets.is_empty() {
            return Err(Error::new(Kind::Parse, file, "no FLANNEL_NETWORK or no FLANNEL_SUBNET"));
        }
        Ok(env)
    }
}

fn word<T: FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{value}` is no value of this name"))
}

/// A CNI configuration: one plugin (a `.conf` file) or a list of plugins (a `.conflist` file).
#[derive(Debug, Clone, PartialEq)]
pub struct CniConfig {
    /// The network's name, from which CNI builds its iptables chains and comments.
    pub name: String,
    /// The plugins in the order of the configuration.
    pub plugins: Vec<Plugin>,
}

/// One plugin of a CNI configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Plugin {
    /// The plugin's type: `bridge`, `flannel`, `calico`, `portmap`.
    pub kind: String,
    /// The plugin's whole JSON object, unchanged.
    pub config: Value,
}

/// The settings of the CNI plugin `portmap` that affect its iptables rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portmap {
    /// Whether `portmap` masquerades hairpin and local traffic; true by default.
    pub snat: bool,
    /// The bit of the packet mark that requests masquerading; 13 by default.
    pub mark_masq_bit: u64,
    /// The chain of another program that sets the mark in place of portmap's own chain, usually
    /// KUBE-MARK-MASQ.
    pub external_set_mark_chain: Option<String>,
}

impl CniConfig {
    /// Parses a CNI configuration. Errors name `file`, and the line if the JSON is broken.
    pub fn parse(file: &str, text: &str) -> Result<CniConfig> {
        let error = |cause: String| Error::new(Kind::Parse, file, cause);
        let config: Value = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        let name = config["name"].as_str().unwrap_or_default().to_owned();
        let plugins = match config.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            Some(_) => return Err(error("`plugins` is no list".to_owned())),
            None => vec![config],
        };
        let typed = |config: Value| match config["type"].as_str() {
            Some(kind) => Ok(Plugin { kind: kind.to_owned(), config }),
            None => Err(error("a plugin has no `type`".to_owned())),
        };
        Ok(CniConfig { name, plugins: plugins.into_iter().map(typed).collect::<Result<_>>()? })
    }

    /// The settings of the first `portmap` plugin in the configuration.
    pub fn portmap(&self) -> Option<Portmap> {
        let config = &self.plugins.iter().find(|plugin| plugin.kind == "portmap")?.config;
        Some(Portmap {
            snat: config["snat"].as_bool().unwrap_or(true),
            mark_masq_bit: config["markMasqBit"].as_u64().unwrap_or(13),
            external_set_mark_chain: config["externalSetMarkChain"].as_str().map(str::to_owned),
        })
    }

    /// The names of the bridges that the configuration's plugins use.
    pub fn bridges(&self) -> Vec<&str> {
        self.plugins.iter().filter_map(Plugin::bridge).collect()
    }

    /// The networks from which the plugins assign addresses, as far as the configuration names
    /// them.
    pub fn subnets(&self) -> Vec<IpNet> {
        self.plugins.iter().flat_map(Plugin::subnets).collect()
    }
}

impl Plugin {
    /// The name of the plugin's bridge: the configured one, or `cni0`, the default of the plugins
    /// `bridge` and `flannel`.
    pub fn bridge(&self) -> Option<&str> {
        let named = self.config["bridge"].as_str();
        let delegated = self.config["delegate"]["bridge"].as_str();
        let other = self.config["delegate"]["type"].as_str().is_some_and(|kind| kind != "bridge");
        match self.kind.as_str() {
            "bridge" => named.or(Some("cni0")),
            "flannel" if !other => delegated.or(Some("cni0")),
            _ => None,
        }
    }

    /// The networks in the plugin's `ipam` section. Values such as `usePodCidr` are no networks,
    /// and are skipped.
    pub fn subnets(&self) -> Vec<IpNet> {
        let ipam = &self.config["ipam"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let ranges = list(&ipam["ranges"]).into_iter().flat_map(|set| list(&set));
        let named = std::iter::once(ipam.clone()).chain(ranges);
        let net = |value: Value| value["subnet"].as_str()?.parse::<IpNet>().ok();
        named.filter_map(net).map(|net| net.trunc()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(words: &[&str]) -> Vec<IpNet> {
        words.iter().map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn a_lease_is_masked_and_both_families_are_read() {
        let text = "FLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\n\
            FLANNEL_NETWORK=192.168.64.0/20,10.244.0.0/16\nFLANNEL_SUBNET=192.168.75.1/24\n\
            FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\nFLANNEL_LATER=1\n";
        let env = SubnetEnv::parse("subnet.env", text).unwrap();
        assert_eq!(env.networks, nets(&["192.168.64.0/20", "10.244.0.0/16", "fd00::/48"]));
        assert_eq!(env.subnets, nets(&["192.168.75.0/24", "fd00:0:0:1::/64"]));
        assert_eq!((env.mtu, env.ipmasq), (Some(1450), Some(true)));
    }

    #[test]
    fn a_broken_lease_is_refused_by_line() {
        for (text, expected) in [
            ("FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUB", "subnet.env:2: `FLANNEL_SUB` has no `=`"),
            ("FLANNEL_SUBNET=10.0.0.1/244\n", "subnet.env:1: `10.0.0.1/244` is no network"),
            ("FLANNEL_MTU=x\n", "subnet.env:1: `x` is no value of this name"),
            ("FLANNEL_NETWORK=10.0.0.0/8\n", "subnet.env: no FLANNEL_NETWORK or no"),
            ("", "subnet.env: no FLANNEL_NETWORK or no"),
        ] {
            let error = SubnetEnv::parse("subnet.env", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn lists_and_single_plugins() {
        let config = CniConfig::parse(
            "10.conflist",
            r#"{"name": "net", "plugins": [{"type": "flannel", "delegate": {"hairpinMode": true}},
            {"type": "portmap", "snat": false, "externalSetMarkChain": "KUBE-MARK-MASQ"}]}"#,
        )
        .unwrap();
        assert_eq!((config.name.as_str(), config.bridges()), ("net", vec!["cni0"]));
        let portmap = config.portmap().unwrap();
        assert_eq!((portmap.snat, portmap.mark_masq_bit), (false, 13));
        assert_eq!(portmap.external_set_mark_chain.as_deref(), Some("KUBE-MARK-MASQ"));

        let config = CniConfig::parse(
            "87-podman.conf",
            r#"{"name": "podman", "type": "bridge", "bridge": "cni-podman0", "ipam": {"ranges":
            [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00::/64"}]], "subnet": "usePodCidr"}}"#,
        )
        .unwrap();
        assert_eq!(config.bridges(), ["cni-podman0"]);
        assert_eq!(config.subnets(), nets(&["10.88.0.0/16", "fd00::/64"]));
        assert_eq!(config.portmap(), None);
    }

    #[test]
    fn a_broken_configuration_is_refused() {
        for (text, expected) in [
            ("{\"name\":\n\"a", "a.conf: EOF while parsing a string at line 2"),
            ("{}", "a.conf: a plugin has no `type`"),
            ("[]", "a.conf: a plugin has no `type`"),
            ("{\"plugins\": {}}", "a.conf: `plugins` is no list"),
        ] {
            let error = CniConfig::parse("a.conf", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
