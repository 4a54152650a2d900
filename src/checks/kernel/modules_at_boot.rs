//! Kernel modules that are loaded now, but that no file loads at the next boot.

use std::collections::BTreeSet;

use super::schedulers;
use crate::checks::{Check, Facts, Found, Severity, Verdict, not_live};
use crate::state::kube_proxy::Mode;
use crate::state::live_facts::Availability;

pub(super) const CHECK: Check = Check {
    id: "kernel.modules-at-boot",
    title: "the modules of ipvs mode after a reboot",
    severity: Severity::Warn,
    when: "ipvs mode runs, is configured, or is the target; a live node alone can be asked",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate,
    reference: "https://man7.org/linux/man-pages/man5/modules-load.d.5.html",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(modules) = facts.live.and_then(|a| a.modules.as_ref()) else {
        return not_live();
    };
    let mut needed = schedulers::needed(facts);
    needed.insert("ip_vs".into());
    // Only a loadable module needs a file that loads it. A built-in module needs no file, and no
    // file can load a module that is missing.
    let by_file = |n: &&String| {
        matches!(modules.availability(n), Availability::Loaded | Availability::Loadable)
    };
    let by_file: BTreeSet<&String> = needed.iter().filter(by_file).collect();
    // A file that loads a scheduler loads ip_vs too.
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
    use super::super::testing::modules;
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};

    const ALL: [&str; 4] = ["ip_vs", "ip_vs_rr", "ip_vs_sh", "ip_vs_wrr"];

    #[test]
    fn found_ok_and_unknown() {
        let state = node("half-migrated-ipvs-1.20");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let at_boot = |names: &[&str]| {
            given(&state).to(Mode::Ipvs).live(&modules(&ALL, names)).verdict(&CHECK)
        };
        let Verdict::Found(found) = at_boot(&["ip_vs_rr", "ip_vs_sh"]) else {
            panic!("not found");
        };
        assert_eq!(
            found.remedy,
            ["printf 'ip_vs_wrr\\n' > /etc/modules-load.d/kube-proxy-ipvs.conf"]
        );
        assert!(matches!(at_boot(&ALL), Verdict::Ok(_)));
        // This check does not report a module that the kernel lacks, because another check does.
        assert!(matches!(
            given(&state).to(Mode::Ipvs).live(&modules(&[], &[])).verdict(&CHECK),
            Verdict::Ok(_)
        ));
    }
}
