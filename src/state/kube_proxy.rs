//! kube-proxy's configuration, from its configuration file and from its command line.

mod args;
mod client_connection;
pub mod controller;
pub mod delivery;
pub mod edit;
mod feature_gates;
mod flags;
mod flags_to_config;
mod go_duration;
pub mod log;
mod metrics;
mod mode;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer};

use super::lines;
use crate::error::{Error, Kind, Result};
use crate::yaml;

pub use args::CommandLine;
pub use client_connection::{kubeconfig_of_file, kubeconfig_of_flags};
pub use controller::Controller;
pub use delivery::Delivery;
pub use edit::{ConfigEdit, ConfigSource};
pub use feature_gates::{GateFate, gate_fate};
pub use flags::{RetiredFlag, flag_names, heeded_beside_config, retired_flag};
pub use flags_to_config::{GeneratedConfig, flags_to_config, is_flag};
pub use go_duration::go_duration;
pub use metrics::{ProxyMetrics, SyncMetrics};
pub use mode::Mode;
pub use process::{Instances, serves};

/// The link of ipvs mode, which has the addresses of all services. They are none of the node.
pub const IPVS_LINK: &str = "kube-ipvs0";

/// The fields of a `KubeProxyConfiguration` that proxyshift uses. A field that is absent, null or
/// empty in the file is `None`, false or empty in this struct. Other keys are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct KubeProxyConfig {
    /// The configured mode; `None` means kube-proxy's default, iptables.
    #[serde(deserialize_with = "optional_mode")]
    pub mode: Option<Mode>,
    /// The cluster's pod networks.
    #[serde(rename = "clusterCIDR", deserialize_with = "networks")]
    pub cluster_cidrs: Vec<IpNet>,
    /// The address that kube-proxy binds to (`bindAddress`).
    #[serde(deserialize_with = "word")]
    pub bind_address: Option<IpAddr>,
    /// The configured address of `/healthz`; [`KubeProxyConfig::healthz_address`] fills in the
    /// default.
    #[serde(deserialize_with = "word")]
    pub healthz_bind_address: Option<String>,
    /// The configured address of `/metrics` and `/proxyMode`; [`KubeProxyConfig::metrics_address`]
    /// fills in the default.
    #[serde(deserialize_with = "word")]
    pub metrics_bind_address: Option<String>,
    /// The node's name, if it is not the host name.
    #[serde(deserialize_with = "word")]
    pub hostname_override: Option<String>,
    /// The networks whose local addresses serve NodePorts, or `primary`.
    #[serde(deserialize_with = "nullable")]
    pub node_port_addresses: Vec<String>,
    /// How kube-proxy detects traffic of local pods: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`.
    #[serde(deserialize_with = "word")]
    pub detect_local_mode: Option<String>,
    /// The feature gates that are set, keyed by name.
    #[serde(deserialize_with = "nullable")]
    pub feature_gates: BTreeMap<String, bool>,
    /// The `iptables` section: masquerading in iptables and in ipvs mode.
    #[serde(deserialize_with = "nullable")]
    pub iptables: Masquerading,
    /// The `nftables` section: masquerading in nftables mode.
    #[serde(deserialize_with = "nullable")]
    pub nftables: Masquerading,
    /// The `ipvs` section.
    #[serde(deserialize_with = "nullable")]
    pub ipvs: IpvsConfig,
    /// The `conntrack` section.
    #[serde(deserialize_with = "nullable")]
    pub conntrack: ConntrackConfig,
}

/// The `iptables` section or the `nftables` section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Masquerading {
    /// Whether everything that goes to a service address is masqueraded.
    #[serde(deserialize_with = "nullable")]
    pub masquerade_all: bool,
    /// The bit of the packet mark that requests masquerading, 0 to 31.
    #[serde(deserialize_with = "bit")]
    pub masquerade_bit: Option<u8>,
    /// Whether NodePorts answer on 127.0.0.1 (iptables mode, 1.26 and later).
    pub localhost_node_ports: Option<bool>,
}

/// The `ipvs` section. Times are Go durations (`30s`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct IpvsConfig {
    /// The scheduler; none means `rr`.
    #[serde(deserialize_with = "word")]
    pub scheduler: Option<String>,
    /// Networks of virtual servers that kube-proxy leaves alone.
    #[serde(rename = "excludeCIDRs", deserialize_with = "networks")]
    pub exclude_cidrs: Vec<IpNet>,
    /// Whether the node's links answer ARP requests only for their own addresses, and announce no
    /// others.
    #[serde(rename = "strictARP", deserialize_with = "nullable")]
    pub strict_arp: bool,
    /// How long an idle TCP connection is kept.
    #[serde(deserialize_with = "word")]
    pub tcp_timeout: Option<String>,
    /// How long a TCP connection is kept after its FIN.
    #[serde(deserialize_with = "word")]
    pub tcp_fin_timeout: Option<String>,
    /// How long an idle UDP flow is kept.
    #[serde(deserialize_with = "word")]
    pub udp_timeout: Option<String>,
}

/// The `conntrack` section. Times are Go durations (`24h0m0s`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConntrackConfig {
    /// The number of conntrack entries for each CPU core; 0 leaves the kernel's limit unchanged.
    pub max_per_core: Option<i32>,
    /// The minimum number of conntrack entries, whatever the number of cores.
    pub min: Option<i32>,
    /// How long an established TCP connection is kept.
    #[serde(deserialize_with = "word")]
    pub tcp_established_timeout: Option<String>,
    /// How long a half-closed TCP connection is kept.
    #[serde(deserialize_with = "word")]
    pub tcp_close_wait_timeout: Option<String>,
    /// Whether conntrack accepts packets outside the TCP window, in place of marking them INVALID
    /// (1.29 and later).
    #[serde(deserialize_with = "nullable")]
    pub tcp_be_liberal: bool,
    /// How long an unanswered UDP flow is kept.
    #[serde(deserialize_with = "word")]
    pub udp_timeout: Option<String>,
    /// How long an answered UDP flow is kept.
    #[serde(deserialize_with = "word")]
    pub udp_stream_timeout: Option<String>,
}

/// The default of `masqueradeBit`.
const MASQUERADE_BIT: u8 = 14;

impl Masquerading {
    /// The packet mark that requests masquerading: 0x4000 by default.
    pub fn mark(&self) -> u32 {
        1 << self.masquerade_bit.unwrap_or(MASQUERADE_BIT)
    }
}

impl KubeProxyConfig {
    /// Parses a `KubeProxyConfiguration`. Errors name `file`, and the line if it is known.
    pub fn parse(file: &str, text: &str) -> Result<KubeProxyConfig> {
        #[derive(Deserialize)]
        struct ConfigDocument {
            kind: Option<String>,
        }
        match yaml::parse::<ConfigDocument>(file, text)?.kind.as_deref() {
            None | Some("KubeProxyConfiguration") => {
                yaml::parse(file, text).map_err(|error| located(error, text))
            }
            Some(kind) => {
                let cause = format!("a {kind}, not a KubeProxyConfiguration");
                Err(Error::new(Kind::Parse, file, cause))
            }
        }
    }

    /// The configured mode, or the default. kube-proxy up to 1.25 may run in another mode, because
    /// it falls back silently.
    pub fn mode(&self) -> Mode {
        self.mode.unwrap_or_default()
    }

    /// The address of `/healthz`, with kube-proxy's defaults; none if the configured text is no
    /// address.
    pub fn healthz_address(&self) -> Option<SocketAddr> {
        let any = if self.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
        address(self.healthz_bind_address.as_deref(), any, 10256)
    }

    /// The address of `/metrics` and `/proxyMode`, with kube-proxy's defaults; none if the
    /// configured text is no address.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        let loopback = if self.is_ipv6() {
            [0u16, 0, 0, 0, 0, 0, 0, 1].into()
        } else {
            [127u8, 0, 0, 1].into()
        };
        address(self.metrics_bind_address.as_deref(), loopback, 10249)
    }

    fn is_ipv6(&self) -> bool {
        self.bind_address.is_some_and(|address| address.is_ipv6())
    }
}

/// Parses an address with or without a port, as kube-proxy does. `default` stands in for a missing
/// address, `port` for a missing port.
fn address(text: Option<&str>, default: IpAddr, port: u16) -> Option<SocketAddr> {
    match text {
        None => Some(SocketAddr::new(default, port)),
        Some(text) => {
            let bare = || text.parse().ok().map(|ip| SocketAddr::new(ip, port));
            text.parse().ok().or_else(bare)
        }
    }
}

/// Adds a line number to an error that has none, because the YAML reader gives no line for
/// top-level fields. The added number is that of the first line that has the value that the error
/// quotes.
fn located(mut error: Error, text: &str) -> Error {
    let value = error.cause.split('`').nth(1).filter(|_| !error.cause.contains(" at line "));
    let number = value.and_then(|value| text.lines().position(|line| line.contains(value)));
    if let Some(at) = number {
        error.cause.push_str(&format!(" at line {}", at + 1));
    }
    error
}

/// Deserialises a field for which null means the default of its type.
fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Deserialises a text, and parses it; null and "" are `None`.
fn word<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let text: String = nullable(from)?;
    parse_word(&text).map_err(serde::de::Error::custom)
}

/// Deserialises a mode; null and "" are `None`.
fn optional_mode<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mode>, D::Error> {
    let name: String = nullable(from)?;
    parse_mode(&name).map_err(serde::de::Error::custom)
}

fn parse_mode(name: &str) -> Result<Option<Mode>, String> {
    match name {
        "" => Ok(None),
        name => name.parse().map(Some).map_err(|e: Error| e.cause),
    }
}

fn parse_word<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<Option<T>, String> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|e| format!("`{text}`: {e}")),
    }
}

/// Deserialises networks, from a list or from one comma-separated text.
fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        List(Vec<String>),
    }
    let text = match Option::deserialize(from)? {
        None => return Ok(vec![]),
        Some(Either::Text(text)) => text,
        Some(Either::List(list)) => list.join(","),
    };
    lines::networks(&text).map_err(serde::de::Error::custom)
}

/// Deserialises the number of a bit in a packet mark, 0 to 31.
fn bit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u8>, D::Error> {
    let bit = Option::deserialize(from)?;
    check_bit(bit).map_err(serde::de::Error::custom)
}

fn check_bit(bit: Option<u8>) -> Result<Option<u8>, String> {
    match bit {
        Some(bit) if bit > 31 => Err(format!("a mark has no bit {bit}")),
        bit => Ok(bit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> KubeProxyConfig {
        KubeProxyConfig::parse("config.conf", text).unwrap()
    }

    #[test]
    fn nulls_and_empty_texts_say_nothing() {
        // The configuration that kubeadm writes.
        let config = parse(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nbindAddress: 0.0.0.0\n\
             bindAddressHardFail: false\nclientConnection:\n  kubeconfig: /x\nclusterCIDR: ''\n\
             configSyncPeriod: 0s\nconntrack:\n  maxPerCore: null\n  min: null\n\
             \x20 tcpBeLiberal: false\n  tcpEstablishedTimeout: null\nenableProfiling: false\n\
             featureGates: null\nhealthzBindAddress: ''\niptables:\n  masqueradeAll: false\n\
             \x20 masqueradeBit: null\n  syncPeriod: 0s\nipvs:\n  excludeCIDRs: null\n\
             \x20 scheduler: ''\n  strictARP: false\nkind: KubeProxyConfiguration\n\
             metricsBindAddress: ''\nmode: ''\nnodePortAddresses: null\nwinkernel: {a: b}\n",
        );
        let bind_address = Some("0.0.0.0".parse().unwrap());
        assert_eq!(config, KubeProxyConfig { bind_address, ..KubeProxyConfig::default() });
        assert_eq!(config.mode(), Mode::Iptables);
        assert_eq!(config.iptables.mark(), 0x4000);
        assert_eq!(config.metrics_address().unwrap().to_string(), "127.0.0.1:10249");
        assert_eq!(config.healthz_address().unwrap().to_string(), "0.0.0.0:10256");
    }

    #[test]
    fn set_fields_are_read() {
        let config = parse(
            "kind: KubeProxyConfiguration\nmode: ipvs\nclusterCIDR: 10.244.0.0/16,fd00::/48\n\
             bindAddress: '::'\nmetricsBindAddress: 10.0.0.1\nhealthzBindAddress: nowhere\n\
             hostnameOverride: node1\nnodePortAddresses: [primary]\n\
             featureGates: {NFTablesProxyMode: true}\n\
             iptables: {masqueradeBit: 15, localhostNodePorts: false}\nnftables: {masqueradeBit: 9}\n\
             ipvs: {scheduler: wlc, excludeCIDRs: [10.9.0.0/24], strictARP: true, udpTimeout: 5s}\n\
             conntrack: {maxPerCore: 0, tcpBeLiberal: true, tcpEstablishedTimeout: 24h0m0s}\n",
        );
        assert_eq!(config.mode, Some(Mode::Ipvs));
        let nets = ["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()];
        assert_eq!(config.cluster_cidrs, nets);
        assert_eq!(config.metrics_address().unwrap().to_string(), "10.0.0.1:10249");
        assert_eq!(config.healthz_address(), None);
        assert_eq!(config.node_port_addresses, ["primary"]);
        assert_eq!(config.feature_gates.get("NFTablesProxyMode"), Some(&true));
        assert_eq!(config.iptables.mark(), 1 << 15);
        assert_eq!(config.nftables.mark(), 1 << 9);
        assert_eq!(config.iptables.localhost_node_ports, Some(false));
        assert_eq!(config.ipvs.exclude_cidrs, ["10.9.0.0/24".parse().unwrap()]);
        assert!(config.ipvs.strict_arp && config.conntrack.tcp_be_liberal);
        assert_eq!(config.conntrack.max_per_core, Some(0));
        let ipv6 = parse("bindAddress: '::'\n");
        assert_eq!(ipv6.metrics_address().unwrap().to_string(), "[::1]:10249");
        assert_eq!(ipv6.healthz_address().unwrap().to_string(), "[::]:10256");
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, line, cause) in [
            ("kind: Pod\n", "", "a Pod, not a KubeProxyConfiguration"),
            ("kind: KubeProxyConfiguration\nmode: ipvz\n", "line 2", "no mode `ipvz`"),
            ("\nclusterCIDR: 10.0.0.0/99\n", "line 2", "`10.0.0.0/99` is no network"),
            ("a: b\niptables:\n  masqueradeBit: 32\n", "line 3", "a mark has no bit 32"),
            ("a: b\n- c\n", "line 2", ""),
            ("a: [b\n", "line", ""),
        ] {
            let error = KubeProxyConfig::parse("config.conf", text).unwrap_err().to_string();
            assert!(error.starts_with("config.conf: "), "{error}");
            assert!(error.contains(line) && error.contains(cause), "{error}");
        }
    }
}
