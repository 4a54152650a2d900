//! What the API server tells of services: the fields that are used of a Service and of an
//! EndpointSlice.
//!
//! The fields and their defaults are those of k8s.io/api (core/v1, discovery/v1). What is absent and
//! what is null mean the same, as Go writes an empty list either way.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use crate::state::Family;
use crate::state::ipvs::Protocol;

/// An object of the API.
pub trait ApiObject {
    /// Its name, namespace and version.
    fn metadata(&self) -> &ApiMetadata;
}

/// What identifies an object, and its version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiMetadata {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The version of the object, which nobody but the API server interprets.
    pub resource_version: String,
    /// The labels that are used.
    #[serde(deserialize_with = "nullable")]
    pub labels: ApiLabels,
}

/// The labels that are used of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiLabels {
    /// The name of the Service that an EndpointSlice belongs to.
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
}

/// A Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiService {
    /// Its name and version.
    pub metadata: ApiMetadata,
    /// What it should be.
    pub spec: ApiServiceSpec,
    /// What it is.
    #[serde(deserialize_with = "nullable")]
    pub status: ApiServiceStatus,
}

/// The spec of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    /// The ClusterIPs, one a family; `None` in place of an address for a headless Service.
    #[serde(rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<String>,
    /// The external IPs.
    #[serde(rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<String>,
    /// The ports.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ApiServicePort>,
    /// Whether connections from outside go to endpoints on the node alone.
    #[serde(deserialize_with = "nullable")]
    pub external_traffic_policy: TrafficPolicy,
    /// Whether connections to a ClusterIP go to endpoints on the node alone.
    #[serde(deserialize_with = "nullable")]
    pub internal_traffic_policy: TrafficPolicy,
    /// `ClientIP` if a client stays with its endpoint.
    #[serde(deserialize_with = "nullable")]
    pub session_affinity: String,
    /// The only networks that may use an address of a load balancer; empty if all may.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer_source_ranges: Vec<String>,
}

/// A traffic policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum TrafficPolicy {
    /// To endpoints on the node alone.
    Local,
    /// To all endpoints.
    #[default]
    #[serde(other)]
    Cluster,
}

/// A port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiServicePort {
    /// Its name, by which a slice names it too; may be empty.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// The port number.
    pub port: u16,
    /// The NodePort; 0 without one.
    #[serde(deserialize_with = "nullable")]
    pub node_port: u16,
    /// The protocol; TCP if absent.
    #[serde(deserialize_with = "nullable")]
    pub protocol: ApiProtocol,
}

/// A protocol as the API names it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ApiProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl From<ApiProtocol> for Protocol {
    fn from(protocol: ApiProtocol) -> Protocol {
        match protocol {
            ApiProtocol::Tcp => Protocol::Tcp,
            ApiProtocol::Udp => Protocol::Udp,
            ApiProtocol::Sctp => Protocol::Sctp,
        }
    }
}

/// The status of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiServiceStatus {
    /// Its load balancer.
    #[serde(deserialize_with = "nullable")]
    pub load_balancer: ApiLoadBalancer,
}

/// The load balancer of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiLoadBalancer {
    /// Its addresses.
    #[serde(deserialize_with = "nullable")]
    pub ingress: Vec<ApiIngress>,
}

/// An address of a load balancer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiIngress {
    /// The address; empty if it has a name in place of one.
    #[serde(deserialize_with = "nullable")]
    pub ip: String,
    /// `Proxy` if nodes do not answer at the address.
    #[serde(deserialize_with = "nullable")]
    pub ip_mode: String,
}

/// An EndpointSlice: some of the endpoints of a Service, of one family.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiSlice {
    /// Its name and version, and its Service.
    pub metadata: ApiMetadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// The endpoints.
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<ApiEndpoint>,
    /// The ports that each endpoint has.
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ApiSlicePort>,
}

impl ApiSlice {
    /// The family of its addresses; none for names.
    pub fn family(&self) -> Option<Family> {
        match self.address_type.as_str() {
            "IPv4" => Some(Family::Ipv4),
            "IPv6" => Some(Family::Ipv6),
            _ => None,
        }
    }
}

/// An endpoint of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ApiEndpoint {
    /// Its addresses, which all lead to the same; the first is used.
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    /// The node that it is on.
    pub node_name: Option<String>,
    /// What it is fit for.
    #[serde(deserialize_with = "nullable")]
    pub conditions: ApiConditions,
}

/// What an endpoint is fit for. What is absent is unknown, and counts as ready, as serving, and as
/// not terminating.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiConditions {
    /// Whether it gets new connections.
    pub ready: Option<bool>,
    /// Whether it answers.
    pub serving: Option<bool>,
    /// Whether it is about to end.
    pub terminating: Option<bool>,
}

impl ApiConditions {
    /// Whether it gets new connections.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Whether it still answers, and is about to end.
    pub fn serves_while_terminating(&self) -> bool {
        self.serving.unwrap_or(true) && self.terminating.unwrap_or(false)
    }
}

/// A port of a slice.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ApiSlicePort {
    /// Its name; may be empty.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// The port number; none for all ports, which a Service's slice does not have.
    pub port: Option<u16>,
    /// The protocol; TCP if absent.
    #[serde(deserialize_with = "nullable")]
    pub protocol: ApiProtocol,
}

impl ApiObject for ApiService {
    fn metadata(&self) -> &ApiMetadata {
        &self.metadata
    }
}

impl ApiObject for ApiSlice {
    fn metadata(&self) -> &ApiMetadata {
        &self.metadata
    }
}

/// Parses an address as Kubernetes does, which takes leading zeros in IPv4 for nothing
/// (`ParseIPSloppy` of k8s.io/utils).
pub fn address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let octets = text.split('.').map(|octet| octet.parse::<u8>().ok());
    let octets: [u8; 4] = octets.collect::<Option<Vec<u8>>>()?.try_into().ok()?;
    Some(octets.into())
}

/// Deserialises a field for which null means the default of its type.
pub(super) fn nullable<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_or_null_is_the_default() {
        let empty: ApiService = serde_json::from_str(
            r#"{"spec": {"ports": [{"port": 80, "protocol": null}], "clusterIPs": null}}"#,
        )
        .unwrap();
        assert_eq!(empty.spec.ports[0].protocol, ApiProtocol::Tcp);
        assert_eq!(empty.spec.internal_traffic_policy, TrafficPolicy::Cluster);
        let slice: ApiSlice = serde_json::from_str(
            r#"{"metadata": {"labels": {"a": "b", "kubernetes.io/service-name": "web"}},
                "addressType": "IPv6", "endpoints": null, "ports": [{"name": null, "port": null}]}"#,
        )
        .unwrap();
        assert_eq!(slice.metadata.labels.service_name.as_deref(), Some("web"));
        assert_eq!((slice.family(), slice.ports[0].port), (Some(Family::Ipv6), None));
        let conditions = ApiConditions::default();
        assert!(conditions.is_ready() && !conditions.serves_while_terminating());
    }

    #[test]
    fn another_type_is_an_error() {
        for wrong in [
            r#"{"spec": {"ports": [{"port": 80000}]}}"#,
            r#"{"spec": {"ports": [{"port": "80"}]}}"#,
            r#"{"spec": {"ports": [{"port": 80, "protocol": "QUIC"}]}}"#,
            r#"{"spec": []}"#,
            "[]",
        ] {
            // An empty array stands for a struct of which all fields are absent.
            let parsed = serde_json::from_str::<ApiService>(wrong);
            assert!(parsed.is_err() || wrong.contains("[]"), "{wrong}");
        }
    }

    #[test]
    fn leading_zeros_of_an_address_mean_nothing() {
        assert_eq!(address("10.096.0.010"), Some([10, 96, 0, 10].into()));
        assert_eq!(address("fd00::a"), Some("fd00::a".parse().unwrap()));
        for wrong in ["", "None", "10.96.0", "10.96.0.1.2", "10.96.0.256", "10.96.0.-1", "fd00::g"]
        {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }
}
