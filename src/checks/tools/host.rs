//! The programs of the host that proxyshift runs to save and restore the node's state.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;

pub(super) const CHECK: Check = Check {
    id: "tools.host",
    title: "the host's own programs for what the kernel holds, or will hold",
    severity: Severity::Block,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://www.netfilter.org/projects/index.html",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(tools) = &facts.now.tools else {
        return Verdict::Unknown("the tools are not in this state".into());
    };
    let needed = needed(facts);
    let missing = |(name, ..): &&Need| tools.get(name).is_some_and(|t| t.path.is_none());
    let found: Vec<&Need> = needed.iter().filter(missing).collect();
    if !found.is_empty() {
        let evidence = found.iter().map(|(name, _, what)| format!("{name}: missing; there {what}"));
        let mut packages: Vec<&str> = found.iter().map(|(_, package, _)| *package).collect();
        packages.dedup();
        return Verdict::Found(Found {
            evidence: evidence.collect(),
            effect: "traffic goes on, but nothing of this can be saved, so no run may begin".into(),
            remedy: vec![format!("apt-get install {}", packages.join(" "))],
            fix: Vec::new(),
        });
    }
    let unlisted = |(name, ..): &&Need| tools.get(name).is_none();
    let unlisted: Vec<&str> =
        needed.iter().filter(unlisted).map(|(name, ..)| name.as_str()).collect();
    match &unlisted[..] {
        [] => Verdict::Ok(format!("{} programs are needed and there", needed.len())),
        names => Verdict::Unknown(format!("the list of tools does not name {}", names.join(", "))),
    }
}

/// The name of a program, its package, and what proxyshift uses it for.
type Need = (String, &'static str, String);

fn needed(facts: &Facts<'_>) -> Vec<Need> {
    let state = facts.now;
    let mut needed = Vec::new();
    for (id, ruleset) in &state.rulesets {
        if !ruleset.tables.iter().all(|t| t.is_pristine()) {
            let what = format!("are {} rules of {id}", ruleset.rule_count());
            needed.push((format!("{id}-save"), "iptables", what.clone()));
            needed.push((format!("{id}-restore"), "iptables", what));
        }
    }
    let modes = || facts.running.mode.into_iter().chain(facts.to).map(mode::of);
    for (name, package, count, what) in [
        ("ipset", "ipset", state.ipsets.sets.len(), "ipsets"),
        ("ipvsadm", "ipvsadm", state.ipvs.servers.len(), "virtual servers"),
        ("nft", "nftables", state.native_tables().len(), "native nf_tables tables"),
    ] {
        if count > 0 {
            needed.push((name.into(), package, format!("are {count} {what}")));
        } else if modes().any(|mode| mode.host_tools().contains(&name)) {
            needed.push((name.into(), package, format!("will be {what}")));
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::kube_proxy::Mode;
    use crate::state::tools::InstalledTool;

    fn listed() -> crate::state::NodeState {
        let mut state = node("half-migrated-ipvs-1.20");
        let tools = &mut state.tools.as_mut().unwrap().tools;
        for name in ["iptables-nft-save", "iptables-nft-restore"] {
            tools.push(InstalledTool::found(name, &format!("/usr/sbin/{name}"), ""));
        }
        state
    }

    #[test]
    fn ok_with_all_of_them_and_unknown_where_the_list_is_short() {
        let verdict = verdict_of(&CHECK, &listed());
        assert_eq!(verdict, Verdict::Ok("4 programs are needed and there".into()));
        let verdict = verdict_of(&CHECK, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Unknown(why) if why.contains("iptables-nft-save")));
    }

    #[test]
    fn found_where_one_is_missing() {
        let mut state = listed();
        let tools = &mut state.tools.as_mut().unwrap().tools;
        *tools.iter_mut().find(|t| t.name == "ipvsadm").unwrap() =
            InstalledTool::missing("ipvsadm");
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].starts_with("ipvsadm: missing; there are"), "{found:?}");
        assert_eq!(found.remedy, ["apt-get install ipvsadm"]);
    }

    #[test]
    fn a_target_needs_what_can_show_it() {
        let mut state = node("docker-iptables-1.30");
        let tools = &mut state.tools.as_mut().unwrap().tools;
        *tools.iter_mut().find(|t| t.name == "ipvsadm").unwrap() =
            InstalledTool::missing("ipvsadm");
        assert!(!matches!(verdict_of(&CHECK, &state), Verdict::Found(_)));
        let Verdict::Found(found) = given(&state).to(Mode::Ipvs).verdict(&CHECK) else {
            panic!("not found");
        };
        assert_eq!(found.evidence, ["ipvsadm: missing; there will be virtual servers"]);
    }
}
