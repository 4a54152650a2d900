//! Beside `--config` nearly every other flag is ignored.

use super::instances;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::{CommandLine, Instances, flag_names, heeded_beside_config};

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.flags",
    title: "flags that kube-proxy ignores beside --config",
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
        let config = CommandLine::parse(&process.args).ok().and_then(|line| line.config);
        let Some(config) = config else { continue };
        for flag in flag_names(&process.args).filter(|f| !heeded_beside_config(f)) {
            let pid = process.pid;
            evidence.push(format!("--{flag} beside --config={config} (process {pid})"));
            remedy.push(format!("--{flag}   # take it out; say it in {config} if it is meant"));
        }
    }
    if evidence.is_empty() {
        return Verdict::Ok("no flag is ignored".into());
    }
    Verdict::Found(Found {
        evidence,
        effect: "these flags do nothing: the file alone counts, so the mode or the networks may \
                 not be what the command line says"
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
        let args =
            ["kube-proxy", "--config", "/c", "--proxy_mode=ipvs", "--v=2", "--masquerade-all"];
        let Verdict::Found(found) = judged(&CHECK, &started("docker-iptables-1.30", &args)) else {
            panic!("not found")
        };
        assert_eq!(found.evidence.len(), 2, "{found:?}");
        assert!(found.evidence[0].starts_with("--proxy-mode beside --config=/c"), "{found:?}");
        let args = ["kube-proxy", "--proxy-mode=ipvs"];
        let verdict = judged(&CHECK, &started("docker-iptables-1.30", &args));
        assert!(matches!(verdict, Verdict::Ok(_)), "without a file, flags count");
        state.processes = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
