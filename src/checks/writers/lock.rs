//! The lock that every writer of legacy rules shares.

use std::time::Duration;

use super::super::{Check, Facts, Found, Severity, Verdict, always};

pub(in crate::checks) const CHECK: Check = Check {
    id: "writers.lock",
    title: "the lock of iptables, and who holds it",
    severity: Severity::Warn,
    when: "always; a live node alone can be asked",
    applies: always,
    judge,
    reference: "https://man7.org/linux/man-pages/man8/iptables.8.html",
};

/// From here on somebody holds it so long that others notice.
const LONG: Duration = Duration::from_millis(500);

fn judge(facts: &Facts<'_>) -> Verdict {
    let Some(asked) = facts.live else {
        return Verdict::Unknown("a live node alone can be asked".into());
    };
    let Some(wait) = asked.lock_wait else {
        return Verdict::Unknown("/run/xtables.lock cannot be opened".into());
    };
    let shown = match &asked.lock_holder {
        Some(holder) => format!("/run/xtables.lock: {holder}"),
        None => format!("/run/xtables.lock was had after {} ms", wait.as_millis()),
    };
    if asked.lock_holder.is_none() && wait < LONG {
        return Verdict::Ok(shown);
    }
    Verdict::Found(Found {
        evidence: vec![shown],
        effect: "kube-proxy gives up after 5 s and tries again later: services follow their pods \
                 late, and a run would stop before its first change"
            .into(),
        remedy: vec![
            "lslocks -o PID,COMMAND,PATH | grep xtables.lock   # who holds it".into(),
            "wait for it to end, or stop what runs iptables in a loop".into(),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{judged, judged_with, node};
    use super::*;
    use crate::state::live_facts::LiveFacts;

    #[test]
    fn found_ok_and_unknown() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(judged(&CHECK, &state), Verdict::Unknown(_)));
        let with = |lock_wait: Option<u64>, holder: Option<&str>| {
            let asked = LiveFacts {
                lock_wait: lock_wait.map(Duration::from_millis),
                lock_holder: holder.map(str::to_owned),
                ..LiveFacts::default()
            };
            judged_with(&CHECK, &state, None, None, Some(&asked))
        };
        assert!(matches!(with(None, None), Verdict::Unknown(_)));
        assert!(matches!(with(Some(3), None), Verdict::Ok(_)));
        assert!(matches!(with(Some(700), None), Verdict::Found(_)));
        let held = "held by iptables (pid 7) for over 1s";
        let Verdict::Found(found) = with(Some(1000), Some(held)) else { panic!("not found") };
        assert_eq!(found.evidence, [format!("/run/xtables.lock: {held}")]);
    }
}
