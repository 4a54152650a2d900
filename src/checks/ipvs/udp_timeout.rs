//! The timeout after which ipvs forgets an idle UDP flow: 300 s by default.

use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "ipvs.udp-timeout",
    title: "how long ipvs keeps an idle UDP flow",
    severity: Severity::Info,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/76664",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy was told is not known".into());
    };
    // A duration of zero leaves the kernel's timeout unchanged, so the timeout counts as set only
    // if the duration has a digit other than 0.
    let set = |t: &&String| t.bytes().any(|b| (b'1'..=b'9').contains(&b));
    if let Some(time) = settings.ipvs.udp_timeout.as_ref().filter(set) {
        return Verdict::Ok(format!("ipvs.udpTimeout is {time}"));
    }
    Verdict::Found(Found {
        evidence: vec![
            "ipvs.udpTimeout is not set: the kernel keeps an idle flow for 300 s".into(),
        ],
        effect: "a client that asks DNS from one port keeps a real server for 5 minutes after its \
                 last packet, also one that takes no new flows"
            .into(),
        remedy: vec![setting(facts, "ipvs: {udpTimeout: 10s}", "--ipvs-udp-timeout=10s")],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    #[test]
    fn all_three_outcomes() {
        let state = node("half-migrated-ipvs-1.20");
        let with = |time: &str| {
            given(&state).facts(|facts| {
                facts.settings.as_mut().expect("settings").ipvs.udp_timeout = Some(time.into());
                evaluate(facts)
            })
        };
        assert_eq!(with("10s"), Verdict::Ok("ipvs.udpTimeout is 10s".into()));
        assert!(matches!(with("0s"), Verdict::Found(_)));
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Found(_)));
        let state = Node::captured("half-migrated-ipvs-1.20")
            .remove("files/var/lib/kube-proxy/config.conf")
            .state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
