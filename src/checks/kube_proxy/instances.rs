//! Two kube-proxies in one network namespace undo each other.

use super::instances;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::Instances;

pub(crate) const CHECK: Check = Check {
    id: "kube-proxy.instances",
    title: "the number of kube-proxies in this network namespace",
    severity: Severity::Block,
    when: "always",
    applies: always,
    judge,
    reference: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/",
};

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(all) = instances(facts) else {
        return Verdict::Unknown("the processes are not in this state".into());
    };
    let all = match all {
        Instances::None => return Verdict::Ok("no process of that name runs here".into()),
        Instances::One(process) => return Verdict::Ok(format!("one: process {}", process.pid)),
        Instances::Many(all) => all,
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
    use crate::checks::testing::{judged, node};

    #[test]
    fn all_three_outcomes() {
        let mut state = node("docker-iptables-1.30");
        assert_eq!(judged(&CHECK, &state), Verdict::Ok("one: process 1450".into()));
        let mut second = super::super::testing::proxy(&mut state).clone();
        second.pid = 1451;
        second.args.push("--cleanup".into());
        state.processes.as_mut().expect("processes").push(second.clone());
        assert!(matches!(judged(&CHECK, &state), Verdict::Ok(_)), "a clean-up does not serve");
        second.args.pop();
        second.pid = 1452;
        state.processes.as_mut().expect("processes").push(second);
        let Verdict::Found(found) = judged(&CHECK, &state) else { panic!("not found") };
        assert_eq!(found.evidence.len(), 2);
        state.processes = None;
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
    }
}
