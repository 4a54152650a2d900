//! The iptables programs, which kube-proxy runs in every mode but nftables.

use super::program;
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::{KubeProxyConfig, Mode};
use crate::state::tools::{InstalledTool, Version};

/// The oldest iptables that iptables-wrappers accepts. The official images of kube-proxy accept no
/// older one either.
const NEEDED: Version = Version { major: 1, minor: 8, patch: 4 };

pub(super) const CHECK: Check = Check {
    id: "tools.iptables",
    title: "the iptables binary that kube-proxy runs",
    severity: Severity::Block,
    when: "any mode but nftables runs, or is the target",
    applies,
    evaluate,
    reference: "https://github.com/kubernetes-sigs/iptables-wrappers",
};

fn applies(facts: &Facts<'_>) -> bool {
    let uses = |mode: Mode| mode::of(mode).uses_iptables();
    // Where no mode runs, the one that it is to run in counts, and else the configured one.
    let configured = facts.settings.as_ref().map(KubeProxyConfig::mode);
    let to_come = facts.to.or(configured);
    facts.running.mode.or(to_come).is_none_or(uses) || facts.to.is_some_and(uses)
}

/// True if an iptables program writes, or may write, to nf_tables. A program reports its backend;
/// if only the version of its package is known, a version from 1.8.0 on may have either backend.
fn is_nf_tables(tool: &InstalledTool) -> bool {
    let first = Version { major: 1, minor: 8, patch: 0 };
    !tool.text.contains("(legacy)") && tool.version().is_some_and(|v| v >= first)
}

const MISSING: &str = "kube-proxy cannot write a rule: no service is translated";
const EARLY: &str = "iptables of nf_tables before 1.8.4 loses and doubles rules: services fail one \
                   by one, and no save of it can be trusted";

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let program = match program(facts, "iptables") {
        Err(why) => return Verdict::Unknown(why),
        Ok(program) => program,
    };
    if let Some(found) = program.missing("iptables", MISSING) {
        return Verdict::Found(found);
    }
    match program.tool.version() {
        None => {
            Verdict::Unknown(format!("{} is there, but its version is not known", program.shown()))
        }
        Some(version) if version < NEEDED && is_nf_tables(program.tool) => Verdict::Found(Found {
            evidence: vec![format!("{}: older than {NEEDED}", program.shown())],
            effect: EARLY.into(),
            remedy: vec![
                program.install("iptables=1.8.4 or later"),
                "update-alternatives --set iptables /usr/sbin/iptables-legacy   # until then, \
                 before kubelet and kube-proxy write their first rule"
                    .into(),
            ],
            fix: Vec::new(),
        }),
        Some(_) => Verdict::Ok(program.shown()),
    }
}

pub(super) const OLD: Check = Check {
    id: "tools.iptables-old",
    title: "an iptables, kube-proxy's or the host's, that is older than 1.8.4",
    severity: Severity::Warn,
    when: "any mode but nftables runs, or is the target",
    applies,
    evaluate: evaluate_old,
    reference: "https://github.com/kubernetes-sigs/iptables-wrappers",
};

fn evaluate_old(facts: &Facts<'_>) -> Verdict {
    let program = program(facts, "iptables");
    let mut old = Vec::new();
    // The host's iptables is checked too, because it must read the rules that the iptables in
    // kube-proxy's container wrote.
    let host = facts.now.tools.as_ref().and_then(|t| t.get("iptables"));
    let is_other = program.as_ref().map_or(true, |program| program.root.is_some());
    if let Some(host) = host.filter(|t| is_other && is_old(t)) {
        old.push(format!("{} {}", host.path.as_deref().unwrap_or_default(), host.text));
    }
    let program = match program {
        Err(why) if old.is_empty() => return Verdict::Unknown(why),
        Err(_) => return found_old(&old),
        Ok(program) => program,
    };
    // The check tools.iptables reports a missing iptables, and an early one that writes to
    // nf_tables.
    if is_old(program.tool) && !is_nf_tables(program.tool) {
        old.push(program.shown());
    }
    if old.is_empty() {
        return match (&program.tool.path, program.tool.version()) {
            (Some(_), None) => Verdict::Unknown(format!(
                "{} is there, but its version is not known",
                program.shown()
            )),
            (Some(_), _) => Verdict::Ok(program.shown()),
            (None, _) => Verdict::Ok("there is none".into()),
        };
    }
    found_old(&old)
}

fn found_old(old: &[String]) -> Verdict {
    Verdict::Found(Found {
        evidence: old.iter().map(|shown| format!("{shown}: older than {NEEDED}")).collect(),
        effect: "rules that a newer iptables wrote, such as that in kube-proxy's image, are \
                 saved without what this one does not know: restored, they match more traffic"
            .into(),
        remedy: vec!["apt-get install iptables   # 1.8.4 or later".into()],
        fix: Vec::new(),
    })
}

fn is_old(tool: &InstalledTool) -> bool {
    tool.version().is_some_and(|v| v < NEEDED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;
    use crate::state::tools::ToolList;

    fn with(text: &str) -> crate::state::NodeState {
        let mut state = node("docker-iptables-1.30");
        let tool = InstalledTool::found("iptables", "/usr/sbin/iptables", text);
        state.tools.as_mut().unwrap().tools = vec![tool];
        state
    }

    #[test]
    fn found_where_it_is_missing_or_of_an_early_nf_tables() {
        let Verdict::Found(found) = verdict_of(&CHECK, &with("iptables v1.8.2 (nf_tables)")) else {
            panic!("not found");
        };
        assert!(found.evidence[0].contains("older than 1.8.4"), "{:?}", found.evidence);
        let mut state = with("");
        state.tools.as_mut().unwrap().tools = vec![InstalledTool::missing("iptables")];
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Found(_)));
    }

    #[test]
    fn ok_for_new_ones_and_old_legacy_and_unknown_without_a_version() {
        for text in ["iptables v1.8.9 (nf_tables)", "iptables v1.8.3 (legacy)", "iptables v1.6.1"] {
            assert!(matches!(verdict_of(&CHECK, &with(text)), Verdict::Ok(_)), "{text}");
        }
        assert!(matches!(verdict_of(&CHECK, &with("")), Verdict::Unknown(_)));
    }

    #[test]
    fn nftables_mode_needs_none_unless_it_is_left() {
        let state = node("nftables-leftovers-1.30");
        given(&state).facts(|facts| assert!(!applies(facts)));
        given(&state).to(Mode::Nftables).facts(|facts| {
            facts.running.mode = None;
            assert!(!applies(facts), "none runs, and it is the target");
            facts.to = Some(Mode::Iptables);
            assert!(applies(facts));
            (facts.to, facts.settings) = (None, None);
            assert!(applies(facts), "nothing says which mode comes");
        });
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&CHECK), Verdict::Ok(_)));
    }

    #[test]
    fn found_for_old_legacy_ok_for_new_and_unknown_without_a_version() {
        let mut state = node("docker-legacy-iptables-1.20-no-conntrack");
        assert!(matches!(verdict_of(&OLD, &state), Verdict::Ok(_)));
        let mut with = |text: &str| {
            let tool = InstalledTool::found("iptables", "/sbin/iptables", text);
            state.tools.as_mut().unwrap().tools = vec![tool];
            verdict_of(&OLD, &state)
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
        let live = LiveFacts {
            kube_proxy_tools: Some(ToolList::parse("t", own).unwrap()),
            kube_proxy_root: Some("/proc/7/root".into()),
            ..LiveFacts::default()
        };
        let verdict = given(&state).live(&live).verdict(&OLD);
        assert!(matches!(verdict, Verdict::Ok(_)), "{verdict:?}");
        let old = InstalledTool::found("iptables", "/sbin/iptables", "iptables v1.8.2 (nf_tables)");
        state.tools.as_mut().unwrap().tools = vec![old];
        let Verdict::Found(found) = given(&state).live(&live).verdict(&OLD) else {
            panic!("not found");
        };
        assert!(found.evidence[0].starts_with("/sbin/iptables iptables v1.8.2"), "{found:?}");
    }
}
