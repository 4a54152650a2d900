//! What kube-proxy says of itself: the only witness that also tells of a silent fallback.

use super::instances;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::Instances;

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.proxy-mode",
    title: "the mode that kube-proxy says it runs",
    severity: Severity::Warn,
    when: "a live node",
    applies: always,
    judge,
    reference: "https://kubernetes.io/docs/reference/networking/virtual-ips/",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(asked) = facts.live else {
        return Verdict::Unknown("a captured node cannot be asked for /proxyMode".into());
    };
    let Some(said) = &asked.proxy_mode else {
        return Verdict::Unknown(
            match instances(facts).is_some_and(|all| all != Instances::None) {
                true => "kube-proxy did not answer to GET /proxyMode within 1 s".into(),
                false => "no kube-proxy process is known in this network namespace".into(),
            },
        );
    };
    let told = facts.settings.as_ref().map(|s| s.mode().name());
    let held = facts.running.mode.map(|m| m.name());
    if told.is_none() && held.is_none() {
        return Verdict::Unknown(format!(
            "kube-proxy says {said}, but neither its configuration nor the kernel says a mode"
        ));
    }
    if [told, held].iter().flatten().all(|mode| mode == said) {
        return Verdict::Ok(format!("GET /proxyMode: {said}"));
    }
    let mut evidence = vec![format!("GET /proxyMode: {said}")];
    evidence.extend(told.map(|mode| format!("the configuration says {mode}")));
    evidence.push(match held {
        Some(mode) => format!("the kernel serves {mode}: {}", facts.running.evidence),
        None => facts.running.evidence.clone(),
    });
    Verdict::Found(Found {
        evidence,
        effect: "kube-proxy runs another mode than it was told: up to 1.25 it falls back to \
                 iptables without a word when ipvs cannot be had"
            .into(),
        remedy: vec![
            "kubectl -n kube-system logs -l k8s-app=kube-proxy --tail=-1 | grep -i proxier   # why"
                .into(),
            "proxyshift check --to ipvs   # what ipvs mode needs on this node".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{judged, node, with_facts};
    use crate::state::live_facts::LiveFacts;

    fn said(name: &str, mode: Option<&str>) -> Verdict {
        let state = node(name);
        let asked = LiveFacts { proxy_mode: mode.map(str::to_owned), ..LiveFacts::default() };
        with_facts(&state, None, |facts| {
            let own = Facts::of(facts.now, facts.catalogue, facts.ownership, facts.to);
            judge(&Facts { live: Some(&asked), ..own })
        })
    }

    #[test]
    fn all_three_outcomes() {
        let node_name = "half-migrated-ipvs-1.20";
        assert_eq!(said(node_name, Some("ipvs")), Verdict::Ok("GET /proxyMode: ipvs".into()));
        let Verdict::Found(found) = said(node_name, Some("iptables")) else { panic!("not found") };
        assert_eq!(found.evidence[1], "the configuration says ipvs");
        assert!(matches!(said(node_name, None), Verdict::Unknown(_)));
        assert!(matches!(judged(&CHECK, &node(node_name)), Verdict::Unknown(_)));
    }
}
