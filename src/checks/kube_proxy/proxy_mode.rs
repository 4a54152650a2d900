//! The mode that kube-proxy itself reports: the only evidence of a silent fallback to another mode.

use super::{instances, no_process};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::proxy_state::ProxyState;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.proxy-mode",
    title: "the mode that kube-proxy says it runs",
    severity: Severity::Warn,
    when: "a live node",
    applies: always,
    evaluate,
    reference: "https://kubernetes.io/docs/reference/networking/virtual-ips/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(live) = facts.live else {
        return Verdict::Unknown("a captured node cannot be asked for /proxyMode".into());
    };
    let Some(reported) = &live.proxy_mode else {
        if instances(facts).is_empty() {
            return no_process(facts);
        }
        let why = "kube-proxy did not answer to GET /proxyMode within 1 s";
        return Verdict::Unknown(why.into());
    };
    if let ProxyState::Many(all) = &facts.proxy {
        return Verdict::Unknown(format!(
            "{} kube-proxies run, and whichever has the port answered {reported} for itself: what \
             the kernel holds counts",
            all.len()
        ));
    }
    let configured = facts.settings.as_ref().map(|s| s.mode().name());
    let kernel = facts.running.mode.map(|m| m.name());
    if configured.is_none() && kernel.is_none() {
        return Verdict::Unknown(format!(
            "kube-proxy says {reported}, but neither its configuration nor the kernel says a mode"
        ));
    }
    if [configured, kernel].iter().flatten().all(|mode| mode == reported) {
        return Verdict::Ok(format!("GET /proxyMode: {reported}"));
    }
    let mut evidence = vec![format!("GET /proxyMode: {reported}")];
    evidence.extend(configured.map(|mode| format!("the configuration says {mode}")));
    evidence.push(match kernel {
        Some(mode) => format!("the kernel serves {mode}: {}", facts.running.evidence),
        None => facts.running.evidence.clone(),
    });
    Verdict::Found(Found {
        evidence,
        effect: "kube-proxy runs another mode than it was told: up to 1.25 it falls back to \
                 iptables without a word when ipvs cannot be had"
            .into(),
        remedy: [
            facts.proxy.delivery(facts.now).logs(),
            vec!["proxyshift check --to ipvs   # what ipvs mode needs on this node".into()],
        ]
        .concat(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    fn reported(name: &str, mode: Option<&str>) -> Verdict {
        let state = node(name);
        let live = LiveFacts { proxy_mode: mode.map(str::to_owned), ..LiveFacts::default() };
        given(&state).live(&live).verdict(&CHECK)
    }

    #[test]
    fn all_three_outcomes() {
        let node_name = "half-migrated-ipvs-1.20";
        assert_eq!(reported(node_name, Some("ipvs")), Verdict::Ok("GET /proxyMode: ipvs".into()));
        let Verdict::Found(found) = reported(node_name, Some("iptables")) else {
            panic!("not found")
        };
        assert_eq!(found.evidence[1], "the configuration says ipvs");
        assert!(matches!(reported(node_name, None), Verdict::Unknown(_)));
        let two = Node::captured(node_name).process(1452, "kube-proxy", &["kube-proxy"]).state();
        let live = LiveFacts { proxy_mode: Some("iptables".into()), ..LiveFacts::default() };
        let verdict = given(&two).live(&live).verdict(&CHECK);
        assert!(matches!(&verdict, Verdict::Unknown(why) if why.contains("2 kube-proxies")));
        assert!(matches!(verdict_of(&CHECK, &node(node_name)), Verdict::Unknown(_)));
    }
}
