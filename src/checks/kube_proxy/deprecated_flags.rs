//! Flags that a later kube-proxy warns of, passes over, or refuses to start with.

use super::instances;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::{CommandLine, Instances, Mode, flag_names};

/// A flag, what became of it, and what to do instead.
const DEPRECATED: [(&str, &str, &str); 6] = [
    ("cleanup-ipvs", "deprecated from 1.17, gone in 1.21", "take --cleanup-ipvs out"),
    ("cleanup-iptables", "gone; --cleanup took its place", "take --cleanup-iptables out"),
    (
        "healthz-port",
        "deprecated",
        "--healthz-bind-address=ADDRESS:PORT in place of --healthz-port",
    ),
    (
        "metrics-port",
        "deprecated",
        "--metrics-bind-address=ADDRESS:PORT in place of --metrics-port",
    ),
    (
        "proxy-port-range",
        "without effect since userspace mode is gone (1.26)",
        "take --proxy-port-range out",
    ),
    ("udp-timeout", "of userspace mode, gone in 1.26", "take --udp-timeout out"),
];

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.deprecated-flags",
    title: "flags of kube-proxy that later versions do not have",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(all) = instances(facts) else {
        return Verdict::Unknown("the processes are not in this state".into());
    };
    if all == Instances::None {
        return Verdict::Unknown("no kube-proxy process runs here".into());
    }
    let (mut evidence, mut remedy) = (Vec::new(), Vec::new());
    for process in all.all() {
        for flag in flag_names(&process.args) {
            if let Some((_, fate, instead)) = DEPRECATED.iter().find(|(name, ..)| *name == flag) {
                evidence.push(format!("--{flag} (process {}): {fate}", process.pid));
                remedy.push((*instead).to_owned());
            }
        }
        let line = CommandLine::parse(&process.args).ok();
        let mode = line.and_then(|line| line.flags.mode);
        if let Some((mode, minor)) = mode.and_then(|mode| Some((mode, mode::of(mode).dropped()?))) {
            let pid = process.pid;
            evidence.push(format!("--proxy-mode={mode} (process {pid}): gone in 1.{minor}"));
            remedy.push(format!("--proxy-mode={}", Mode::default()));
        }
    }
    if evidence.is_empty() {
        return Verdict::Ok("no such flag is given".into());
    }
    Verdict::Found(Found {
        evidence,
        effect:
            "after an upgrade that drops a flag, kube-proxy does not start, and no change of a \
                 service reaches the node"
                .into(),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::started;
    use super::*;
    use crate::checks::testing::{judged, node};

    #[test]
    fn all_three_outcomes() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        let args = [
            "kube-proxy",
            "--cleanup-ipvs=false",
            "--healthz-port",
            "1",
            "--proxy-mode",
            "userspace",
        ];
        let Verdict::Found(found) = judged(&CHECK, &started("docker-iptables-1.30", &args)) else {
            panic!("not found")
        };
        assert_eq!(found.evidence.len(), 3, "{found:?}");
        state.processes = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
