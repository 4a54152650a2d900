//! Programs such as MetalLB announce service addresses by ARP. If a node has kube-ipvs0, the node
//! answers ARP requests for these addresses too.

use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict, no_processes};
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "ipvs.strict-arp",
    title: "strictARP, which MetalLB and kube-vip need in ipvs mode",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://metallb.io/installation/",
};

/// Process names of programs that announce service addresses by ARP.
const ANNOUNCERS: [&str; 2] = ["speaker", "kube-vip"];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(processes) = &facts.now.processes else { return no_processes() };
    let Some(announcer) = processes.iter().find(|p| ANNOUNCERS.contains(&p.name.as_str())) else {
        return Verdict::Ok("neither MetalLB's speaker nor kube-vip runs here".into());
    };
    let who = format!("{} (process {}) announces addresses", announcer.name, announcer.pid);
    let sysctls = facts.now.sysctls();
    let is = |name: &str, value: &str| {
        let name = format!("net.ipv4.conf.all.{name}");
        sysctls.as_ref().and_then(|s| s.get(&name)).map(|v| v == value)
    };
    let (ignore, announce) = (is("arp_ignore", "1"), is("arp_announce", "2"));
    if (ignore, announce) == (Some(true), Some(true)) {
        return Verdict::Ok("arp_ignore is 1 and arp_announce 2 on all links".into());
    }
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown(format!("{who}; what kube-proxy was told is not known"));
    };
    if settings.ipvs.strict_arp {
        return Verdict::Ok("ipvs.strictARP is true".into());
    }
    Verdict::Found(Found {
        evidence: vec![who, "ipvs.strictARP is false".into()],
        effect:
            "every node answers ARP for the load balancer addresses on its kube-ipvs0: traffic \
                 goes to whichever node was fastest"
                .into(),
        remedy: vec![setting(facts, "ipvs: {strictARP: true}", "--ipvs-strict-arp")],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, verdict_of};

    #[test]
    fn all_three_outcomes() {
        let node = Node::captured("half-migrated-ipvs-1.20");
        assert!(matches!(verdict_of(&CHECK, &node.state()), Verdict::Ok(_)));
        let mut state = node.process(7, "speaker", &[]).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.remedy[0].starts_with("ipvs: {strictARP: true}"), "{found:?}");
        let strict = given(&state).facts(|facts| {
            facts.settings.as_mut().expect("settings").ipvs.strict_arp = true;
            evaluate(facts)
        });
        assert!(matches!(strict, Verdict::Ok(_)));
        state.processes = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
