//! A rule of Kubernetes that has lost its match in the kernel itself, so that it holds for every
//! packet. Where only the save has lost it, the check `backends.garbled` says so.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::lost_match::ConditionalRule;
use crate::state::ruleset::{Rule, Ruleset};
use crate::state::tools::Version;
use crate::state::{Backend, RulesetId};

pub(super) const CHECK: Check = Check {
    id: "backends.lost-match",
    title: "rules of Kubernetes that have lost their match in the kernel",
    severity: Severity::Block,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/112477",
};

/// The first iptables whose nft backend tests a mark by an expression of its own, and shows one. An
/// earlier one leaves it out of its save.
const SHOWS_MARKS: Version = Version { major: 1, minor: 8, patch: 8 };

/// A rule without the match that it always has, and whether the kernel holds it like that.
pub(super) struct LostMatch<'a> {
    pub(super) id: RulesetId,
    pub(super) table: &'a str,
    pub(super) line: u32,
    pub(super) text: &'a str,
    pub(super) rule: ConditionalRule,
    /// Why the kernel's own rule is known to have no match either; none if the save may have lost it.
    pub(super) in_kernel: Option<String>,
}

/// The rules of a state that have lost their match, in the save or in the kernel.
pub(super) fn lost_matches<'a>(facts: &Facts<'a>) -> Vec<LostMatch<'a>> {
    let mut found = Vec::new();
    for (id, ruleset) in &facts.now.rulesets {
        for table in &ruleset.tables {
            let chains = ConditionalRule::chains().filter_map(|name| table.chain(name));
            for rule in chains.flat_map(|chain| &chain.rules) {
                let text = ruleset.rule_text(rule);
                let Some(lost) = ConditionalRule::lost_by(text) else { continue };
                found.push(LostMatch {
                    id: *id,
                    table: &table.name,
                    line: rule.line,
                    text,
                    rule: lost,
                    in_kernel: in_kernel(facts, *id, ruleset, rule),
                });
            }
        }
    }
    found
}

fn in_kernel(facts: &Facts<'_>, id: RulesetId, ruleset: &Ruleset, rule: &Rule) -> Option<String> {
    if id.backend == Backend::Legacy {
        // iptables-legacy-save fails at a match that it does not know.
        return Some("a save of the backend legacy leaves no match out".into());
    }
    if facts.live.is_some() {
        // A capture of a live node is refused if netlink shows a condition that its save lacks.
        return Some("netlink shows no match either".into());
    }
    let packets = ruleset.counters(rule).map_or(0, |counters| counters.packets);
    if packets > 0 {
        return Some(format!("it has counted {packets} packets"));
    }
    let (version, shown) = saved_by(facts)?;
    (version >= SHOWS_MARKS).then(|| format!("{shown} would show it"))
}

/// The iptables that made the saves of the backend nft: its version, and how it is shown.
fn saved_by(facts: &Facts<'_>) -> Option<(Version, String)> {
    let tools = facts.now.tools.as_ref()?;
    let tool = |name: &str| tools.get(name).and_then(|tool| Some((tool.version()?, tool)));
    let (version, tool) = tool("iptables-nft-save").or_else(|| tool("iptables"))?;
    Some((version, tool.text.clone()))
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() && facts.now.tools.is_none() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let (real, garbled): (Vec<_>, Vec<_>) =
        lost_matches(facts).into_iter().partition(|lost| lost.in_kernel.is_some());
    if real.is_empty() {
        return match garbled.first() {
            None => Verdict::Ok("each rule that tests a mark has its match".into()),
            Some(lost) => Verdict::Unknown(format!(
                "{}:{} has none; whether in the kernel too, backends.garbled asks",
                lost.id.file(),
                lost.line
            )),
        };
    }
    let mut effects: Vec<String> = Vec::new();
    for lost in &real {
        let effect = match lost.rule.target {
            "DROP" => "the kernel drops everything that comes in or goes out: the node is off the \
                       network"
                .to_owned(),
            _ => format!("the kernel {}", lost.rule.effect),
        };
        if !effects.contains(&effect) {
            effects.push(effect);
        }
    }
    let evidence = real.iter().map(|lost| {
        let why = lost.in_kernel.as_deref().unwrap_or_default();
        format!("{}:{}: it lost its match, and {why}: {}", lost.id.file(), lost.line, lost.text)
    });
    let deletions = real.iter().map(|lost| {
        let rule = lost.text.strip_prefix("-A ").unwrap_or(lost.text);
        format!("{}-{} -t {} -D {rule}", lost.id.family.tool(), lost.id.backend, lost.table)
    });
    Verdict::Found(Found {
        evidence: evidence.collect(),
        effect: effects.join("; "),
        remedy: deletions
            .chain([
                "kubectl -n kube-system exec ds/kube-proxy -- iptables --version; iptables --version"
                    .to_owned(),
                format!(
                    "then the same iptables, {SHOWS_MARKS} or later, in kube-proxy's image and on \
                     the host: else it comes back; kubelet and kube-proxy write their rules anew"
                ),
            ])
            .collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::backends::garbled;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::NodeState;
    use crate::state::live_facts::LiveFacts;

    const FILE: &str = "iptables-nft.save";
    const MARK: &str = " -m mark --mark 0x8000/0x8000 -j DROP";

    /// A node whose save lacks the mark of KUBE-FIREWALL, saved by an iptables of this version.
    fn lost(version: &str, packets: u64) -> Node {
        let tools = format!("kernel 6.1\niptables /usr/sbin/iptables iptables {version}\n");
        let rule = "[0:0] -A KUBE-FIREWALL -m comment";
        Node::captured("canal-stale-flannel-1.20")
            .replace(FILE, MARK, " -j DROP")
            .replace(
                FILE,
                &format!("{rule} --comment \"kubernetes"),
                &format!("[{packets}:0] -A KUBE-FIREWALL -m comment --comment \"kubernetes"),
            )
            .put("tools.txt", &tools)
    }

    fn both(state: &NodeState) -> (Verdict, Verdict) {
        (verdict_of(&CHECK, state), verdict_of(&garbled::CHECK, state))
    }

    #[test]
    fn packets_or_a_save_that_shows_marks_show_that_the_kernel_drops() {
        for (version, packets, real) in [
            ("v1.8.8 (nf_tables)", 0, true),
            ("v1.8.9 (nf_tables)", 0, true),
            ("v1.8.7 (nf_tables)", 1, true),
            ("v1.8.7 (nf_tables)", 0, false),
            ("?", 0, false),
        ] {
            let (lost_match, garbled) = both(&lost(version, packets).state());
            assert_eq!(matches!(lost_match, Verdict::Found(_)), real, "{version}: {lost_match:?}");
            assert_eq!(matches!(garbled, Verdict::Found(_)), !real, "{version}: {garbled:?}");
            assert_eq!(matches!(lost_match, Verdict::Unknown(_)), !real, "{version}");
        }
        let Verdict::Found(found) = verdict_of(&CHECK, &lost("v1.8.8", 4711).state()) else {
            panic!("not found")
        };
        assert!(found.evidence[0].contains("it has counted 4711 packets"), "{found:?}");
        assert!(found.effect.starts_with("the kernel drops everything"), "{found:?}");
        let delete = "iptables-nft -t filter -D KUBE-FIREWALL -m comment --comment";
        assert!(found.remedy[0].starts_with(delete), "{found:?}");
    }

    #[test]
    fn other_rules_that_test_a_mark_are_found_too() {
        let accept = " -m mark --mark 0x4000/0x4000 -j ACCEPT";
        let node = lost("v1.8.9", 0).replace(FILE, accept, " -j ACCEPT");
        let Verdict::Found(found) = verdict_of(&CHECK, &node.state()) else { panic!("not found") };
        assert_eq!(found.evidence.len(), 2, "{found:?}");
        assert!(found.effect.contains("the kernel accepts everything that is forwarded"));
    }

    #[test]
    fn legacy_and_a_live_node_are_known_and_a_healthy_node_is_ok() {
        let legacy = Node::captured("docker-legacy-iptables-1.20-no-conntrack")
            .replace("iptables-legacy.save", MARK, " -j DROP")
            .remove("tools.txt")
            .state();
        assert!(matches!(verdict_of(&CHECK, &legacy), Verdict::Found(_)));
        let state = lost("v1.8.7", 0).state();
        let live = LiveFacts::default();
        assert!(matches!(given(&state).live(&live).verdict(&CHECK), Verdict::Found(_)));
        assert!(matches!(verdict_of(&CHECK, &node("iptables-1.37")), Verdict::Ok(_)));
        assert!(matches!(verdict_of(&CHECK, &NodeState::default()), Verdict::Unknown(_)));
    }
}
