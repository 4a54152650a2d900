//! Rules of a kube-proxy that does not run: nobody keeps them up to date.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::proxy_state::ProxyState;
use crate::state::kube_proxy::log::fatal_line;
use crate::state::shared_str::SharedStr;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.absent",
    title: "rules of a kube-proxy that does not run",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/119265",
};

/// The log of a kube-proxy that is a service of the host.
const LOG: &str = "/var/log/kube-proxy.log";

/// The logs of a kube-proxy that is a pod.
const POD_LOGS: &str = "/var/log/pods/kube-system_kube-proxy-";

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(absence) = facts.proxy.absence() else {
        return match &facts.proxy {
            ProxyState::Unknown(why) => Verdict::Unknown(why.clone()),
            _ => Verdict::Ok("kube-proxy runs".into()),
        };
    };
    if !facts.running.serves() {
        return Verdict::Ok(format!("{absence}, and the kernel holds no service of it"));
    }
    let mut evidence = vec![absence, format!("its rules are here: {}", facts.running.evidence)];
    let logs = facts.proxy.delivery(facts.now).logs();
    let (effect, remedy) = match &facts.proxy {
        ProxyState::Replaced(other) => {
            let remedy = [
                vec![
                    "kubectl -n kube-system get daemonset kube-proxy   # none: it was removed on \
                     purpose"
                        .to_owned(),
                    format!("{CLEAN_UP}   # if {} serves in its place", other.name),
                ],
                logs.into_iter().map(|log| format!("{log}   # if it should run")).collect(),
            ];
            let effect = format!(
                "nobody keeps these rules up to date: they are stale service rules, which lead to \
                 endpoints that may be gone, and come before what {0} serves; if {0} does not serve \
                 services, kube-proxy is down",
                other.name
            );
            (effect, remedy.concat())
        }
        ProxyState::Down(_) => {
            evidence.extend(end_of_log(facts));
            let effect = "no change of a service reaches this node: connections go to endpoints \
                          that are gone, and new services have none";
            (effect.to_owned(), logs)
        }
        _ => {
            let effect = "these are stale service rules: whoever connects to a service from this \
                          node is led to endpoints that may be gone";
            (effect.to_owned(), vec![format!("{CLEAN_UP}   # if it will not come back")])
        }
    };
    Verdict::Found(Found { evidence, effect, remedy, fix: Vec::new() })
}

/// The command that removes all rules of kube-proxy.
const CLEAN_UP: &str =
    "kube-proxy --cleanup   # of the version that ran here, as root in the host's network";

/// The last line of kube-proxy's log that says why it ended.
fn end_of_log(facts: &Facts<'_>) -> Option<String> {
    let live = facts.live.and_then(|live| live.kube_proxy_end.clone());
    let captured = || {
        let logs = facts.now.files.iter().rev();
        let mut logs = logs.filter_map(|(name, text)| Some((name.strip_prefix("files")?, text)));
        let end = |(path, text): (&str, &SharedStr)| {
            let of_kube_proxy = path == LOG || path.starts_with(POD_LOGS);
            Some(format!("{path}: {}", fatal_line(text).filter(|_| of_kube_proxy)?))
        };
        logs.find_map(end)
    };
    live.or_else(captured)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    #[test]
    fn all_three_outcomes() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        let processes = state.processes.as_mut().unwrap();
        processes.retain(|process| process.name != "kube-proxy");
        let end = Some("/var/log/pods/x/0.log: F0825 10:00:00.1 1 server.go:490] x".to_owned());
        let live = LiveFacts { kube_proxy_end: end.clone(), ..LiveFacts::default() };
        let Verdict::Found(found) = given(&state).live(&live).verdict(&CHECK) else {
            panic!("not found")
        };
        assert_eq!(found.evidence.last(), end.as_ref());
        state.rulesets.clear();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)), "nothing of it is here");
        state.processes = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
