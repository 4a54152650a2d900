//! firewalld, which by default flushes everybody's rules when it reloads.

use super::super::{Check, Facts, Found, Severity, Verdict, always};
use super::{Writer, active};

pub(in crate::checks) const CHECK: Check = Check {
    id: "writers.firewalld",
    title: "firewalld, which flushes all rules when it reloads",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://firewalld.org/documentation/man-pages/firewalld.conf.html",
};

const CONFIG: &str = "/etc/firewalld/firewalld.conf";

const FIREWALLD: Writer = Writer {
    name: "firewalld",
    process: Some("firewalld"),
    owner: Some("firewalld"),
    files: &[],
    units: &["firewalld.service"],
    unit_decides: false,
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let mut evidence = FIREWALLD.traces(facts);
    if evidence.is_empty() {
        return match FIREWALLD.missing(facts) {
            Some(why) => Verdict::Unknown(why),
            None => Verdict::Ok(format!("nothing shows {}", FIREWALLD.name)),
        };
    }
    let set = |value: &str| active(facts, CONFIG, &format!("FlushAllOnReload={value}"));
    if let Some(off) = set("no") {
        return Verdict::Ok(format!("firewalld is active, but {off}"));
    }
    evidence.push(match (set("yes"), facts.now.file(CONFIG)) {
        (Some(on), _) => on,
        (None, Some(_)) => format!("{CONFIG} does not set FlushAllOnReload; its default is yes"),
        (None, None) => {
            format!("{CONFIG} is not in this state; FlushAllOnReload is yes by default")
        }
    });
    Verdict::Found(Found {
        evidence,
        effect: "`firewall-cmd --reload` removes the rules of kube-proxy, docker and the CNI: \
                 docker's do not come back by themselves"
            .into(),
        remedy: vec![
            format!("in {CONFIG}: FlushAllOnReload=no, then systemctl restart firewalld"),
            "after a reload that did flush: systemctl restart docker".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, node};
    use super::*;
    use crate::state::NodeState;
    use crate::state::tools::Process;

    fn running(config: Option<&str>) -> NodeState {
        let mut state = node("docker-iptables-1.30");
        state.processes.as_mut().unwrap().push(Process {
            pid: 7,
            name: "firewalld".into(),
            args: Vec::new(),
            version: None,
            version_source: None,
        });
        if let Some(config) = config {
            state.files.insert(format!("files{CONFIG}"), config.into());
        }
        state
    }

    #[test]
    fn found_where_it_flushes() {
        for (config, evidence) in [
            (Some("A=b\nFlushAllOnReload=yes\n"), "firewalld.conf:2: FlushAllOnReload=yes"),
            (Some("A=b\n"), "its default is yes"),
            (None, "not in this state"),
        ] {
            let Verdict::Found(found) = judged(&CHECK, &running(config)) else {
                panic!("not found: {config:?}");
            };
            assert!(found.evidence[1].contains(evidence), "{found:?}");
        }
    }

    #[test]
    fn ok_without_it_or_told_not_to_and_unknown_without_processes() {
        assert!(matches!(judged(&CHECK, &running(Some("FlushAllOnReload=no\n"))), Verdict::Ok(_)));
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)));
        state.processes = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
