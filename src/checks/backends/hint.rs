//! The backend that Kubernetes uses, as the kubelet's hint chain and the canary chains show.

use super::of_the_host;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::{Backend, Family, RulesetId};

pub(super) const CHECK: Check = Check {
    id: "backends.hint",
    title: "the backend that Kubernetes uses, and the host's own",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes-sigs/iptables-wrappers",
};

const CHAINS: [&str; 3] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-PROXY-CANARY"];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let host = match of_the_host(facts) {
        Ok(host) => host,
        Err(why) => return Verdict::Unknown(why),
    };
    let (same, other): (Vec<_>, Vec<_>) =
        hints(facts).into_iter().partition(|(id, _)| id.backend == host);
    let shown = |found: &[(RulesetId, &str)]| -> Vec<String> {
        found.iter().map(|(id, chain)| format!("{}: mangle has {chain}", id.file())).collect()
    };
    if other.is_empty() {
        return Verdict::Ok(match &shown(&same)[..] {
            [] => "no hint and no canary is there".into(),
            [first, ..] => format!("{first}, and iptables is of {host}"),
        });
    }
    let mut evidence = shown(&other);
    if let Some(text) = facts.now.tools.as_ref().and_then(|t| t.get("iptables")) {
        evidence.push(format!("{} is {}", text.path.as_deref().unwrap_or("iptables"), text.text));
    }
    let backend = if host == Backend::Nft { Backend::Legacy } else { Backend::Nft };
    let remedy = if same.is_empty() {
        Family::ALL
            .map(|f| format!("update-alternatives --set {0} /usr/sbin/{0}-{backend}", f.tool()))
            .to_vec()
    } else {
        // The host's backend holds hint or canary chains too, so those in the other backend are
        // older.
        vec![
            format!("iptables-{backend}-save   # what was left there"),
            "proxyshift plan   # which of them are leftovers".into(),
        ]
    };
    Verdict::Found(Found {
        evidence,
        effect: "rules that the host's own iptables writes or shows are not where Kubernetes has \
                 its own: pods and host disagree on what is dropped or translated"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

/// The kubelet's hint chain and the canary chains that exist, each with its ruleset.
fn hints(facts: &Facts<'_>) -> Vec<(RulesetId, &'static str)> {
    let mangle = |id: RulesetId| facts.now.rulesets.get(&id)?.table("mangle");
    let tables = RulesetId::ALL.into_iter().filter_map(|id| Some((id, mangle(id)?)));
    tables
        .flat_map(|(id, table)| {
            let there = CHAINS.into_iter().filter(move |c| table.chain(c).is_some());
            there.map(move |chain| (id, chain))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};

    #[test]
    fn ok_where_they_agree() {
        for name in ["docker-iptables-1.30", "docker-legacy-iptables-1.20-no-conntrack"] {
            assert!(matches!(verdict_of(&CHECK, &node(name)), Verdict::Ok(_)), "{name}");
        }
    }

    #[test]
    fn found_where_they_do_not_and_unknown_without_a_word() {
        let mut state = node("docker-legacy-iptables-1.20-no-conntrack");
        let iptables =
            |text: &str| crate::state::tools::InstalledTool::found("iptables", "/sbin/i", text);
        state.tools.as_mut().unwrap().tools = vec![iptables("iptables v1.8.9 (nf_tables)")];
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].starts_with("iptables-legacy.save: mangle has KUBE-"));
        assert_eq!(found.remedy[0], "update-alternatives --set iptables /usr/sbin/iptables-legacy");
        state.tools.as_mut().unwrap().tools = vec![iptables("")];
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
