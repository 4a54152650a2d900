//! The xtables lock, which every program that writes legacy rules takes.

use std::time::Duration;

use crate::checks::{Check, Facts, Found, Severity, Verdict, always, not_live};

pub(super) const CHECK: Check = Check {
    id: "writers.lock",
    title: "the lock of iptables, and who holds it",
    severity: Severity::Warn,
    when: "always; a live node alone can be asked",
    applies: always,
    evaluate,
    reference: "https://man7.org/linux/man-pages/man8/iptables.8.html",
};

/// A wait for the lock that is long enough for other writers to notice.
const LONG: Duration = Duration::from_millis(500);

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(live) = facts.live else {
        return not_live();
    };
    let Some(wait) = live.lock_wait else {
        return Verdict::Unknown("/run/xtables.lock cannot be opened".into());
    };
    let shown = match &live.lock_holder {
        Some(holder) => format!("/run/xtables.lock: {holder}"),
        None => format!("/run/xtables.lock was had after {} ms", wait.as_millis()),
    };
    if live.lock_holder.is_none() && wait < LONG {
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
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::live_facts::LiveFacts;

    #[test]
    fn found_ok_and_unknown() {
        let state = node("docker-iptables-1.30");
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let with = |lock_wait: Option<u64>, holder: Option<&str>| {
            let live = LiveFacts {
                lock_wait: lock_wait.map(Duration::from_millis),
                lock_holder: holder.map(str::to_owned),
                ..LiveFacts::default()
            };
            given(&state).live(&live).verdict(&CHECK)
        };
        assert!(matches!(with(None, None), Verdict::Unknown(_)));
        assert!(matches!(with(Some(3), None), Verdict::Ok(_)));
        assert!(matches!(with(Some(700), None), Verdict::Found(_)));
        let holder = "held by iptables (pid 7) for over 1s";
        let Verdict::Found(found) = with(Some(1000), Some(holder)) else { panic!("not found") };
        assert_eq!(found.evidence, [format!("/run/xtables.lock: {holder}")]);
    }
}
