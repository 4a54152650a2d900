//! firewalld: by default, a reload of firewalld flushes the rules of all programs.

use super::{RulesWriter, active};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "writers.firewalld",
    title: "firewalld, which flushes all rules when it reloads",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://firewalld.org/documentation/man-pages/firewalld.conf.html",
};

const CONFIG: &str = "/etc/firewalld/firewalld.conf";

const FIREWALLD: RulesWriter = RulesWriter {
    name: "firewalld",
    process: Some("firewalld"),
    owner: Some("firewalld"),
    files: &[],
    units: &["firewalld.service"],
    unit_decides: false,
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
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
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};
    use crate::state::NodeState;

    fn running(config: Option<&str>) -> NodeState {
        let node = Node::captured("docker-iptables-1.30").process(7, "firewalld", &[]);
        match config {
            Some(config) => node.put_file(CONFIG, config).state(),
            None => node.state(),
        }
    }

    #[test]
    fn found_where_it_flushes() {
        for (config, evidence) in [
            (Some("A=b\nFlushAllOnReload=yes\n"), "firewalld.conf:2: FlushAllOnReload=yes"),
            (Some("A=b\n"), "its default is yes"),
            (None, "not in this state"),
        ] {
            let Verdict::Found(found) = verdict_of(&CHECK, &running(config)) else {
                panic!("not found: {config:?}");
            };
            assert!(found.evidence[1].contains(evidence), "{found:?}");
        }
    }

    #[test]
    fn ok_without_it_or_configured_not_to_and_unknown_without_processes() {
        assert!(matches!(
            verdict_of(&CHECK, &running(Some("FlushAllOnReload=no\n"))),
            Verdict::Ok(_)
        ));
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        state.processes = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
