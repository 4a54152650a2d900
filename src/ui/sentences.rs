//! Turns events into sentences for people. Decides nothing.

use crate::event::{Claim, Event, Moment, Outcome, Task};
use crate::ui::table::counted;

/// The sentence for an event; none for an event that is not shown to people.
pub fn event(event: &Event) -> Option<String> {
    match event {
        Event::Run { .. } => None,
        Event::Started { task } => Some(self::task(task)),
        Event::Finished { task, outcome } => Some(finished(task, outcome)),
        Event::Verified { claim } => Some(self::claim(claim)),
        Event::Note { text } | Event::Warning { text } => Some(text.clone()),
        Event::Rehearsal { inner } => self::event(inner).map(|text| rehearsed(&text)),
    }
}

/// The sentence for a task that is over:
/// `verifying the rollback: every object is back in its place`.
pub fn finished(task: &Task, outcome: &Outcome) -> String {
    format!("{}: {}", self::task(task), self::outcome(outcome))
}

/// Marks the sentence of an event as one of a rehearsal.
pub fn rehearsed(text: &str) -> String {
    format!("rehearsal: {text}")
}

/// The phrase for a task, which begins with a present participle: `capturing the node`.
pub fn task(task: &Task) -> String {
    let fixed = match task {
        Task::Capture => "capturing the node",
        Task::CaptureStable => "capturing the node, twice",
        Task::Snapshot => "writing the snapshot and restoring it in a private namespace",
        Task::Rehearse => "rehearsing in a private namespace",
        Task::Load => "loading the node into a private namespace",
        Task::Check => "judging the node",
        Task::Bundle => "making the bundle",
        Task::Probe => "asking the node's services",
        Task::ProbeAgain => "asking the node's services again",
        Task::Prepare => "preparing the kernel",
        Task::LoadBridge => "loading the bridge",
        Task::DeleteBridge => "deleting the bridge",
        Task::AwaitUpgrade => "waiting for another kube-proxy to run",
        Task::Drain => "waiting for connections through ipvs to end",
        Task::Settle => "forgetting connections that miss their service",
        Task::VerifyKernel => "verifying against the kernel",
        Task::VerifyRollback => "verifying the rollback",
        Task::Switch { mode } => return format!("switching kube-proxy to {mode} mode"),
        Task::ReplacePod { pod } => return format!("replacing pod {pod}"),
        Task::Upgrade { command } => return format!("upgrading: {command}"),
        Task::Converge { mode } => {
            return format!("waiting until kube-proxy serves in {mode} mode");
        }
        Task::RestoreConfig { mode } => return format!("back to kube-proxy in {mode} mode"),
        Task::Hook { command } => return format!("hook: {command}"),
        Task::Edit { edit } => edit,
    };
    fixed.to_owned()
}

/// The phrase for a task's outcome, in a few words.
pub fn outcome(outcome: &Outcome) -> String {
    let fixed = match outcome {
        Outcome::AlreadySwitched => "it runs in that mode already",
        Outcome::Succeeded => "done",
        Outcome::Replaced => "it runs",
        Outcome::TimedOut => "not in time",
        Outcome::Drained => "none is open",
        Outcome::Applied => "done, in one transaction",
        Outcome::AppliedUnexpectedly => "done, but not as planned",
        Outcome::ForeignUnchanged => "what is not kube-proxy's is all there, in the same order",
        Outcome::NotServing => "it does not serve; its rules are put back from the snapshot",
        Outcome::Restored => "every object is back in its place",
        Outcome::AdditionsRemoved => "what the run added is gone",
        Outcome::Undone => "the node is as before",
        Outcome::Captured { rules, tables, sets } => {
            return format!("{rules} rules in {tables} tables, {sets} ipsets");
        }
        Outcome::Written { snapshot, store } => return format!("{snapshot} in {store}"),
        Outcome::Rehearsed { claims } => return format!("{claims} proofs"),
        Outcome::Loaded { rules, less } => {
            let less = less.as_ref().map(|mode| format!(", less what {mode} mode writes over"));
            let less = less.unwrap_or_default();
            return format!("{rules} rules mean the same as in the capture{less}");
        }
        Outcome::LoadedPartly { unsupported } => {
            return format!("all but {unsupported} objects that this kernel cannot hold");
        }
        Outcome::Checked { checks } => return counted(*checks, "check"),
        Outcome::Probed { answered, all } => return format!("{answered} of {all} answer"),
        Outcome::Prepared { modules, settings } => {
            return format!("{modules} modules, {settings} settings");
        }
        Outcome::BridgeLoaded { frontends } => {
            return format!("{frontends} service ports are answered while kube-proxy is away");
        }
        Outcome::BridgeDeleted { translated } => {
            return format!("{translated} new connections went by it");
        }
        Outcome::Switched { file, controller, pid } => {
            return format!("{file} edited, {controller} restarted (pid {pid})");
        }
        Outcome::Converged { ports } => return format!("{ports} service ports"),
        Outcome::StillOpen { connections } => return format!("{connections} are open"),
        Outcome::NotApplied { cause } => return format!("not done: {cause}"),
        Outcome::Settled { deleted } => return format!("{deleted} forgotten"),
        Outcome::Unchanged { rules } => {
            return format!("{rules} rules as before, in the same order");
        }
        Outcome::ForeignMissing { rules } => return format!("{rules} rules of others are lost"),
        Outcome::ConfigRestored { file } => return format!("{file} as before, and it serves"),
        Outcome::NotRestored { objects } => return format!("{objects} objects are not back"),
        Outcome::NotUndone { failures } => return format!("{failures} things are not as before"),
    };
    fixed.to_owned()
}

/// The sentence for a claim that was verified.
pub fn claim(claim: &Claim) -> String {
    match claim {
        Claim::Loaded { outcome } => format!("loaded: {}", self::outcome(outcome)),
        Claim::Packet { when, path } => format!("{}: {path}", moment(*when)),
        Claim::Rules { when: when @ Moment::AfterRollback, count, identical } => {
            format!("{}: all {count} rules {} as before", moment(*when), sameness(*identical))
        }
        Claim::Rules { when, count, identical } => {
            let (when, how) = (moment(*when), sameness(*identical));
            format!("{when}: the {count} other rules {how}, in the same order")
        }
        Claim::Bridge { frontends } => {
            format!("the bridge for {frontends} service ports loads, and goes again")
        }
        Claim::Carried { carried: 0, untried, .. } => {
            format!("the bridge's packets are not compared: {}", untried.join("; "))
        }
        Claim::Carried { carried, all, untried } => {
            let untried = match &untried[..] {
                [] => String::new(),
                some => format!("; not tried: {}", some.join("; ")),
            };
            format!(
                "the bridge carries {carried} of {all} packets as kube-proxy's rules do, and none \
                 beside these{untried}"
            )
        }
        Claim::Config { edit } => format!("kube-proxy's settings: {edit}"),
    }
}

fn sameness(identical: bool) -> &'static str {
    if identical { "are the same to the byte" } else { "mean the same" }
}

fn moment(moment: Moment) -> &'static str {
    match moment {
        Moment::Before => "before",
        Moment::AfterCleanup => "after cleaning",
        Moment::AfterFix => "after mending",
        Moment::AfterRollback => "after rollback",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_rehearsal_is_marked() {
        let task = Task::Edit { edit: "remove 1 rule in iptables-nft nat".into() };
        let done = Event::Finished { task, outcome: Outcome::Applied };
        let words = "remove 1 rule in iptables-nft nat: done, in one transaction";
        assert_eq!(event(&done).as_deref(), Some(words));
        let done = Event::Rehearsal { inner: Box::new(done) };
        assert_eq!(event(&done), Some(format!("rehearsal: {words}")));
        let text = serde_json::to_string(&done).unwrap();
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), done);
    }

    #[test]
    fn packets_of_a_bridge_are_carried_or_not_attempted() {
        let carried = |carried, untried: &[&str]| {
            let untried = untried.iter().map(|cause| (*cause).to_owned()).collect();
            claim(&Claim::Carried { carried, all: 9, untried })
        };
        let all =
            "the bridge carries 9 of 9 packets as kube-proxy's rules do, and none beside these";
        assert_eq!(carried(9, &[]), all);
        let some = "the bridge carries 8 of 9 packets as kube-proxy's rules do, and none beside these; \
                    not tried: a: b; c";
        assert_eq!(carried(8, &["a: b", "c"]), some);
        assert_eq!(carried(0, &["a"]), "the bridge's packets are not compared: a");
    }

    #[test]
    fn claims_say_when_and_how() {
        let rules = |when, identical| Claim::Rules { when, count: 3, identical };
        assert_eq!(
            claim(&rules(Moment::AfterCleanup, true)),
            "after cleaning: the 3 other rules are the same to the byte, in the same order"
        );
        assert_eq!(
            claim(&rules(Moment::AfterRollback, false)),
            "after rollback: all 3 rules mean the same as before"
        );
        let outcome = Outcome::Loaded { rules: 7, less: Some("ipvs".into()) };
        assert_eq!(
            claim(&Claim::Loaded { outcome }),
            "loaded: 7 rules mean the same as in the capture, less what ipvs mode writes over"
        );
    }
}
