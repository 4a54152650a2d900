//! Flags of kube-proxy that have no effect, and flags that later versions do not accept.

use super::instances;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always, no_processes};
use crate::kube_proxy::mode;
use crate::state::kube_proxy::{CommandLine, Instances, Mode, flag_names, heeded_beside_config};
use crate::state::tools::Process;

/// A flag, when it was deprecated and removed, and what to do instead.
const DEPRECATED_FLAGS: [(&str, &str, &str); 6] = [
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

pub(super) const DEPRECATED: Check = Check {
    id: "kube-proxy.deprecated-flags",
    title: "flags of kube-proxy that later versions do not have",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate: |facts| {
        faults(
            facts,
            deprecated,
            "no such flag is given",
            "after an upgrade that drops a flag, kube-proxy does not start, and no change of a \
             service reaches the node",
        )
    },
    reference: REFERENCE,
};

pub(super) const IGNORED: Check = Check {
    id: "kube-proxy.flags",
    title: "flags that kube-proxy ignores beside --config",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate: |facts| {
        faults(
            facts,
            ignored,
            "no flag is ignored",
            "these flags do nothing: the file alone counts, so the mode or the networks may not \
             be what the command line says",
        )
    },
    reference: REFERENCE,
};

const REFERENCE: &str =
    "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/";

/// What is wrong with one flag, and the remedy.
struct FlagFault {
    evidence: String,
    remedy: String,
}

/// The verdict on the command lines of all kube-proxy processes.
fn faults(
    facts: &Facts<'_>,
    of_process: fn(&Process) -> Vec<FlagFault>,
    fine: &str,
    effect: &str,
) -> Verdict {
    let Some(all) = instances(facts) else { return no_processes() };
    if all == Instances::None {
        return Verdict::Unknown("no kube-proxy process runs here".into());
    }
    let faults: Vec<FlagFault> = all.all().iter().flat_map(|process| of_process(process)).collect();
    if faults.is_empty() {
        return Verdict::Ok(fine.into());
    }
    let (evidence, remedy) = faults.into_iter().map(|f| (f.evidence, f.remedy)).unzip();
    Verdict::Found(Found { evidence, effect: effect.into(), remedy, fix: Vec::new() })
}

/// The flags on a process's command line that a later version of kube-proxy does not accept.
fn deprecated(process: &Process) -> Vec<FlagFault> {
    let pid = process.pid;
    let fault = |flag: String| {
        let (_, fate, instead) = DEPRECATED_FLAGS.iter().find(|(name, ..)| *name == flag)?;
        let evidence = format!("--{flag} (process {pid}): {fate}");
        Some(FlagFault { evidence, remedy: (*instead).to_owned() })
    };
    let mut faults: Vec<FlagFault> = flag_names(&process.args).filter_map(fault).collect();
    let mode = CommandLine::parse(&process.args).ok().and_then(|line| line.flags.mode);
    if let Some((mode, minor)) = mode.and_then(|mode| Some((mode, mode::of(mode).dropped()?))) {
        let evidence = format!("--proxy-mode={mode} (process {pid}): gone in 1.{minor}");
        faults.push(FlagFault { evidence, remedy: format!("--proxy-mode={}", Mode::default()) });
    }
    faults
}

/// The flags on a process's command line that have no effect, because `--config` makes kube-proxy
/// ignore them.
fn ignored(process: &Process) -> Vec<FlagFault> {
    let config = CommandLine::parse(&process.args).ok().and_then(|line| line.config);
    let Some(config) = config else { return Vec::new() };
    let fault = |flag: String| FlagFault {
        evidence: format!("--{flag} beside --config={config} (process {})", process.pid),
        remedy: format!("--{flag}   # take it out; say it in {config} if it is meant"),
    };
    flag_names(&process.args).filter(|flag| !heeded_beside_config(flag)).map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, verdict_of};

    fn captured() -> Node {
        Node::captured("docker-iptables-1.30")
    }

    #[test]
    fn both_are_ok_without_such_flags_and_unknown_without_processes() {
        let mut state = captured().state();
        for check in [&DEPRECATED, &IGNORED] {
            assert!(matches!(verdict_of(check, &state), Verdict::Ok(_)), "{}", check.id);
        }
        state.processes = None;
        for check in [&DEPRECATED, &IGNORED] {
            assert!(matches!(verdict_of(check, &state), Verdict::Unknown(_)), "{}", check.id);
        }
    }

    #[test]
    fn deprecated_flags_are_found_in_both_forms() {
        let args = [
            "kube-proxy",
            "--cleanup-ipvs=false",
            "--healthz-port",
            "1",
            "--proxy-mode",
            "userspace",
        ];
        let state = captured().kube_proxy_args(&args).state();
        let Verdict::Found(found) = verdict_of(&DEPRECATED, &state) else { panic!("not found") };
        assert_eq!(found.evidence.len(), 3, "{found:?}");
    }

    #[test]
    fn flags_are_ignored_beside_a_file_alone() {
        let args =
            ["kube-proxy", "--config", "/c", "--proxy_mode=ipvs", "--v=2", "--masquerade-all"];
        let state = captured().kube_proxy_args(&args).state();
        let Verdict::Found(found) = verdict_of(&IGNORED, &state) else { panic!("not found") };
        assert_eq!(found.evidence.len(), 2, "{found:?}");
        assert!(found.evidence[0].starts_with("--proxy-mode beside --config=/c"), "{found:?}");
        let state = captured().kube_proxy_args(&["kube-proxy", "--proxy-mode=ipvs"]).state();
        let verdict = verdict_of(&IGNORED, &state);
        assert!(matches!(verdict, Verdict::Ok(_)), "without a file, flags count");
    }
}
