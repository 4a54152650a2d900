//! Whether iptables sees packets that a bridge forwards between two of its ports.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::state::NodeState;

pub(super) const CHECK: Check = Check {
    id: "cni.bridge-nf-call",
    title: "iptables for packets within a bridge",
    severity: Severity::Warn,
    when: "there is a bridge, or the links are not known",
    applies: |facts| facts.now.links.is_empty() || !bridges(facts.now).is_empty(),
    evaluate,
    reference: "https://kubernetes.io/docs/setup/production-environment/container-runtimes/",
};

const NAMES: [&str; 2] =
    ["net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables"];

fn bridges(state: &NodeState) -> Vec<&str> {
    let bridges = state.links.iter().filter(|l| l.kind.as_deref() == Some("bridge"));
    bridges.map(|l| l.name.as_str()).collect()
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let state = facts.now;
    if state.links.is_empty() {
        return Verdict::Unknown("the links are not in this state".into());
    }
    let Some(sysctls) = state.sysctls() else {
        return Verdict::Unknown("the sysctls are not in this state".into());
    };
    let bridges = bridges(state).join(", ");
    let v6 = state.rulesets.keys().any(|id| id.family == crate::state::Family::Ipv6);
    let wrong: Vec<(&str, Option<&str>)> = NAMES
        .into_iter()
        .take(if v6 { 2 } else { 1 })
        .map(|name| (name, sysctls.get(name)))
        .filter(|(_, value)| *value != Some("1"))
        .collect();
    let Some((_, first)) = wrong.first() else {
        return Verdict::Ok(format!("{} = 1, for {bridges}", NAMES[0]));
    };
    let mut remedy = Vec::new();
    if first.is_none() {
        remedy
            .push("modprobe br_netfilter; echo br_netfilter > /etc/modules-load.d/k8s.conf".into());
    }
    let lines: Vec<String> = wrong.iter().map(|(name, _)| format!("{name} = 1")).collect();
    let print = lines.join("\\n");
    remedy.push(format!("printf '{print}\\n' > /etc/sysctl.d/k8s.conf; sysctl --system"));
    let shown = |(name, value): &(&str, Option<&str>)| match value {
        Some(value) => format!("sysctl.txt: {name} = {value}, and there is {bridges}"),
        None => format!("there is no {name} (br_netfilter is not loaded), and there is {bridges}"),
    };
    Verdict::Found(Found {
        evidence: wrong.iter().map(shown).collect(),
        effect: "a pod that calls a service whose pod hangs on the same bridge gets its answer \
                 untranslated, from an address that it did not call, and refuses it"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const NODE: &str = "docker-legacy-iptables-1.20-no-conntrack";

    #[test]
    fn found_when_off_or_without_the_module() {
        let line = format!("{} = 1\n", NAMES[0]);
        let off =
            Node::captured(NODE).replace("sysctl.txt", &line, &line.replace('1', "0")).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &off) else { panic!("off") };
        assert!(found.evidence[0].ends_with("= 0, and there is docker0"), "{:?}", found.evidence);
        assert_eq!(found.remedy.len(), 1);
        let gone = Node::captured(NODE).replace("sysctl.txt", &line, "").state();
        let Verdict::Found(found) = verdict_of(&CHECK, &gone) else { panic!("no module") };
        assert!(found.remedy[0].starts_with("modprobe br_netfilter"), "{:?}", found.remedy);
    }

    #[test]
    fn ok_when_on_and_unknown_without_links_or_sysctls() {
        assert!(matches!(verdict_of(&CHECK, &node(NODE)), Verdict::Ok(_)));
        for file in ["addr.json", "sysctl.txt"] {
            let state = Node::captured(NODE).remove(file).state();
            assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)), "{file}");
        }
    }
}
