//! Where the guard's rules belong in filter FORWARD, and how the rules that exist deviate from
//! that.

use crate::checks::first_gate;
use crate::guard::exception::COMMENT;
use crate::owners::content::Reading;
use crate::plan::change::{Direction, Edit, RulePos, TableEdit, Target};
use crate::state::RulesetId;
use crate::state::equivalence::same_rule;
use crate::state::ruleset::{Chain, Rule, Ruleset};
use crate::state::shared_str::StrSlice;

pub(super) const TABLE: &str = "filter";
pub(super) const CHAIN: &str = "FORWARD";

/// How the guard's rules deviate from the wanted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Deviation {
    /// Some rules are missing.
    Missing,
    /// Some rules are behind the gate, which INVALID packets do not pass.
    Behind,
    /// Some rules were not requested, or are duplicates.
    Unwanted,
}

/// The guard's rules in the FORWARD chain of one ruleset.
#[derive(Debug)]
pub(super) struct Position {
    /// The target of the gate, which is the first rule that leads to a drop of INVALID packets.
    /// Without a gate, no exception is needed.
    pub(super) gate: Option<String>,
    /// Whether a rule of this ruleset drops INVALID packets. Else the gate is what closes the chain.
    pub(super) drops_invalid: bool,
    /// The guard's rules that are in position, as rule text.
    pub(super) kept: Vec<StrSlice>,
    /// What the rules in position bypass: chains and verdicts, each named once.
    pub(super) bypassed: Vec<String>,
    /// The deviation, and the next edit that corrects it; none if the rules are as wanted.
    pub(super) wrong: Option<(Deviation, TableEdit)>,
}

impl Position {
    /// Compares the FORWARD chain with the rules `wanted`, which belong anywhere before the gate.
    ///
    /// `beside_gate` says that the other backend's ruleset has a gate. Then what that lets pass comes
    /// here too, so that a chain that is closed needs the exception as well.
    pub(super) fn of(
        id: RulesetId,
        ruleset: &Ruleset,
        wanted: &[String],
        beside_gate: bool,
    ) -> Option<Position> {
        let chain = ruleset.table(TABLE)?.chain(CHAIN)?;
        let dropping = first_gate(ruleset).map(|(at, rule)| (at, target(rule)));
        let drops_invalid = dropping.is_some();
        let gate = dropping.or_else(|| if beside_gate { closing(ruleset, chain) } else { None });
        let wanted = if gate.is_some() { wanted } else { &[] };
        let before_gate = |position: usize| gate.as_ref().is_some_and(|(at, _)| position < *at);
        let mut missing: Vec<&String> = wanted.iter().collect();
        let (mut kept, mut strays) = (Vec::new(), Vec::new());
        let (mut first, mut wrong) = (None, Deviation::Unwanted);
        for (position, rule) in own(ruleset, chain) {
            let text = ruleset.shared_text(rule);
            let requested = missing.iter().position(|wanted| same_rule(wanted, &text));
            match requested {
                Some(i) if before_gate(position) => {
                    missing.remove(i);
                    first.get_or_insert(position);
                    kept.push(text);
                }
                requested => {
                    if requested.is_some() {
                        wrong = Deviation::Behind;
                    }
                    strays.push(RulePos { chain: CHAIN.into(), position, text, after: None });
                }
            }
        }
        let edit =
            |rules| TableEdit { ruleset: id, table: TABLE.into(), rules, chains: Vec::new() };
        let wrong = match &gate {
            _ if !strays.is_empty() => Some((wrong, edit(strays))),
            Some((at, _)) if !missing.is_empty() => {
                Some((Deviation::Missing, edit(additions(ruleset, chain, *at, &missing))))
            }
            _ => None,
        };
        Some(Position {
            gate: gate.map(|(_, target)| target),
            drops_invalid,
            kept,
            bypassed: first.map_or_else(Vec::new, |first| bypassed(ruleset, chain, first)),
            wrong,
        })
    }
}

/// Makes the edit that corrects a deviation: adds rules that are missing, or removes rules that are
/// behind the gate or unwanted.
pub(super) fn edit(wrong: Deviation, table: TableEdit) -> Edit {
    let direction = match wrong {
        Deviation::Missing => Direction::Add,
        Deviation::Behind | Deviation::Unwanted => Direction::Remove,
    };
    Edit { direction, target: Target::Table(table) }
}

/// The rules of a chain that carry the guard's comment, each with its index.
fn own<'a>(ruleset: &'a Ruleset, chain: &'a Chain) -> impl Iterator<Item = (usize, &'a Rule)> {
    let is_own = |rule: &Rule| ruleset.words(rule).comments().iter().any(|c| c == COMMENT);
    chain.rules.iter().enumerate().filter(move |(_, rule)| is_own(rule))
}

fn target(rule: &Rule) -> String {
    rule.target.as_deref().unwrap_or_default().to_owned()
}

/// What drops all that nothing before it accepts, and where: an unconditional rule, or the policy.
fn closing(ruleset: &Ruleset, chain: &Chain) -> Option<(usize, String)> {
    let closes = |rule: &&Rule| {
        let body = Reading::of(ruleset.words(rule)).body;
        matches!(body.split_whitespace().collect::<Vec<_>>()[..], ["-j", "DROP" | "REJECT", ..])
    };
    let mut rules = chain.rules.iter().enumerate();
    let rule = rules.find(|(_, rule)| closes(rule)).map(|(at, rule)| (at, target(rule)));
    let policy = chain.policy.as_deref().filter(|policy| *policy != "ACCEPT");
    rule.or_else(|| policy.map(|policy| (chain.rules.len(), of_policy(policy))))
}

fn of_policy(policy: &str) -> String {
    format!("the policy {policy}")
}

fn additions(ruleset: &Ruleset, chain: &Chain, at: usize, texts: &[&String]) -> Vec<RulePos> {
    let above = at.checked_sub(1).map(|i| ruleset.rule_text(&chain.rules[i]).to_owned());
    let rule = |(i, text): (usize, &&String)| RulePos {
        chain: CHAIN.into(),
        position: at + i,
        text: text.as_str().into(),
        after: if i == 0 { above.clone() } else { Some(texts[i - 1].clone()) },
    };
    texts.iter().enumerate().map(rule).collect()
}

/// What a packet bypasses if it is accepted before the rule at index `first`: the names of the
/// chains that the later rules lead to, DROP and REJECT, and the chain's policy unless it is
/// ACCEPT.
fn bypassed(ruleset: &Ruleset, chain: &Chain, first: usize) -> Vec<String> {
    let user = |name: &str| {
        ruleset.table(TABLE).and_then(|t| t.chain(name)).is_some_and(|c| !c.is_built_in())
    };
    let mut names: Vec<String> = Vec::new();
    for rule in &chain.rules[first..] {
        let name = target(rule);
        let against = user(&name) || name == "DROP" || name == "REJECT";
        if against && !names.contains(&name) {
            names.push(name);
        }
    }
    if let Some(policy) = chain.policy.as_deref().filter(|p| *p != "ACCEPT") {
        names.push(of_policy(policy));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::exception::Exception;
    use crate::state::{Backend, Family};

    const ID: RulesetId = RulesetId { family: Family::Ipv4, backend: Backend::Nft };
    const DOCKER: &str = "-j DOCKER-USER";
    const KUBE: &str = "-j KUBE-FORWARD";

    fn wanted(network: &str) -> Vec<String> {
        network.parse::<Exception>().expect(network).rules(ID.family)
    }

    /// A ruleset whose FORWARD chain holds `rules`.
    fn ruleset(rules: &[String]) -> Ruleset {
        let rules: String = rules.iter().map(|r| format!("{r}\n")).collect();
        let text = format!(
            "*filter\n:FORWARD DROP [0:0]\n:DOCKER-USER - [0:0]\n:KUBE-FORWARD - [0:0]\n{rules}\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\nCOMMIT\n"
        );
        Ruleset::parse("test", text.into()).expect("rules")
    }

    fn jump(body: &str) -> String {
        format!("-A FORWARD {body}")
    }

    fn position_of(rules: &[String]) -> Position {
        Position::of(ID, &ruleset(rules), &wanted("10.9.0.0/24"), false).expect("a FORWARD chain")
    }

    #[test]
    fn missing_rules_go_right_before_the_gate() {
        let found = position_of(&[jump(DOCKER), jump(KUBE)]);
        assert_eq!(found.gate.as_deref(), Some("KUBE-FORWARD"));
        let (wrong, table) = found.wrong.expect("missing");
        assert_eq!(wrong, Deviation::Missing);
        let positions: Vec<_> = table.rules.iter().map(|r| (r.position, r.after.clone())).collect();
        assert_eq!(positions[0], (1, Some(jump(DOCKER))));
        assert_eq!(positions[1], (2, Some(wanted("10.9.0.0/24")[0].clone())));
        let (_, table) = position_of(&[jump(KUBE)]).wrong.expect("missing");
        assert_eq!((table.rules[0].position, &table.rules[0].after), (0, &None));
    }

    #[test]
    fn in_position_it_reports_the_bypassed() {
        let [from, to] = &wanted("10.9.0.0/24")[..] else { panic!("two rules") };
        let rules = [jump(DOCKER), from.clone(), to.clone(), jump(KUBE), jump("-j REJECT")];
        let found = position_of(&rules);
        assert!(found.wrong.is_none() && found.kept.len() == 2);
        assert_eq!(found.bypassed, ["KUBE-FORWARD", "REJECT", "the policy DROP"]);
    }

    #[test]
    fn rules_behind_duplicate_or_of_another_network_are_removed_and_no_other() {
        let [from, to] = &wanted("10.9.0.0/24")[..] else { panic!("two rules") };
        let foreign = from.replace("proxyshift guard", "proxyshift guard of mine");
        let found = position_of(&[foreign.clone(), from.clone(), jump(KUBE), to.clone()]);
        let (wrong, table) = found.wrong.expect("one behind");
        assert_eq!((wrong, table.rules.len(), table.rules[0].position), (Deviation::Behind, 1, 3));

        let other = wanted("10.8.0.0/24")[0].clone();
        let rules = [other, from.clone(), from.clone(), to.clone(), jump(KUBE)];
        let (wrong, table) = position_of(&rules).wrong.expect("two too many");
        let positions: Vec<_> = table.rules.iter().map(|r| r.position).collect();
        assert_eq!((wrong, positions), (Deviation::Unwanted, vec![0, 2]));
    }

    #[test]
    fn without_a_gate_no_exception() {
        let [from, _] = &wanted("10.9.0.0/24")[..] else { panic!("two rules") };
        let found = position_of(&[from.clone(), jump(DOCKER)]);
        assert_eq!(found.gate, None);
        assert_eq!(found.wrong.expect("unwanted").0, Deviation::Unwanted);
        assert!(position_of(&[jump(DOCKER)]).wrong.is_none());
    }

    #[test]
    fn a_closed_chain_beside_a_gate_needs_the_exception_too() {
        let reject =
            jump("-m comment --comment \"the rest\" -j REJECT --reject-with icmp-port-unreachable");
        let one_port = jump("-p tcp -m tcp --dport 22 -j DROP");
        for (rules, gate, at) in [
            (vec![one_port.clone(), jump(DOCKER)], "the policy DROP", 2),
            (vec![one_port, reject, jump(DOCKER)], "REJECT", 1),
        ] {
            let ruleset = ruleset(&rules);
            let of = |beside| {
                Position::of(ID, &ruleset, &wanted("10.9.0.0/24"), beside).expect("a FORWARD chain")
            };
            assert!(of(false).gate.is_none() && of(false).wrong.is_none());
            let found = of(true);
            assert_eq!((found.gate.as_deref(), found.drops_invalid), (Some(gate), false));
            let (wrong, table) = found.wrong.expect("missing");
            assert_eq!((wrong, table.rules[0].position), (Deviation::Missing, at));
        }
    }
}
