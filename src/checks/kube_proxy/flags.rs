//! Flags of kube-proxy that have no effect, and flags that later versions do not accept.

use super::{instances, no_process};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode;
use crate::kube_proxy::running::NEWEST_KNOWN;
use crate::state::kube_proxy::{
    CommandLine, Mode, RetiredFlag, flag_names, heeded_beside_config, is_flag, retired_flag,
};
use crate::state::tools::Process;

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
    let all = instances(facts);
    if all.is_empty() {
        return no_process(facts);
    }
    let faults: Vec<FlagFault> = all.iter().flat_map(|process| of_process(process)).collect();
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
        let (fate, instead) = match retired_flag(&flag) {
            Some(RetiredFlag { gone: Some(minor), instead, .. }) => {
                (format!("kube-proxy from 1.{minor} on does not have it"), *instead)
            }
            Some(RetiredFlag { gone: None, instead, .. }) => ("deprecated".to_owned(), *instead),
            None if is_flag(&flag) => return None,
            None => (format!("kube-proxy 1.{NEWEST_KNOWN} does not have it"), ""),
        };
        let evidence = format!("--{flag} (process {pid}): {fate}");
        let remedy = match instead {
            "" => format!("take --{flag} out before the upgrade"),
            instead => format!("{instead} in place of --{flag}"),
        };
        Some(FlagFault { evidence, remedy })
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
    fn flags_of_long_ago_and_of_nobody_are_found() {
        let args = ["kube-proxy", "--resource-container=", "--conntrack-max", "1", "--log_dir=/l"];
        let args: Vec<&str> = args.into_iter().chain(["--jwt=x", "--v=2", "--master=m"]).collect();
        let state = captured().kube_proxy_args(&args).state();
        let Verdict::Found(found) = verdict_of(&DEPRECATED, &state) else { panic!("not found") };
        let fates: Vec<&str> =
            found.evidence.iter().map(|e| e.rsplit(": ").next().expect("a fate")).collect();
        assert_eq!(
            fates,
            [
                "kube-proxy from 1.16 on does not have it",
                "kube-proxy from 1.16 on does not have it",
                "kube-proxy from 1.26 on does not have it",
                "kube-proxy 1.37 does not have it",
            ]
        );
        assert!(found.remedy[1].starts_with("--conntrack-max-per-core and"), "{found:?}");
        assert_eq!(found.remedy[2], "take --log-dir out before the upgrade");
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
