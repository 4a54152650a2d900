//! The kernel modules that ipvs mode needs: one check for each module.

use super::{Presence, install, presence};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// The first kube-proxy that writes rules with the match xt_ipvs (kubernetes PR 119791).
const USES_XT_IPVS: Version = Version { major: 1, minor: 29, patch: 0 };

pub(super) const DUMMY: Check = row("kernel.dummy", "dummy links (dummy)", |facts| {
    let mut dummies = facts.now.links.iter().filter(|l| l.kind.as_deref() == Some("dummy"));
    let used = dummies.next().map(|l| format!("the link {} is one", l.name));
    require(
        facts,
        "dummy",
        used,
        "kube-proxy cannot make kube-ipvs0: service addresses are not this node's, and their \
         traffic leaves it by the default route",
    )
});

pub(super) const IP_VS: Check = row("kernel.ip-vs", "ipvs in the kernel (ip_vs)", |facts| {
    let servers = facts.now.ipvs.servers.len();
    let used = (servers > 0).then(|| format!("it has {servers} virtual servers"));
    require(
        facts,
        "ip_vs",
        used,
        "kube-proxy refuses ipvs mode: up to 1.26 it falls back to iptables without a word, later \
         it ends, and services stop following their pods",
    )
});

pub(super) const XT_IPVS: Check = Check {
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target, and kube-proxy is 1.29 or later, or unknown",
    applies: |facts| {
        facts.concerns(Mode::Ipvs) && facts.running.version.is_none_or(|v| v >= USES_XT_IPVS)
    },
    reference: "https://github.com/kubernetes/kubernetes/pull/119791",
    ..row("kernel.xt-ipvs", "the match of virtual servers (xt_ipvs)", |facts| {
        require(
            facts,
            "xt_ipvs",
            None,
            "kube-proxy 1.29 and later uses it in KUBE-IPVS-OUT-FILTER: once it has such a rule \
             to write, its restore fails as a whole and services stop following their pods",
        )
    })
};

pub(super) const XT_SET: Check = row("kernel.xt-set", "the match of ipsets (xt_set)", |facts| {
    // ipvs mode counts as running only if a rule matches an ipset, and such a rule shows that the
    // kernel has xt_set.
    let runs = facts.running.mode.is_some_and(|mode| mode::of(mode).uses_ipsets());
    require(
        facts,
        "xt_set",
        runs.then(|| facts.running.evidence.clone()),
        "kube-proxy's one restore of rules fails as a whole in ipvs mode: no masquerading, no \
         NodePorts, no source ranges",
    )
});

/// The check of a kernel module that ipvs mode cannot start without.
const fn row(id: &'static str, title: &'static str, evaluate: fn(&Facts<'_>) -> Verdict) -> Check {
    Check {
        id,
        title,
        severity: Severity::Block,
        when: "ipvs mode runs, is configured, or is the target",
        applies: |facts| facts.concerns(Mode::Ipvs),
        evaluate,
        reference: "https://github.com/kubernetes/kubernetes/blob/v1.30.0/pkg/proxy/ipvs/README.md",
    }
}

/// Reports the module `name` as missing if the kernel cannot use it. `used` is evidence that the
/// kernel already uses the module.
fn require(facts: &Facts<'_>, name: &str, used: Option<String>, effect: &str) -> Verdict {
    if let Some(used) = used {
        return Verdict::Ok(used);
    }
    match presence(facts, name) {
        Presence::Present(evidence) | Presence::Loadable(evidence) => Verdict::Ok(evidence),
        Presence::Unknown(why) => Verdict::Unknown(why),
        Presence::Missing(evidence) => Verdict::Found(Found {
            evidence: std::iter::once(evidence).chain(complaint(facts, name)).collect(),
            effect: effect.into(),
            remedy: vec![install(facts, name)],
            fix: Vec::new(),
        }),
    }
}

/// The first log line in which kube-proxy reports that this module is missing.
fn complaint(facts: &Facts<'_>, name: &str) -> Option<String> {
    let mut lines = facts.live.iter().flat_map(|live| &live.kube_proxy_complaints);
    lines.find(|l| l.contains("kernel modules") && l.contains(name)).cloned()
}

#[cfg(test)]
mod tests {
    use super::super::testing::modules;
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};

    #[test]
    fn dummy_is_found_ok_and_unknown() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(
            given(&state).to(Mode::Ipvs).live(&modules(&[], &[])).verdict(&DUMMY),
            Verdict::Found(_)
        ));
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&DUMMY), Verdict::Unknown(_)));
        let verdict = verdict_of(&DUMMY, &node("half-migrated-ipvs-1.20"));
        assert!(matches!(verdict, Verdict::Ok(link) if link.starts_with("the link ")));
    }

    #[test]
    fn ip_vs_is_found_where_it_is_neither_loaded_nor_available() {
        let state = node("docker-iptables-1.30");
        let Verdict::Found(found) =
            given(&state).to(Mode::Ipvs).live(&modules(&["ip_set"], &[])).verdict(&IP_VS)
        else {
            panic!("not found");
        };
        assert!(found.evidence[0].starts_with("ip_vs: not in /proc/modules"), "{found:?}");
        assert!(found.remedy[0].contains("linux-modules-extra-6.18.44"), "{found:?}");
    }

    #[test]
    fn ip_vs_is_ok_where_it_serves_or_can_be_loaded_and_unknown_in_a_snapshot() {
        assert!(matches!(verdict_of(&IP_VS, &node("half-migrated-ipvs-1.20")), Verdict::Ok(_)));
        let state = node("docker-iptables-1.30");
        let verdict = given(&state).to(Mode::Ipvs).live(&modules(&["ip_vs"], &[])).verdict(&IP_VS);
        assert_eq!(verdict, Verdict::Ok("ip_vs can be loaded (modules.dep)".into()));
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&IP_VS), Verdict::Unknown(_)));
    }

    #[test]
    fn xt_ipvs_is_found_ok_and_unknown() {
        let state = node("half-migrated-ipvs-1.20");
        assert!(matches!(verdict_of(&XT_IPVS, &state), Verdict::Unknown(_)));
        let with = |names: &[&str]| {
            given(&state).to(Mode::Ipvs).live(&modules(names, &[])).verdict(&XT_IPVS)
        };
        assert!(matches!(with(&[]), Verdict::Found(_)));
        assert!(matches!(with(&["xt_ipvs"]), Verdict::Ok(_)));
    }

    #[test]
    fn older_versions_do_not_need_xt_ipvs() {
        given(&node("half-migrated-ipvs-1.20")).facts(|facts| {
            assert!((XT_IPVS.applies)(facts));
            facts.running.version = Version::find("1.28.9");
            assert!(!(XT_IPVS.applies)(facts));
        });
    }

    #[test]
    fn xt_set_is_found_ok_and_unknown() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(
            given(&state).to(Mode::Ipvs).live(&modules(&[], &[])).verdict(&XT_SET),
            Verdict::Found(_)
        ));
        let verdict =
            given(&state).to(Mode::Ipvs).live(&modules(&["xt_set"], &[])).verdict(&XT_SET);
        assert!(matches!(verdict, Verdict::Ok(_)));
        assert!(matches!(given(&state).to(Mode::Ipvs).verdict(&XT_SET), Verdict::Unknown(_)));
        let Verdict::Ok(shown) = verdict_of(&XT_SET, &node("half-migrated-ipvs-1.20")) else {
            panic!("not ok");
        };
        assert!(shown.contains("KUBE-CLUSTER-IP"), "{shown}");
    }
}
