//! What kube-proxy's metrics say of its syncs, and of what only the rules of iptables mode do.

use std::collections::BTreeMap;

/// Counters and times of a kube-proxy since its start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ProxyMetrics {
    /// The syncs of each address family, keyed as kube-proxy does: `IPv4`, `IPv6`. A version that
    /// does not tell them apart has the empty name.
    pub syncs: BTreeMap<String, SyncMetrics>,
    /// How many packets iptables mode dropped because they were INVALID.
    pub invalid_dropped: Option<u64>,
    /// How many packets iptables mode accepted for NodePorts on 127.0.0.1.
    pub localhost_accepted: Option<u64>,
}

/// The syncs of one address family. A time is in seconds since 1970; none if it never came.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SyncMetrics {
    /// When a sync was last asked for.
    pub queued: Option<f64>,
    /// When a sync last succeeded.
    pub synced: Option<f64>,
    /// How many syncs failed: transactions of nftables mode, restores of the others.
    pub failures: u64,
    /// How often stale chains of nftables mode could not be removed. kube-proxy tries again.
    pub cleanup_failures: u64,
}

/// The beginning of each name.
const PREFIX: &str = "kubeproxy_";

impl ProxyMetrics {
    /// Reads the answer to `GET /metrics` (Prometheus text format). Other metrics are ignored.
    pub fn parse(text: &str) -> ProxyMetrics {
        let mut found = ProxyMetrics::default();
        for line in text.lines().filter_map(|line| line.strip_prefix(PREFIX)) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let Ok(value) = value.parse::<f64>() else { continue };
            let family = labels.split_once("ip_family=\"").map_or("", |(_, rest)| rest);
            let family = family.split('"').next().unwrap_or_default();
            let time = (value > 0.0).then_some(value);
            let mut change = |change: &dyn Fn(&mut SyncMetrics)| {
                change(found.syncs.entry(family.to_owned()).or_default());
            };
            match name {
                "sync_proxy_rules_last_queued_timestamp_seconds" => change(&|s| s.queued = time),
                "sync_proxy_rules_last_timestamp_seconds" => change(&|s| s.synced = time),
                "sync_proxy_rules_nftables_sync_failures_total"
                | "sync_proxy_rules_iptables_restore_failures_total" => {
                    change(&|s| s.failures += count(value));
                }
                "sync_proxy_rules_nftables_cleanup_failures_total" => {
                    change(&|s| s.cleanup_failures = count(value));
                }
                "iptables_ct_state_invalid_dropped_packets_total" => {
                    found.invalid_dropped = Some(count(value));
                }
                "iptables_localhost_nodeports_accepted_packets_total" => {
                    found.localhost_accepted = Some(count(value));
                }
                _ => {}
            }
        }
        found
    }
}

/// A counter, which the format has as a decimal number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is cut off")]
fn count(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_kept_apart_where_kube_proxy_tells_them_apart() {
        let text = "# HELP x y\n\
            kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1.7e+09\n\
            kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.6e+09\n\
            kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 7\n\
            kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv6\"} 2\n\
            kubeproxy_iptables_ct_state_invalid_dropped_packets_total 12\n\
            kubeproxy_iptables_localhost_nodeports_accepted_packets_total 1.2e+06\n\
            process_start_time_seconds 1.5e+09\nkubeproxy_broken x\nkubeproxy_\n";
        let found = ProxyMetrics::parse(text);
        let v4 = found.syncs["IPv4"];
        assert_eq!((v4.queued, v4.synced, v4.failures), (Some(1.7e9), Some(1.6e9), 0));
        let v6 = found.syncs["IPv6"];
        assert_eq!((v6.queued, v6.synced, v6.failures, v6.cleanup_failures), (None, None, 7, 2));
        assert_eq!((found.invalid_dropped, found.localhost_accepted), (Some(12), Some(1_200_000)));
    }

    #[test]
    fn a_version_without_families_has_the_empty_name() {
        let text = "kubeproxy_sync_proxy_rules_last_timestamp_seconds 0\n\
                    kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds 1.7e+09\n";
        let found = ProxyMetrics::parse(text);
        assert_eq!(found.syncs.keys().collect::<Vec<_>>(), [""]);
        assert_eq!((found.syncs[""].queued, found.syncs[""].synced), (Some(1.7e9), None));
        assert_eq!(ProxyMetrics::parse("nothing\n"), ProxyMetrics::default());
    }
}
