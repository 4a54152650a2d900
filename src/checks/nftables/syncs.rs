//! Whether kube-proxy's syncs succeed, by its own metrics. A table in the kernel does not show who
//! wrote it, nor when.

use super::is_here;
use crate::checks::kube_proxy::{failing_syncs, node_name, with_metrics};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::state::Family;
use crate::state::kube_proxy::ProxyMetrics;

const WHEN: &str =
    "nftables mode runs, or is configured where none runs; a live node alone can be asked";
const REFERENCE: &str = "https://kubernetes.io/docs/reference/instrumentation/metrics/";

/// Syncs that fail.
pub(super) const FAILURES: Check = Check {
    id: "nftables.sync-failures",
    title: "syncs of kube-proxy that fail",
    severity: Severity::Warn,
    when: WHEN,
    applies: is_here,
    evaluate: |facts| with_metrics(facts, failures),
    reference: REFERENCE,
};

/// A kube-proxy that has not synced since it started.
pub(super) const NEVER: Check = Check {
    id: "nftables.never-synced",
    title: "a kube-proxy that has written nothing, beside a table that is older",
    severity: Severity::Warn,
    when: WHEN,
    applies: is_here,
    evaluate: |facts| with_metrics(facts, never),
    reference: REFERENCE,
};

fn failures(facts: &Facts<'_>, metrics: &ProxyMetrics) -> Verdict {
    let look = "nft list ruleset > /dev/null   # whether nft reads what is there";
    failing_syncs(facts, metrics, look)
}

fn never(facts: &Facts<'_>, metrics: &ProxyMetrics) -> Verdict {
    let Some(mode) = mode::all().find(|mode| mode.has_own_tables()) else {
        return Verdict::Unknown("no mode has tables of its own".into());
    };
    let synced = |family: Family| {
        let of_family = metrics.syncs.get(label(family)).or_else(|| metrics.syncs.get(""));
        of_family.is_some_and(|sync| sync.synced.is_some())
    };
    let older = |family: &Family| mode.has_started(facts.now, *family) && !synced(*family);
    let older: Vec<Family> = Family::ALL.into_iter().filter(older).collect();
    if older.is_empty() {
        return Verdict::Ok("each table was synced since kube-proxy started".into());
    }
    let evidence = older.iter().map(|family| {
        format!(
            "{family}: the table is there, and kube-proxy has had no sync that succeeded since it \
             started"
        )
    });
    Verdict::Found(Found {
        evidence: evidence.collect(),
        effect: "what serves was written by a kube-proxy before this one, and nobody keeps it up \
                 to date: connections go to endpoints that are gone"
            .into(),
        remedy: facts
            .proxy
            .delivery(facts.now)
            .logs()
            .into_iter()
            .chain([facts.proxy.delivery(facts.now).restart(node_name(facts))])
            .collect(),
        fix: Vec::new(),
    })
}

/// kube-proxy's own name of an address family.
fn label(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node};
    use crate::state::live_facts::LiveFacts;

    fn verdict(check: &Check, metrics: Option<&str>) -> Verdict {
        let live = LiveFacts {
            kube_proxy_metrics: metrics.map(ProxyMetrics::parse),
            ..LiveFacts::default()
        };
        given(&node("nftables-1.37")).live(&live).verdict(check)
    }

    fn times(family: &str, queued: u32, synced: u32, failures: u32) -> String {
        format!(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{family} {queued}\n\
             kubeproxy_sync_proxy_rules_last_timestamp_seconds{family} {synced}\n\
             kubeproxy_sync_proxy_rules_nftables_sync_failures_total{family} {failures}\n"
        )
    }

    const V4: &str = "{ip_family=\"IPv4\"}";
    const V6: &str = "{ip_family=\"IPv6\"}";

    #[test]
    fn syncs_that_fail_now_are_found() {
        for (v4, v6, fails) in [
            ((9, 9, 0), (9, 9, 0), false),
            ((9, 0, 7), (9, 9, 0), true),
            ((9, 9, 0), (9, 5, 1), true),
            ((5, 9, 3), (9, 9, 0), false),
            // A first sync that takes long has not failed.
            ((9, 0, 0), (9, 0, 0), false),
        ] {
            let text = times(V4, v4.0, v4.1, v4.2) + &times(V6, v6.0, v6.1, v6.2);
            let verdict = verdict(&FAILURES, Some(&text));
            assert_eq!(matches!(verdict, Verdict::Found(_)), fails, "{text}: {verdict:?}");
        }
        assert!(matches!(verdict(&FAILURES, None), Verdict::Unknown(_)));
        let state = node("nftables-1.37");
        assert!(matches!(given(&state).verdict(&FAILURES), Verdict::Unknown(_)));
    }

    #[test]
    fn a_table_that_is_older_than_the_process_is_found() {
        for (text, older) in [
            (times(V4, 9, 9, 0) + &times(V6, 9, 9, 0), 0),
            (times(V4, 9, 9, 0) + &times(V6, 9, 0, 0), 1),
            (times(V4, 9, 9, 0), 1),
            (String::new(), 2),
            (times("", 9, 9, 0), 0),
            (times("", 9, 0, 0), 2),
        ] {
            let found = match verdict(&NEVER, Some(&text)) {
                Verdict::Found(found) => found.evidence.len(),
                Verdict::Ok(_) => 0,
                Verdict::Unknown(why) => panic!("{text}: {why}"),
            };
            assert_eq!(found, older, "{text}");
        }
        assert!(matches!(verdict(&NEVER, None), Verdict::Unknown(_)));
    }
}
