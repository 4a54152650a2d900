//! How many endpoints the cluster's DNS has.

use super::cluster_dns;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "dns.endpoints",
    title: "how many endpoints answer for the cluster's DNS",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://kubernetes.io/docs/tasks/administer-cluster/dns-horizontal-autoscaling/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(mode) = facts.running.mode else {
        let evidence = &facts.running.evidence;
        return Verdict::Unknown(format!("which mode serves is not clear: {evidence}"));
    };
    let services = cluster_dns(facts, mode);
    if services.is_empty() {
        return Verdict::Unknown("no service of the cluster's DNS is in this state".into());
    }
    let backends = |service: &crate::kube_proxy::services::ServicePort| {
        let all: Vec<String> = service.backends.iter().map(ToString::to_string).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(", ") }
    };
    let rows =
        services.iter().map(|(key, s)| (s.backends.len(), format!("{key}: {}", backends(s))));
    let (few, enough): (Vec<_>, Vec<_>) = rows.partition(|(count, _)| *count < 2);
    if few.is_empty() {
        let enough: Vec<String> = enough.into_iter().map(|(_, row)| row).collect();
        return Verdict::Ok(enough.join("; "));
    }
    Verdict::Found(Found {
        evidence: few.into_iter().map(|(_, row)| format!("{row} (ready endpoints)")).collect(),
        effect: "the loss of one pod, or a drain of its node during the change, ends DNS for \
                 everyone"
            .into(),
        remedy: vec![
            "kubectl -n kube-system get endpoints kube-dns".into(),
            "kubectl -n kube-system scale deployment coredns --replicas=2".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};

    #[test]
    fn two_are_enough_in_every_mode() {
        for name in ["docker-iptables-1.30", "half-migrated-ipvs-1.20", "nftables-leftovers-1.30"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn one_at_weight_0_does_not_count() {
        let Verdict::Found(found) = verdict_of(&CHECK, &node("ipvs-dns-blackhole-1.20")) else {
            panic!("not found")
        };
        assert_eq!(found.evidence, ["10.96.0.10:53/udp: 192.168.64.7:53 (ready endpoints)"]);
    }

    #[test]
    fn unknown_without_rules() {
        let mut state = node("docker-iptables-1.30");
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
