//! Modules that were loaded by hand are gone after a reboot.

use std::collections::BTreeSet;

use super::super::{Check, Facts, Found, Severity, Verdict};
use super::schedulers;
use crate::state::kube_proxy::Mode;
use crate::state::live_facts::Availability;

pub(in crate::checks) const CHECK: Check = Check {
    id: "kernel.modules-at-boot",
    title: "the modules of ipvs mode after a reboot",
    severity: Severity::Warn,
    when: "ipvs mode runs, or is the target; a live node alone can be asked",
    applies: |facts| facts.concerns(Mode::Ipvs),
    judge,
    reference: "https://man7.org/linux/man-pages/man5/modules-load.d.5.html",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(modules) = facts.live.and_then(|a| a.modules.as_ref()) else {
        return Verdict::Unknown("a live node alone can be asked".into());
    };
    let mut needed = schedulers::needed(facts);
    needed.insert("ip_vs".into());
    // Built in, they are always there; missing, no file would bring them.
    let by_file = |n: &&String| {
        matches!(modules.availability(n), Availability::Loaded | Availability::Loadable)
    };
    let by_file: BTreeSet<&String> = needed.iter().filter(by_file).collect();
    // A scheduler brings ip_vs with it.
    let brought = |n: &str| {
        modules.at_boot.contains(n)
            || n == "ip_vs" && modules.at_boot.iter().any(|m| m.starts_with("ip_vs_"))
    };
    if by_file.is_empty() {
        return Verdict::Ok("none of them comes from the disk".into());
    }
    let missing: Vec<&str> = by_file.iter().map(|n| n.as_str()).filter(|n| !brought(n)).collect();
    if missing.is_empty() {
        return Verdict::Ok("/etc/modules-load.d names those that are not built in".into());
    }
    let lines = missing.join("\\n");
    Verdict::Found(Found {
        evidence: vec![format!(
            "{}: in no file of /etc/modules-load.d, nor in /etc/modules",
            missing.join(", ")
        )],
        effect:
            "after a reboot kube-proxy has to load them itself, which it cannot in a container \
                 without /lib/modules: ipvs mode does not start"
                .into(),
        remedy: vec![format!("printf '{lines}\\n' > /etc/modules-load.d/kube-proxy-ipvs.conf")],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, node};
    use super::super::testing::judged_with;
    use super::*;

    const ALL: [&str; 4] = ["ip_vs", "ip_vs_rr", "ip_vs_sh", "ip_vs_wrr"];

    #[test]
    fn found_ok_and_unknown() {
        let state = node("half-migrated-ipvs-1.20");
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        let at_boot = |names: &[&str]| judged_with(&CHECK, &state, Mode::Ipvs, &ALL, names);
        let Verdict::Found(found) = at_boot(&["ip_vs_rr", "ip_vs_sh"]) else {
            panic!("not found");
        };
        assert_eq!(
            found.remedy,
            ["printf 'ip_vs_wrr\\n' > /etc/modules-load.d/kube-proxy-ipvs.conf"]
        );
        assert!(matches!(at_boot(&ALL), Verdict::Ok(_)));
        // What is nowhere is for another check.
        assert!(matches!(judged_with(&CHECK, &state, Mode::Ipvs, &[], &[]), Verdict::Ok(_)));
    }
}
