//! Privileges: changing a node needs root with root's capabilities.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always, not_live};

pub(super) const CHECK: Check = Check {
    id: "tools.privileges",
    title: "the right to change the network and to mount",
    severity: Severity::Block,
    when: "always; a live node alone can be asked",
    applies: always,
    evaluate,
    reference: "https://man7.org/linux/man-pages/man7/capabilities.7.html",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    match facts.live {
        None => not_live(),
        Some(live) if live.privileged => {
            Verdict::Ok("root with CAP_NET_ADMIN and CAP_SYS_ADMIN".into())
        }
        Some(_) => Verdict::Found(Found {
            evidence: vec!["not root, or without CAP_NET_ADMIN or CAP_SYS_ADMIN".into()],
            effect: "traffic goes on, but no run can begin, and some of the state is hidden".into(),
            remedy: vec![
                "sudo proxyshift …".into(),
                "in a pod: hostNetwork: true, securityContext: {privileged: true}".into(),
            ],
            fix: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    #[test]
    fn root_is_ok_another_is_found_and_a_snapshot_does_not_say() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        for privileged in [true, false] {
            let live = LiveFacts { privileged, ..LiveFacts::default() };
            let verdict = given(&state).live(&live).verdict(&CHECK);
            assert_eq!(matches!(verdict, Verdict::Ok(_)), privileged);
            assert_eq!(matches!(verdict, Verdict::Found(_)), !privileged);
        }
    }
}
