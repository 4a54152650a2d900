//! The configured mode against the mode in the kernel. They can differ because kube-proxy up to
//! 1.25 falls back to iptables without a message, and because a changed ConfigMap restarts nothing.

use std::collections::BTreeMap;

use super::{config_file, node_name};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;
use crate::kube_proxy::running::served_by_others;
use crate::state::Family;
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.mode",
    title: "the mode that is configured and the mode that the kernel serves",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/57144",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let running = &facts.running;
    let configured = facts.settings.as_ref().map(|s| s.mode());
    match (running.mode, configured) {
        (Some(mode), Some(configured)) if mode == configured => {
            let others = served_by_others(facts.now, mode);
            if !others.is_empty() {
                return half_served(facts, mode, others);
            }
            Verdict::Ok(format!("{mode}: by its configuration, and {}", running.evidence))
        }
        (Some(mode), None) => Verdict::Unknown(format!(
            "the kernel serves {mode} mode ({}), but what kube-proxy was told is not known",
            running.evidence
        )),
        (None, _) if !running.serves() && !facts.proxy.runs() => {
            Verdict::Unknown(format!("{}, and no kube-proxy is known to run", running.evidence))
        }
        (None, Some(configured)) if running.serving.len() == 1 => {
            differs(facts, configured, running.serving[0])
        }
        (mode, _) => {
            let mut evidence = vec![running.evidence.clone()];
            evidence.extend(mode.map(|m| format!("the kernel serves {m} mode")));
            evidence.extend(configured.map(|t| format!("the configuration says {t} mode")));
            let effect = if running.serves() {
                "it is not clear which rules serve, so none can be called a leftover; the next \
                 restart of kube-proxy may change the mode"
            } else {
                "a kube-proxy runs, but no service can be reached through this node"
            };
            found(facts, evidence, effect.into(), Vec::new())
        }
    }
}

/// The finding that in some families only another mode than the running one serves.
fn half_served(facts: &Facts<'_>, mode: Mode, others: BTreeMap<Family, Mode>) -> Verdict {
    let evidence = others.into_iter().flat_map(|(family, other)| {
        let missing = mode::of(mode).missing_objects(facts.now, family);
        missing.into_iter().chain([format!("{family}: {other} mode still serves services")])
    });
    Verdict::Found(Found {
        evidence: evidence.collect(),
        effect: format!(
            "kube-proxy runs in {mode} mode and keeps nothing else up to date: there, connections \
             go to endpoints that are gone, and new services are not reached"
        ),
        remedy: vec![facts.proxy.delivery(facts.now).restart(node_name(facts))],
        fix: Vec::new(),
    })
}

/// The finding on a kube-proxy that is told one mode while the kernel serves another alone.
fn differs(facts: &Facts<'_>, configured: Mode, serving: Mode) -> Verdict {
    let mut evidence = vec![facts.running.evidence.clone()];
    let may_fall_back = facts.running.version.is_none_or(|v| (v.major, v.minor) <= LAST_SILENT);
    // Flags cannot change while a process runs. A file can, and then only a restart reads it.
    let fixed_at_start = facts.proxy.runs() && config_file(facts).is_none();
    let version = facts.running.version.map(|v| v.to_string());
    let who = version.map_or("kube-proxy".to_owned(), |version| format!("kube-proxy {version}"));
    if configured == Mode::Ipvs && may_fall_back && facts.proxy.runs() {
        let or = if fixed_at_start { "" } else { ", or its file was changed since it started" };
        evidence.push(format!(
            "{who} was asked for {configured} and runs {serving}: it fell back{or} (up to 1.25 it \
             does so silently)"
        ));
        let effect = format!(
            "services are served in {serving} mode, not in the one that was asked for; the next \
             restart of kube-proxy may change the mode, so nothing is called a leftover"
        );
        let settings = facts.settings.as_ref();
        let scheduler =
            settings.and_then(|s| s.ipvs.scheduler.as_deref()).map(|s| format!("ip_vs_{s}"));
        let scheduler = scheduler.filter(|module| !NEEDED.contains(&module.as_str()));
        let modules = NEEDED.into_iter().map(str::to_owned).chain(scheduler).collect::<Vec<_>>();
        let load = format!("modprobe -a {}   # what ipvs mode needs", modules.join(" "));
        return found(facts, evidence, effect, vec![load]);
    }
    evidence.push(if !facts.proxy.runs() {
        format!("the configuration says {configured} mode, and no kube-proxy runs")
    } else if fixed_at_start {
        format!("{who} was started in {configured} mode, and has not written its rules")
    } else {
        format!("{configured} mode is in its file, which it reads only when it starts")
    });
    let effect = format!(
        "the rules of {serving} mode serve, and the next start of kube-proxy changes the mode; until \
         then none can be called a leftover"
    );
    found(facts, evidence, effect, Vec::new())
}

/// The kernel modules without which kube-proxy up to 1.25 does not start in ipvs mode.
const NEEDED: [&str; 5] = ["ip_vs", "ip_vs_rr", "ip_vs_wrr", "ip_vs_sh", "nf_conntrack"];

/// The last version that falls back from ipvs to iptables. Later ones end with an error.
const LAST_SILENT: (u32, u32) = (1, 25);

fn found(facts: &Facts<'_>, evidence: Vec<String>, effect: String, before: Vec<String>) -> Verdict {
    let restart = facts.proxy.delivery(facts.now).restart(node_name(facts));
    let mut remedy =
        vec!["curl -s http://127.0.0.1:10249/proxyMode   # what kube-proxy runs".into()];
    remedy.extend(before);
    remedy.push(restart);
    Verdict::Found(Found { evidence, effect, remedy, fix: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    #[test]
    fn ok_where_both_agree() {
        for name in ["docker-iptables-1.30", "half-migrated-ipvs-1.20", "nftables-leftovers-1.30"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
    }

    #[test]
    fn found_where_another_mode_alone_serves_a_family() {
        let state = node("nftables-beside-iptables-1.37");
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(
            found.evidence,
            ["ipv6: there is no table ip6 kube-proxy", "ipv6: iptables mode still serves services"]
        );
    }

    #[test]
    fn found_where_the_configuration_says_otherwise() {
        let path = "files/var/lib/kube-proxy/config.conf";
        let state = Node::captured("docker-iptables-1.30")
            .replace(path, "mode: iptables", "mode: ipvs")
            .state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].contains("says ipvs, but nat KUBE-SERVICES"), "{found:?}");
    }

    #[test]
    fn found_where_a_kube_proxy_serves_nothing() {
        let mut state = node("docker-iptables-1.30");
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Found(_)));
    }

    #[test]
    fn unknown_without_a_configuration_or_without_kube_proxy() {
        let mut state = Node::captured("docker-iptables-1.30")
            .remove("files/var/lib/kube-proxy/config.conf")
            .state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        state.rulesets.clear();
        state.processes = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
