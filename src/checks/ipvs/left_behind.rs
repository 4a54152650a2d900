//! kube-ipvs0, virtual servers and ipsets that exist although another mode runs.

use std::collections::BTreeSet;

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::owners::component::KUBE_PROXY;
use crate::state::kube_proxy::Mode;
use crate::state::object::ObjectId;

pub(super) const CHECK: Check = Check {
    id: "ipvs.left-behind",
    title: "what ipvs mode left behind and that still acts",
    severity: Severity::Warn,
    when: "ipvs mode does not run",
    applies: |facts| facts.running.mode != Some(Mode::Ipvs),
    evaluate,
    reference: "https://github.com/gardener/gardener/issues/4599",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(mode) = facts.running.mode else {
        let evidence = &facts.running.evidence;
        return Verdict::Unknown(format!("which mode runs is not clear: {evidence}"));
    };
    if facts.now.links.is_empty() {
        return Verdict::Unknown("the links are not in this state".into());
    }
    let ours = |owner: Option<crate::owners::matcher::Owner<'_>>| {
        owner.is_some_and(|o| o.name == KUBE_PROXY)
    };
    let mut evidence = Vec::new();
    let links = facts.now.links.iter().filter(|l| ours(facts.ownership.link(&l.name)));
    let links: Vec<_> = links.collect();
    for link in &links {
        evidence.push(format!("link {} with {} addresses", link.name, link.addresses.len()));
    }
    let servers = facts.now.ipvs.servers.iter();
    let servers = servers.filter(|s| ours(facts.ownership.virtual_server(&s.service))).count();
    if servers > 0 {
        evidence.push(format!("{servers} virtual servers"));
    }
    let sets = facts.now.ipsets.sets.iter().filter(|s| ours(facts.ownership.set(&s.name)));
    let sets: Vec<&str> = sets.map(|s| s.name.as_str()).collect();
    if let Some(first) = sets.first() {
        evidence.push(format!("{} ipsets, the first {first}", sets.len()));
    }
    if evidence.is_empty() {
        return Verdict::Ok("no link, virtual server or set of ipvs mode is there".into());
    }
    let effect = if links.is_empty() {
        "they serve nothing, and are in the way of a later kube-proxy with other sets"
    } else {
        "this node answers for every address on kube-ipvs0 itself, also of services that are gone \
         or have no endpoints; Calico stays in its ipvs mode while the link is there"
    };
    // The fix leaves out ipsets that rules match, because such an ipset can only be removed
    // together with the rule. `cleanup` removes both.
    let named = sets_of_rules(facts);
    let fix = facts.removal(|o| {
        &*o.owner == KUBE_PROXY
            && match &o.id {
                ObjectId::Link { .. } | ObjectId::VirtualServer(_) => true,
                ObjectId::Set { name, .. } => !named.contains(name.as_str()),
                _ => false,
            }
    });
    Verdict::Found(Found {
        evidence,
        effect: format!("{mode} mode runs; {effect}"),
        remedy: vec!["proxyshift cleanup --owner kube-proxy".into()],
        fix,
    })
}

/// The ipsets that rules match.
fn sets_of_rules(facts: &Facts<'_>) -> BTreeSet<String> {
    let rulesets = facts.now.rulesets.values();
    let rules = rulesets
        .flat_map(|r| r.tables.iter().flat_map(move |t| t.rules().map(move |at| (r, at.2))));
    rules.flat_map(|(r, rule)| r.words(rule).sets()).map(|name| name.into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};

    #[test]
    fn all_three_outcomes() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        let ipvs = node("half-migrated-ipvs-1.20");
        state.links.extend(ipvs.links.into_iter().filter(|l| l.name == "kube-ipvs0"));
        state.ipsets = ipvs.ipsets;
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence[0], "link kube-ipvs0 with 30 addresses");
        assert!(found.evidence[1].contains("ipsets, the first KUBE-"), "{found:?}");
        let names: Vec<String> = found.fix.iter().map(ToString::to_string).collect();
        assert!(names.contains(&"remove link kube-ipvs0".to_owned()), "{names:?}");
        assert!(names.contains(&"remove ipset KUBE-CLUSTER-IP".to_owned()), "{names:?}");
        state.links.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
