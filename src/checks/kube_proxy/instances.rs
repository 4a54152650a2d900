//! Two kube-proxies in one network namespace: each undoes what the other one writes.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::proxy_state::ProxyState;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.instances",
    title: "the number of kube-proxies in this network namespace",
    severity: Severity::Block,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let all = match &facts.proxy {
        ProxyState::One(process) => return Verdict::Ok(format!("one: process {}", process.pid)),
        ProxyState::PartOf(host, process) => {
            return Verdict::Ok(format!("one: a part of {host}, process {}", process.pid));
        }
        ProxyState::Unknown(why) => return Verdict::Unknown(why.clone()),
        ProxyState::Down(_) | ProxyState::Replaced(_) | ProxyState::Gone => {
            return Verdict::Ok("none: kube-proxy.absent says what that means".into());
        }
        ProxyState::Many(all) => all,
    };
    Verdict::Found(Found {
        evidence: all.iter().map(|p| format!("process {}: {}", p.pid, p.args.join(" "))).collect(),
        effect: "each sync of one undoes what the other wrote: services come and go; and which \
                 configuration counts is not known"
            .into(),
        remedy: all
            .iter()
            .map(|p| format!("cat /proc/{}/cgroup   # the pod or unit that started it", p.pid))
            .chain(["stop all but one through what started them".to_owned()])
            .collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, verdict_of};

    #[test]
    fn all_three_outcomes() {
        let node = Node::captured("docker-iptables-1.30");
        assert_eq!(verdict_of(&CHECK, &node.state()), Verdict::Ok("one: process 1450".into()));
        let node = node.process(1451, "kube-proxy", &["kube-proxy", "--cleanup"]);
        let clean_up = verdict_of(&CHECK, &node.state());
        assert!(matches!(clean_up, Verdict::Ok(_)), "a clean-up does not serve");
        let mut state = node.process(1452, "kube-proxy", &["kube-proxy"]).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence.len(), 2);
        state.processes = None;
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
