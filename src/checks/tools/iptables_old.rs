//! iptables before 1.8.4 that does write its rules, but reads those of newer ones wrongly.

use super::super::{Check, Facts, Found, Severity, Verdict};
use super::iptables::{NEEDED, applies, is_nf_tables};
use super::seen;
use crate::state::tools::Tool;

pub(in crate::checks) const CHECK: Check = Check {
    id: "tools.iptables-old",
    title: "an iptables, kube-proxy's or the host's, that is older than 1.8.4",
    severity: Severity::Warn,
    when: "any mode but nftables runs, or is the target",
    applies,
    judge,
    reference: "https://github.com/kubernetes-sigs/iptables-wrappers",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let seen = match seen(facts, "iptables") {
        Err(why) => return Verdict::Unknown(why),
        Ok(seen) => seen,
    };
    let mut old = Vec::new();
    // The host's own saves what the one in kube-proxy's container wrote.
    let host = facts.now.tools.as_ref().and_then(|t| t.get("iptables"));
    if let Some(host) = host.filter(|t| seen.root.is_some() && is_old(t)) {
        old.push(format!("{} {}", host.path.as_deref().unwrap_or_default(), host.text));
    }
    // That it is missing, or of an early nf_tables, is tools.iptables' to say.
    if is_old(seen.tool) && !is_nf_tables(seen.tool) {
        old.push(seen.shown());
    }
    if old.is_empty() {
        return match (&seen.tool.path, seen.tool.version()) {
            (Some(_), None) => {
                Verdict::Unknown(format!("{} is there, but its version is not known", seen.shown()))
            }
            (Some(_), _) => Verdict::Ok(seen.shown()),
            (None, _) => Verdict::Ok("there is none".into()),
        };
    }
    Verdict::Found(Found {
        evidence: old.iter().map(|shown| format!("{shown}: older than {NEEDED}")).collect(),
        effect: "rules that a newer iptables wrote, such as that in kube-proxy's image, are \
                 saved without what this one does not know: restored, they match more traffic"
            .into(),
        remedy: vec!["apt-get install iptables   # 1.8.4 or later".into()],
        fix: Vec::new(),
    })
}

fn is_old(tool: &Tool) -> bool {
    tool.version().is_some_and(|v| v < NEEDED)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_with, node};
    use super::*;
    use crate::state::live_facts::LiveFacts;
    use crate::state::tools::Tools;

    #[test]
    fn found_for_old_legacy_ok_for_new_and_unknown_without_a_version() {
        let mut state = node("docker-legacy-iptables-1.20-no-conntrack");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        let mut with = |text: &str| {
            let tool = Tool::found("iptables", "/sbin/iptables", text);
            state.tools.as_mut().unwrap().tools = vec![tool];
            judged(&CHECK, &state)
        };
        assert!(matches!(with("iptables v1.6.1"), Verdict::Found(_)));
        assert!(matches!(with("iptables v1.8.3 (legacy)"), Verdict::Found(_)));
        assert!(matches!(with("iptables v1.8.3 (nf_tables)"), Verdict::Ok(_)));
        assert!(matches!(with(""), Verdict::Unknown(_)));
    }

    #[test]
    fn the_hosts_own_counts_beside_that_of_the_container() {
        let mut state = node("docker-iptables-1.30");
        let own = "kernel 6.1\niptables /usr/sbin/iptables package iptables 1.8.9-2\n";
        let asked = LiveFacts {
            kube_proxy_tools: Some(Tools::parse("t", own).unwrap()),
            kube_proxy_root: Some("/proc/7/root".into()),
            ..LiveFacts::default()
        };
        let verdict = judged_with(&CHECK, &state, None, None, Some(&asked));
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
        let old = Tool::found("iptables", "/sbin/iptables", "iptables v1.8.2 (nf_tables)");
        state.tools.as_mut().unwrap().tools = vec![old];
        let Verdict::Found(found) = judged_with(&CHECK, &state, None, None, Some(&asked)) else {
            panic!("not found");
        };
        assert!(found.evidence[0].starts_with("/sbin/iptables iptables v1.8.2"), "{found:?}");
    }
}
