//! Processes that have the name of a component and do not count.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.lookalikes",
    title: "processes that bear a component's name without its rights",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://man7.org/linux/man-pages/man7/capabilities.7.html",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let all = &facts.now.lookalikes;
    if all.is_empty() {
        return Verdict::Ok("none".into());
    }
    Verdict::Found(Found {
        evidence: all
            .iter()
            .map(|l| format!("process {l}, of user {}: {}", l.uid, l.doubt))
            .collect(),
        effect: "nothing of it is read or asked, and it is neither waited for nor stopped; while \
                 it runs, what it seems to own is kept, for the owner may live"
            .into(),
        remedy: all
            .iter()
            .map(|l| format!("ps -o pid,user,lstart,cmd -p {}   # who started it", l.pid))
            .collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{node, verdict_of};
    use crate::state::lookalikes::{Doubt, Lookalike};

    #[test]
    fn each_is_named_and_says_why() {
        let mut state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        let name = "kube-proxy".into();
        state.lookalikes = vec![Lookalike { pid: 7, name, uid: 1000, doubt: Doubt::User }];
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert_eq!(
            found.evidence,
            ["process 7 (kube-proxy), of user 1000: it does not run as root"]
        );
    }
}
