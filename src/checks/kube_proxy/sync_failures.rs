//! Whether kube-proxy's syncs succeed, by its own metrics. A pod is Ready all the same: kubeadm's has no
//! readiness probe.

use super::daemonset::ready_pod;
use super::has_own_tables;
use crate::checks::{Check, Facts, Found, Severity, Verdict, not_live};
use crate::state::kube_proxy::ProxyMetrics;

/// Of nftables mode, `nftables.sync-failures` says it.
pub(super) const CHECK: Check = Check {
    id: "kube-proxy.sync-failures",
    title: "syncs of kube-proxy that fail",
    severity: Severity::Warn,
    when: "another mode than nftables runs, or is configured where none runs; a live node alone can be asked",
    applies: |facts| !has_own_tables(facts),
    evaluate: |facts| {
        with_metrics(facts, |facts, metrics| {
            let look = "iptables-save > /dev/null   # whether iptables reads what is there";
            failing_syncs(facts, metrics, look)
        })
    },
    reference: "https://kubernetes.io/docs/reference/instrumentation/metrics/",
};

/// The verdict of `judge` on the metrics of a living kube-proxy, or that they are not known.
pub(in crate::checks) fn with_metrics(
    facts: &Facts<'_>,
    judge: fn(&Facts<'_>, &ProxyMetrics) -> Verdict,
) -> Verdict {
    let Some(live) = facts.live else { return not_live() };
    if let Some(why) = facts.proxy.absence() {
        return Verdict::Ok(format!("{why}: kube-proxy.absent says so"));
    }
    match &live.kube_proxy_metrics {
        Some(metrics) => judge(facts, metrics),
        None => Verdict::Unknown("kube-proxy does not answer with its metrics".into()),
    }
}

/// The verdict on the syncs of a kube-proxy: found, if they fail now. `look` is a command that may show why.
pub(in crate::checks) fn failing_syncs(
    facts: &Facts<'_>,
    metrics: &ProxyMetrics,
    look: &str,
) -> Verdict {
    let (mut failing, mut past) = (Vec::new(), 0);
    // A version may count failures of both families together.
    let together = metrics.syncs.get("").map_or(0, |sync| sync.failures);
    for (family, sync) in &metrics.syncs {
        let failures = if family.is_empty() { sync.failures } else { sync.failures + together };
        let is_behind = sync.queued.is_some_and(|queued| sync.synced.is_none_or(|s| s < queued));
        if failures > 0 && is_behind {
            let last = match sync.synced {
                Some(_) => "none has succeeded since the last one was asked for",
                None => "none has succeeded",
            };
            failing.push(format!(
                "{}: {} syncs failed since kube-proxy started, and {last}",
                named(family),
                failures
            ));
        } else {
            past = past.max(failures);
        }
    }
    if failing.is_empty() {
        return Verdict::Ok(match past {
            0 => "none has failed since kube-proxy started".into(),
            past => format!("{past} failed since kube-proxy started, and the last one succeeded"),
        });
    }
    // There is no readiness probe, so this is what an operator sees meanwhile.
    failing.extend(ready_pod(facts));
    let logs = facts.proxy.delivery(facts.now).logs();
    Verdict::Found(Found {
        evidence: failing,
        effect: "services and endpoints that changed since then are not followed: connections go \
                 to endpoints that are gone, and new services are not reached"
            .into(),
        remedy: logs.into_iter().chain([look.to_owned()]).collect(),
        fix: Vec::new(),
    })
}

fn named(family: &str) -> &str {
    if family.is_empty() { "kube-proxy" } else { family }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::kube_proxy::daemonset::testing::{PREPARED, node_of};
    use crate::checks::testing::{given, node};
    use crate::state::NodeState;
    use crate::state::live_facts::LiveFacts;

    fn verdict(state: &NodeState, metrics: Option<&str>) -> Verdict {
        let live = LiveFacts {
            kube_proxy_metrics: metrics.map(ProxyMetrics::parse),
            ..LiveFacts::default()
        };
        given(state).live(&live).verdict(&CHECK)
    }

    /// The metrics of a kube-proxy that has failed `failures` times, counted for `family`.
    fn metrics(family: &str, failures: u32, synced: u32) -> String {
        format!(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{{ip_family=\"IPv4\"}} 9\n\
             kubeproxy_sync_proxy_rules_last_timestamp_seconds{{ip_family=\"IPv4\"}} {synced}\n\
             kubeproxy_sync_proxy_rules_iptables_restore_failures_total{family} {failures}\n"
        )
    }

    #[test]
    fn a_ready_pod_whose_syncs_fail_is_found() {
        let (plain, pod) = (node("iptables-1.37"), node_of(PREPARED, |_| ()));
        for family in ["", "{ip_family=\"IPv4\"}"] {
            let Verdict::Found(found) = verdict(&pod, Some(&metrics(family, 3, 5))) else {
                panic!("ok")
            };
            assert_eq!(found.evidence.len(), 2, "{found:?}");
            assert!(found.evidence[0].starts_with("IPv4: 3 syncs failed"), "{found:?}");
            assert!(found.evidence[1].contains("is Ready"), "{found:?}");
            let Verdict::Found(found) = verdict(&plain, Some(&metrics(family, 3, 0))) else {
                panic!("ok")
            };
            assert_eq!(found.evidence.len(), 1, "{found:?}");
            for fine in [metrics(family, 0, 5), metrics(family, 3, 9)] {
                assert!(matches!(verdict(&pod, Some(&fine)), Verdict::Ok(_)), "{fine}");
            }
        }
        assert!(matches!(verdict(&plain, None), Verdict::Unknown(_)));
        assert!(matches!(given(&plain).verdict(&CHECK), Verdict::Unknown(_)));
        let applies = |facts: &mut Facts<'_>| (CHECK.applies)(facts);
        assert!(!given(&node("nftables-1.37")).facts(applies));
    }
}
