//! Two modes in force at once: which of them takes new connections, and what the other still does.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::kube_proxy::mode::{self, Precedence};
use crate::state::Family;
use crate::state::kube_proxy::Mode;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.both-in-force",
    title: "the services of two modes in the kernel at once",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://kep.k8s.io/3866",
};

/// A mode that serves a family, and where it takes new connections.
type Serving = (Mode, Option<Precedence>);

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let running = &facts.running;
    match &running.serving[..] {
        [] => return Verdict::Unknown(running.evidence.clone()),
        [mode] => return Verdict::Ok(format!("{mode} mode alone: {}", running.evidence)),
        _ => {}
    }
    let mut evidence = Vec::new();
    let mut effects = Vec::new();
    for family in Family::ALL {
        let serving = serving(facts, family);
        if serving.len() > 1 {
            evidence.extend(serving.iter().map(|(mode, at)| described(family, *mode, *at)));
            let effect = effect(running.mode, &serving);
            if !effects.contains(&effect) {
                effects.push(effect);
            }
        }
    }
    if evidence.is_empty() {
        return Verdict::Ok("each family is served by one mode".into());
    }
    let mut remedy = vec![
        "proxyshift plan -v   # which of them is left over, and why".to_owned(),
        "proxyshift cleanup --owner kube-proxy".to_owned(),
    ];
    if running.mode.is_none() {
        remedy.insert(0, "set the mode in kube-proxy's configuration, and restart it".into());
    }
    Verdict::Found(Found { evidence, effect: effects.join("; "), remedy, fix: Vec::new() })
}

/// The modes that serve a family, first the one that has the first say.
fn serving(facts: &Facts<'_>, family: Family) -> Vec<Serving> {
    let serves = |mode: &&Mode| mode::of(**mode).missing_objects(facts.now, family).is_none();
    let modes = facts.running.serving.iter().filter(serves);
    let at = |mode: &Mode| (*mode, mode::of(*mode).precedence(facts.now, family));
    let mut serving: Vec<Serving> = modes.map(at).collect();
    serving.sort_by_key(|(_, at)| *at);
    serving
}

fn described(family: Family, mode: Mode, at: Option<Precedence>) -> String {
    match at {
        Some(Precedence::Nat(priority)) => {
            format!("{family}: {mode} mode translates at priority {priority}")
        }
        Some(Precedence::Ipvs) => {
            format!("{family}: {mode} mode gets what no rule has translated before")
        }
        None => format!("{family}: {mode} mode serves, at a priority that is not known"),
    }
}

fn effect(running: Option<Mode>, serving: &[Serving]) -> String {
    let [(first, at), (other, then), ..] = serving else { return String::new() };
    let stale = match (at, then) {
        (Some(one), Some(two)) if one < two => {
            if Some(*first) == running {
                return serves_beside(*first, *other);
            }
            format!("{first} mode takes every new connection to a service that it knows")
        }
        (Some(_), Some(_)) => return registered_last(running, *first, *other),
        _ => return format!("which of {first} and {other} mode takes a connection is not known"),
    };
    match running {
        Some(_) => {
            format!("{stale}, and nobody keeps it up to date: they go to endpoints that are gone")
        }
        None => stale,
    }
}

/// The running mode has the first say.
fn serves_beside(running: Mode, other: Mode) -> String {
    format!(
        "{running} mode takes every service that it knows; what {other} mode left goes on to \
         translate the rest, among it services that are gone, and its filter rules act on all"
    )
}

/// Both have the same priority: the kernel asks the one first that was registered last.
fn registered_last(running: Option<Mode>, first: Mode, other: Mode) -> String {
    let pair = [first, other];
    let native = pair.into_iter().find(|m| mode::of(*m).has_own_tables()).unwrap_or(first);
    let rules = pair.into_iter().find(|m| *m != native).unwrap_or(other);
    let rule = "both translate at one priority, so what was registered last comes first";
    match running {
        Some(mode) if mode == native => format!(
            "{rule}: {native} mode, as kube-proxy registers its chains when it starts, unless \
             something made the table nat of {rules} mode later; then connections go to endpoints \
             that are gone"
        ),
        Some(_) => format!(
            "{rule}: what {native} mode left, unless the table nat of {rules} mode was made later; \
             connections go to endpoints that are gone, and its filter chains refuse others"
        ),
        None => format!("{rule}; which of {native} and {rules} mode is up to date is not known"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};
    use crate::state::NodeState;

    const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";

    fn found(state: &NodeState) -> Found {
        match verdict_of(&CHECK, state) {
            Verdict::Found(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_mode_alone_is_ok_and_none_is_unknown() {
        for name in ["docker-iptables-1.30", "nftables-1.37", "half-migrated-ipvs-1.20"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
        assert!(matches!(verdict_of(&CHECK, &NodeState::default()), Verdict::Unknown(_)));
    }

    #[test]
    fn the_one_that_was_registered_last_has_the_first_say() {
        let node = Node::captured("nftables-leftovers-legacy-1.37");
        let there = found(&node.state());
        assert_eq!(there.evidence[0], "ipv4: iptables mode translates at priority -100");
        assert!(there.effect.contains("nftables mode, as kube-proxy registers"), "{there:?}");
        let back = node.replace(CONFIG, "mode: nftables", "mode: iptables").state();
        let back = found(&back);
        assert!(back.effect.contains("what nftables mode left"), "{back:?}");
    }

    #[test]
    fn a_lower_priority_has_the_first_say() {
        let node = Node::captured("nftables-leftovers-legacy-1.37");
        let first = |text: &str| node_with(&node, -110).replace(CONFIG, "mode: nftables", text);
        let living = found(&first("mode: nftables").state());
        assert!(living.effect.starts_with("nftables mode takes every service"), "{living:?}");
        let stale = found(&first("mode: iptables").state());
        assert!(stale.effect.starts_with("nftables mode takes every new"), "{stale:?}");
        assert!(stale.effect.contains("endpoints that are gone"), "{stale:?}");
    }

    fn node_with(node: &Node, priority: i64) -> Node {
        let from = "\"hook\":\"prerouting\",\"prio\":-100";
        node.clone().replace("nft.json", from, &from.replace("-100", &priority.to_string()))
    }
}
