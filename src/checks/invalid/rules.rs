//! The rules that drop INVALID packets, their counters, and the chains that lead to them.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::checks::Facts;
use crate::state::equivalence::canonical;
use crate::state::ruleset::{Chain, Rule, Ruleset, Table};
use crate::state::{Backend, Family, NodeState, RulesetId};

/// The sysctl that makes conntrack treat TCP packets outside a connection's window as valid.
pub(crate) const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

/// A rule that drops INVALID packets.
#[derive(Debug, Clone)]
pub(super) struct Dropping {
    pub(super) id: RulesetId,
    pub(super) table: String,
    pub(super) line: u32,
    pub(super) text: String,
    pub(super) owner: String,
    /// The rule's packet counter; `None` if the captured save has no counters.
    pub(super) packets: Option<u64>,
    /// How many packets the rule dropped between the two captures; `None` if there is no earlier
    /// capture or the rule has no counter.
    pub(super) rise: Option<u64>,
}

impl Dropping {
    /// The rule's text with its file, line and owner, as evidence.
    pub(super) fn shown(&self) -> String {
        format!("{}:{} ({}): {}", self.id.file(), self.line, self.owner, self.text)
    }
}

/// Every rule of the current state that drops INVALID packets, highest packet counter first.
pub(super) fn dropping(facts: &Facts<'_>) -> Vec<Dropping> {
    let mut found = Vec::new();
    let mut earlier = facts.earlier.map(counted);
    for (id, ruleset, table, chain, position, rule) in all(facts.now) {
        let owner = facts.ownership.rule(id, &table.name, &chain.name, position);
        let text = ruleset.rule_text(rule);
        let packets = ruleset.counters(rule).map(|c| c.packets);
        let before = earlier.as_mut().and_then(|e| {
            let of_rule = e.get_mut(&key(id, table, text))?;
            if of_rule.is_empty() { None } else { Some(of_rule.remove(0)) }
        });
        // A counter below its earlier value belongs to a new or rewritten rule, whose counter
        // started at 0.
        let rise = |now: u64| now.checked_sub(before.unwrap_or(0)).unwrap_or(now);
        found.push(Dropping {
            id,
            table: table.name.to_string(),
            line: rule.line,
            text: text.to_owned(),
            owner: owner.map_or_else(String::new, |o| o.name.to_owned()),
            packets,
            rise: if facts.earlier.is_some() { packets.map(rise) } else { None },
        });
    }
    found.sort_by_key(|d| std::cmp::Reverse(d.packets));
    found
}

/// For each owner: the owner's name, the sum of `number` over its rules, and how many rules it has.
/// Greatest sum first; owners whose sum is 0 are left out.
pub(super) fn by_owner(
    rules: &[Dropping],
    number: impl Fn(&Dropping) -> Option<u64>,
) -> Vec<(&str, u64, usize)> {
    let mut sums: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for rule in rules {
        let sum = sums.entry(&rule.owner).or_default();
        *sum = (sum.0 + number(rule).unwrap_or(0), sum.1 + 1);
    }
    let mut sums: Vec<_> = sums.into_iter().map(|(owner, (n, rules))| (owner, n, rules)).collect();
    sums.sort_by_key(|(_, n, _)| std::cmp::Reverse(*n));
    sums.retain(|(_, n, _)| *n > 0);
    sums
}

type Key = (RulesetId, String, String);

fn key(id: RulesetId, table: &Table, text: &str) -> Key {
    (id, table.name.to_string(), canonical(text))
}

/// The packet counters of the drop rules, keyed by ruleset, table and rule text. The counters of
/// equal rules, which share a key, are in rule order.
fn counted(state: &NodeState) -> HashMap<Key, Vec<u64>> {
    let mut counted: HashMap<Key, Vec<u64>> = HashMap::new();
    for (id, ruleset, table, _, _, rule) in all(state) {
        let packets = ruleset.counters(rule).map_or(0, |c| c.packets);
        counted.entry(key(id, table, ruleset.rule_text(rule))).or_default().push(packets);
    }
    counted
}

type LocatedRule<'a> = (RulesetId, &'a Ruleset, &'a Table, &'a Chain, usize, &'a Rule);

fn all(state: &NodeState) -> impl Iterator<Item = LocatedRule<'_>> {
    state.rulesets.iter().flat_map(|(id, ruleset)| {
        let rules = ruleset.tables.iter().flat_map(|t| t.rules().map(move |r| (t, r)));
        rules.filter(move |(_, (_, _, rule))| drops_invalid(ruleset, rule)).map(
            move |(table, (chain, position, rule))| (*id, ruleset, table, chain, position, rule),
        )
    })
}

fn drops_invalid(ruleset: &Ruleset, rule: &Rule) -> bool {
    rule.target.as_deref() == Some("DROP") && matches_invalid(ruleset, rule)
}

/// True if the rule matches packets in state INVALID.
pub(super) fn matches_invalid(ruleset: &Ruleset, rule: &Rule) -> bool {
    if !ruleset.rule_text(rule).contains("INVALID") {
        return false;
    }
    let words = ruleset.words(rule);
    ["--ctstate", "--state"].into_iter().any(|option| {
        words
            .value(option)
            .is_some_and(|(not, states)| !not && states.split(',').any(|s| s == "INVALID"))
    })
}

/// The first rule of chain FORWARD in table filter that drops INVALID packets, or that jumps to a
/// chain that leads to such a drop. The number is the rule's position in the chain.
pub(crate) fn first_gate(ruleset: &Ruleset) -> Option<(usize, &Rule)> {
    gate_in(ruleset, "filter", "FORWARD")
}

/// As [`first_gate`], of any built-in chain.
pub(crate) fn gate_in<'a>(
    ruleset: &'a Ruleset,
    table: &str,
    chain: &str,
) -> Option<(usize, &'a Rule)> {
    let table = ruleset.table(table)?;
    let leading = leading(ruleset, table);
    table.chain(chain)?.rules.iter().enumerate().find(|(_, rule)| {
        drops_invalid(ruleset, rule) || rule.target.as_deref().is_some_and(|t| leading.contains(t))
    })
}

/// The chains that hold a rule that drops INVALID packets, and the chains from which jumps lead to
/// such a chain.
fn leading<'a>(ruleset: &Ruleset, table: &'a Table) -> HashSet<&'a str> {
    let mut from: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut open: Vec<&str> = Vec::new();
    for (chain, _, rule) in table.rules() {
        if let Some(target) = rule.target.as_deref() {
            from.entry(target).or_default().push(&chain.name);
        }
        if drops_invalid(ruleset, rule) {
            open.push(&chain.name);
        }
    }
    let mut leading = HashSet::new();
    while let Some(chain) = open.pop() {
        if leading.insert(chain) {
            open.extend(from.get(chain).into_iter().flatten());
        }
    }
    leading
}

/// The iptables program that writes the rules of a ruleset.
pub(crate) fn program(id: RulesetId) -> &'static str {
    match (id.family, id.backend) {
        (Family::Ipv4, Backend::Legacy) => "iptables-legacy",
        (Family::Ipv4, Backend::Nft) => "iptables-nft",
        (Family::Ipv6, Backend::Legacy) => "ip6tables-legacy",
        (Family::Ipv6, Backend::Nft) => "ip6tables-nft",
    }
}
