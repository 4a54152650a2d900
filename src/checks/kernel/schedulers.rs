//! The ipvs schedulers whose kernel modules kube-proxy requires, including the configured
//! scheduler.

use std::collections::BTreeSet;

use super::{Presence, install, presence};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "kernel.schedulers",
    title: "the schedulers of ipvs (ip_vs_rr and others)",
    severity: Severity::Block,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/blob/v1.30.0/pkg/proxy/ipvs/README.md",
};

/// The scheduler modules that this kube-proxy requires, the same that the stage `prepare` loads.
pub(super) fn needed(facts: &Facts<'_>) -> BTreeSet<String> {
    mode::of(Mode::Ipvs).modules(facts.settings.as_ref(), facts.running.version)
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let used: BTreeSet<String> =
        facts.now.ipvs.servers.iter().map(|s| format!("ip_vs_{}", s.scheduler)).collect();
    let mut present = Vec::new();
    let mut missing = Vec::new();
    let mut unknown = Vec::new();
    let mut names = Vec::new();
    for name in needed(facts) {
        if used.contains(&name) {
            present.push(format!("virtual servers use {name}"));
            continue;
        }
        match presence(facts, &name) {
            Presence::Present(shown) | Presence::Loadable(shown) => present.push(shown),
            Presence::Missing(evidence) => {
                missing.push(evidence);
                names.push(name);
            }
            Presence::Unknown(why) => unknown.push(why),
        }
    }
    if !missing.is_empty() {
        return Verdict::Found(Found {
            evidence: missing,
            effect: "kube-proxy up to 1.26 falls back to iptables without a word when one is not \
                     there; later versions cannot make a virtual server with it"
                .into(),
            remedy: vec![install(facts, &names.join(", "))],
            fix: Vec::new(),
        });
    }
    match &unknown[..] {
        [] => Verdict::Ok(present.join("; ")),
        unknown => Verdict::Unknown(unknown.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::modules;
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::tools::Version;

    #[test]
    fn found_ok_and_unknown() {
        let state = node("docker-iptables-1.30");
        let with = |names: &[&str]| {
            given(&state).to(Mode::Ipvs).live(&modules(names, &[])).verdict(&CHECK)
        };
        let Verdict::Found(found) = with(&["ip_vs_rr", "ip_vs_sh"]) else { panic!("not found") };
        assert!(found.evidence[0].starts_with("ip_vs_wrr: not in"), "{found:?}");
        assert!(matches!(with(&["ip_vs_rr", "ip_vs_sh", "ip_vs_wrr"]), Verdict::Ok(_)));
        let mut snapshot = node("half-migrated-ipvs-1.20");
        snapshot.files.remove("modules.txt");
        assert!(matches!(verdict_of(&CHECK, &snapshot), Verdict::Unknown(_)));
    }

    #[test]
    fn a_new_version_needs_only_the_configured_one() {
        let mut state = node("half-migrated-ipvs-1.20");
        let config = "mode: ipvs\nipvs: {scheduler: lc}\n";
        state.files.insert("files/var/lib/kube-proxy/config.conf".into(), config.into());
        given(&state).facts(|facts| {
            assert_eq!(needed(facts).len(), 4);
            facts.running.version = Version::find("1.30.5");
            assert_eq!(needed(facts), BTreeSet::from(["ip_vs_lc".to_owned()]));
        });
    }
}
