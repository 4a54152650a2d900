//! Equivalence of rulesets. No other module defines when two rules are the same.
//!
//! Counters, comment lines, and the order of tables and chains do not matter. The order of rules
//! does. iptables versions spell the same rule differently; [`canonical`] has the list of
//! spellings, and a test covers each of them. Sources: iptables-extensions(8), and `reference`
//! notes on 1.4 to 1.8.

use std::borrow::Cow;
use std::collections::BTreeSet;

use similar::{DiffTag, capture_diff_slices};

use crate::state::links;
use crate::state::rule::{Term, Words};
use crate::state::ruleset::{Chain, Name, Ruleset, Table};
use crate::state::{NodeState, RulesetId};

/// Match modules that keep state. Which packets such a match counts depends on its position among
/// the other matches of the rule.
const STATEFUL: [&str; 5] = ["limit", "hashlimit", "recent", "quota", "statistic"];

/// A rule's text in canonical spelling, which serves to compare rules. The result is no input for
/// iptables-restore.
pub fn canonical(rule: &str) -> String {
    let chain = rule.split_ascii_whitespace().nth(1).unwrap_or_default();
    let terms = Words::of_rule(rule).terms();
    let target = terms.iter().position(|t| is_jump(t)).unwrap_or(terms.len());
    let (matches, jump) = terms.split_at(target);

    let mut modules: Vec<Vec<Cow<'_, str>>> = vec![Vec::new()];
    for term in matches {
        if term.option == "-m" || term.option == "--match" {
            modules.push(vec![format!("-m {}", term.value()).into()]);
        } else if let Some(text) = canonical_term(term, &modules) {
            let basic = matches!(term.option.as_bytes(), [b'-', c] if *c != b'-');
            let module = if basic { 0 } else { modules.len() - 1 };
            modules[module].push(text.into());
        }
    }
    let protocol = matches.iter().find(|t| matches!(t.option, "-p" | "--protocol"));
    let mut groups: Vec<String> = modules
        .into_iter()
        .filter(|m| {
            !(m.len() == 1 && protocol.is_some_and(|p| m[0] == format!("-m {}", p.value())))
        })
        .map(|mut m| {
            let head = usize::from(m.first().is_some_and(|h| h.starts_with("-m ")));
            m[head..].sort_unstable();
            m.join(" ")
        })
        .collect();
    sort_between_stateful(&mut groups);
    let mut text = format!("-A {chain}");
    for part in groups.iter().chain(&spelled_target(jump)).filter(|p| !p.is_empty()) {
        text.push(' ');
        text.push_str(part);
    }
    text
}

/// Whether two rule texts are equivalent.
pub fn same_rule(a: &str, b: &str) -> bool {
    a == b || canonical(a) == canonical(b)
}

fn is_jump(term: &Term<'_>) -> bool {
    matches!(term.option, "-j" | "--jump" | "-g" | "--goto")
}

/// Sorts the matches between one stateful match and the next. A stateful match keeps its position.
fn sort_between_stateful(groups: &mut [String]) {
    let stateful = |g: &String| {
        let module = g.strip_prefix("-m ").and_then(|g| g.split(' ').next());
        module.is_some_and(|m| STATEFUL.contains(&m))
    };
    let mut start = 0;
    for i in 0..=groups.len() {
        if i == groups.len() || stateful(&groups[i]) {
            groups[start..i].sort_unstable();
            start = i + 1;
        }
    }
}

/// One match option in canonical spelling; none if the option only states a default.
fn canonical_term(term: &Term<'_>, modules: &[Vec<Cow<'_, str>>]) -> Option<String> {
    let option = match term.option {
        "--source" | "--src" => "-s",
        "--destination" | "--dst" => "-d",
        "--protocol" => "-p",
        "--in-interface" => "-i",
        "--out-interface" => "-o",
        "--source-port" => "--sport",
        "--destination-port" => "--dport",
        other => other,
    };
    let value = match option {
        "-s" | "-d" => host_network(term.value()),
        "-p" if matches!(term.value(), "icmpv6" | "icmp6") => "ipv6-icmp".into(),
        _ => values(term),
    };
    let module = modules.last().and_then(|m| m.first()).map_or("", |m| m);
    if module == "-m recent" && option == "--mask" && is_full_mask(&value) {
        return None;
    }
    Some(join(term.negated, option, &value))
}

fn is_full_mask(value: &str) -> bool {
    value == "255.255.255.255" || value == "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
}

/// An address without `/32`, `/128` or `/255.255.255.255`, which all mean a single host.
fn host_network(value: &str) -> String {
    let full = if value.contains(':') { "/128" } else { "/32" };
    value.strip_suffix(full).or(value.strip_suffix("/255.255.255.255")).unwrap_or(value).into()
}

/// Joins an option's values with blanks. A value that has a blank is quoted, so that it differs
/// from two values.
fn values(term: &Term<'_>) -> String {
    let quoted = |v: &Cow<'_, str>| {
        if v.contains([' ', '"', '\t']) { format!("{v:?}") } else { v.to_string() }
    };
    term.values.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

fn join(negated: bool, option: &str, value: &str) -> String {
    let not = if negated { "! " } else { "" };
    if value.is_empty() { format!("{not}{option}") } else { format!("{not}{option} {value}") }
}

/// The jump (`-j` or `-g`) with its target, then the target's options, sorted.
fn spelled_target(jump: &[Term<'_>]) -> Vec<String> {
    let Some((jump, options)) = jump.split_first() else { return Vec::new() };
    let goto = matches!(jump.option, "-g" | "--goto");
    if jump.value() == "NOTRACK" {
        return vec!["-j CT".into(), "--notrack".into()];
    }
    let mut options: Vec<String> =
        options.iter().map(|t| spelled_target_option(jump.value(), t)).collect();
    options.sort_unstable();
    options.insert(0, join(false, if goto { "-g" } else { "-j" }, &values(jump)));
    options
}

fn spelled_target_option(target: &str, term: &Term<'_>) -> String {
    let value = values(term);
    let (option, value) = match (target, term.option) {
        ("DNAT", "--to") => ("--to-destination", value),
        ("SNAT", "--to") => ("--to-source", value),
        ("MARK" | "CONNMARK", "--set-mark") if !value.contains('/') => {
            ("--set-xmark", format!("{value}/0xffffffff"))
        }
        ("MARK", "--or-mark") => ("--set-xmark", format!("{value}/{value}")),
        (_, option) => (option, value),
    };
    join(term.negated, option, &value)
}

/// One difference between two states of a node: the object, and how it differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The part of the node state that differs: `iptables-nft nat`, `ipset`, `link`.
    pub part: String,
    /// Whether the object is gone, new or changed.
    pub what: DifferenceKind,
    /// The object that differs: a rule's text, a chain's name.
    pub text: String,
}

/// How an object differs between the first and the second of two states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DifferenceKind {
    /// The object is only in the first state.
    Gone,
    /// The object is only in the second state.
    New,
    /// The object is in both states, but different.
    Changed,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = match self.what {
            DifferenceKind::Gone => '-',
            DifferenceKind::New => '+',
            DifferenceKind::Changed => '~',
        };
        write!(f, "{sign} {}: {}", self.part, self.text)
    }
}

/// Every difference of ruleset `b` from ruleset `a`; empty if they are equivalent.
pub fn ruleset_differences(
    id: RulesetId,
    a: Option<&Ruleset>,
    b: Option<&Ruleset>,
) -> Vec<Difference> {
    ruleset_differences_but(id, a, b, &|_, _| false)
}

/// The differences of [`ruleset_differences`], except in the chains for which `skip` returns true;
/// `skip` gets the name of the table and of the chain.
pub fn ruleset_differences_but(
    id: RulesetId,
    a: Option<&Ruleset>,
    b: Option<&Ruleset>,
    skip: &dyn Fn(&str, &str) -> bool,
) -> Vec<Difference> {
    let tables = |r: Option<&Ruleset>| -> BTreeSet<Name> {
        r.into_iter().flat_map(|r| &r.tables).map(|t| t.name.clone()).collect()
    };
    let mut found = Vec::new();
    for name in &tables(a) | &tables(b) {
        let part = format!("{id} {name}");
        let left = a.zip(a.and_then(|r| r.table(&name)));
        let right = b.zip(b.and_then(|r| r.table(&name)));
        table_differences(&part, left, right, &|chain| skip(&name, chain), &mut found);
    }
    found
}

type TableSide<'a> = Option<(&'a Ruleset, &'a Table)>;

fn table_differences(
    part: &str,
    a: TableSide<'_>,
    b: TableSide<'_>,
    skip: &dyn Fn(&str) -> bool,
    found: &mut Vec<Difference>,
) {
    // A table that was never used is equivalent to a table that does not exist.
    let used = |s: TableSide<'_>| s.is_some_and(|(_, t)| !t.is_pristine());
    if !used(a) && !used(b) {
        return;
    }
    let chains = |s: TableSide<'_>| -> BTreeSet<Name> {
        let chains = s.into_iter().flat_map(|(_, t)| &t.chains);
        chains.map(|c| &c.name).filter(|name| !skip(name)).cloned().collect()
    };
    for name in &chains(a) | &chains(b) {
        let left = a.and_then(|(r, t)| t.chain(&name).map(|c| (r, c)));
        let right = b.and_then(|(r, t)| t.chain(&name).map(|c| (r, c)));
        chain_differences(part, &name, left, right, found);
    }
}

fn chain_differences(
    part: &str,
    name: &str,
    a: Option<(&Ruleset, &Chain)>,
    b: Option<(&Ruleset, &Chain)>,
    found: &mut Vec<Difference>,
) {
    let mut report = |what, text: String| {
        found.push(Difference { part: part.to_owned(), what, text });
    };
    let policy = |s: Option<(&Ruleset, &Chain)>| {
        s.and_then(|(_, c)| c.policy.as_deref().map(str::to_owned)).unwrap_or("ACCEPT".into())
    };
    let user = |s: Option<(&Ruleset, &Chain)>| s.is_some_and(|(_, c)| !c.is_built_in());
    match (user(a), user(b)) {
        (true, false) if b.is_none() => report(DifferenceKind::Gone, format!("chain {name}")),
        (false, true) if a.is_none() => report(DifferenceKind::New, format!("chain {name}")),
        _ if policy(a) != policy(b) => {
            report(
                DifferenceKind::Changed,
                format!("policy of {name}: {} → {}", policy(a), policy(b)),
            );
        }
        _ => {}
    }
    let texts = |s: Option<(&'_ Ruleset, &'_ Chain)>| -> Vec<String> {
        s.into_iter()
            .flat_map(|(r, c)| c.rules.iter().map(|rule| r.rule_text(rule).to_owned()))
            .collect()
    };
    if same_rules(a, b) {
        return;
    }
    let (a, b) = (texts(a), texts(b));
    let canon = |texts: &[String]| texts.iter().map(|t| canonical(t)).collect::<Vec<_>>();
    let (canon_a, canon_b) = (canon(&a), canon(&b));
    for op in capture_diff_slices(similar::Algorithm::Myers, &canon_a, &canon_b) {
        if op.tag() == DiffTag::Equal {
            continue;
        }
        a[op.old_range()].iter().for_each(|t| report(DifferenceKind::Gone, t.clone()));
        b[op.new_range()].iter().for_each(|t| report(DifferenceKind::New, t.clone()));
    }
}

/// Whether two chains have the same rules in the same order. Allocates nothing if the texts are
/// equal, which is the common case.
fn same_rules(a: Option<(&Ruleset, &Chain)>, b: Option<(&Ruleset, &Chain)>) -> bool {
    let count = |s: Option<(&Ruleset, &Chain)>| s.map_or(0, |(_, c)| c.rules.len());
    if count(a) != count(b) {
        return false;
    }
    let (Some((ra, ca)), Some((rb, cb))) = (a, b) else { return true };
    ca.rules.iter().zip(&cb.rules).all(|(x, y)| same_rule(ra.rule_text(x), rb.rule_text(y)))
}

impl NodeState {
    /// Every difference between this state and the state `after`.
    pub fn differences(&self, after: &NodeState) -> Vec<Difference> {
        let ids: BTreeSet<RulesetId> =
            self.rulesets.keys().chain(after.rulesets.keys()).copied().collect();
        let mut found: Vec<Difference> = ids
            .into_iter()
            .flat_map(|id| ruleset_differences(id, self.rulesets.get(&id), after.rulesets.get(&id)))
            .collect();
        let sets = self.ipsets.differences(&after.ipsets);
        found.extend(sets.into_iter().map(|text| in_words("ipset", text)));
        found.extend(self.other_differences(after));
        found
    }

    /// The differences of [`Self::differences`], without xtables rules and ipsets.
    pub fn other_differences(&self, after: &NodeState) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut report = |part: &str, differences: Vec<String>| {
            found.extend(differences.into_iter().map(|text| in_words(part, text)));
        };
        report("nft", self.nft.differences(&after.nft));
        report("ipvs", self.ipvs.differences(&after.ipvs));
        report("link", links::link_differences(&self.links, &after.links));
        report("route", links::route_differences(&self.routes, &after.routes));
        report("rule", links::rule_differences(&self.policy_rules, &after.policy_rules));
        found.extend(self.named_differences(after));
        found
    }

    /// The first file whose parsed content does not render to the same bytes, which means that the
    /// parser dropped something. Only line-based files are rendered, because JSON files are kept as
    /// text.
    pub fn unfaithful_file(&self) -> Option<String> {
        // A ruleset may be large, so its lines are compared one by one instead of rendering all of
        // it.
        let rules = self.rulesets.iter().filter(|(_, r)| !r.lines().eq(r.text().lines()));
        let same = |name: &str, text: &str| self.files.get(name).is_none_or(|kept| **kept == *text);
        let mut rest = vec![("ipset.save", self.ipsets.render())];
        rest.push(("ipvs.save", self.ipvs.render()));
        rest.extend(self.render_named());
        rest.extend(self.tools.iter().map(|tools| ("tools.txt", tools.render())));
        let rest = rest.into_iter().filter(|(name, text)| !same(name, text));
        rules.map(|(id, _)| id.file()).chain(rest.map(|(name, _)| name.to_owned())).next()
    }
}

/// Turns `- fact`, `+ fact` or `~ fact` into a gone, new or changed [`Difference`].
pub(super) fn in_words(part: &str, text: String) -> Difference {
    let (what, text) = match text.split_at_checked(2) {
        Some(("- ", text)) => (DifferenceKind::Gone, text),
        Some(("+ ", text)) => (DifferenceKind::New, text),
        Some(("~ ", text)) => (DifferenceKind::Changed, text),
        _ => (DifferenceKind::Changed, text.as_str()),
    };
    Difference { part: part.into(), what, text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Backend, Family};

    #[test]
    fn spellings_that_mean_the_same() {
        for (a, b) in [
            ("-A X -s 10.0.0.1 -j Y", "-A X -s 10.0.0.1/32 -j Y"),
            ("-A X -d fd00::1/128 -j Y", "-A X -d fd00::1 -j Y"),
            ("-A X -j DNAT --to 10.0.0.1:80", "-A X -j DNAT --to-destination 10.0.0.1:80"),
            ("-A X -p icmpv6 -j Y", "-A X -p ipv6-icmp -j Y"),
            ("-A X -j NOTRACK", "-A X -j CT --notrack"),
            ("-A X -j MARK --set-mark 0x1", "-A X -j MARK --set-xmark 0x1/0xffffffff"),
            ("-A X -j MARK --or-mark 0x4000", "-A X -j MARK --set-xmark 0x4000/0x4000"),
            (
                "-A X -m recent --set --name A --rsource -j Y",
                "-A X -m recent --set --name A --mask 255.255.255.255 --rsource -j Y",
            ),
            (
                "-A X -m mark --mark 0x1/0x1 -m comment --comment a -j Y",
                "-A X -m comment --comment a -m mark --mark 0x1/0x1 -j Y",
            ),
            (
                "-A X -p tcp -m comment --comment \"a b\" -m tcp --dport 80 -j Y",
                "-A X -p tcp -m tcp --dport 80 -m comment --comment \"a b\" -j Y",
            ),
            ("-A X -p tcp -m tcp -j Y", "-A X -p tcp -j Y"),
            ("-A X -o eth0 -s 10.0.0.0/8 -j Y", "-A X -s 10.0.0.0/8 -o eth0 -j Y"),
        ] {
            assert!(same_rule(a, b), "{a}\n{b}\n{}\n{}", canonical(a), canonical(b));
        }
    }

    #[test]
    fn differences_that_matter() {
        for (a, b) in [
            ("-A X -s 10.0.0.1/32 -j Y", "-A X ! -s 10.0.0.1/32 -j Y"),
            ("-A X -s 10.0.0.1/32 -j Y", "-A X -d 10.0.0.1/32 -j Y"),
            ("-A X -j Y", "-A X -g Y"),
            ("-A X -s 10.0.0.0/32 -j Y", "-A X -s 10.0.0.0/31 -j Y"),
            ("-A X -m mark --mark 0x1 -j DROP", "-A X -j DROP"),
            (
                "-A X -m limit --limit 1/sec -m mark --mark 0x1 -j Y",
                "-A X -m mark --mark 0x1 -m limit --limit 1/sec -j Y",
            ),
            (
                "-A X -m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL -j Y",
                "-A X -m addrtype --src-type LOCAL -j Y",
            ),
            ("-A X -m comment --comment a -j Y", "-A X -m comment --comment b -j Y"),
            ("-A X -m comment --comment \"a -s b\" -j Y", "-A X -s b -m comment --comment a -j Y"),
        ] {
            assert!(!same_rule(a, b), "{a}\n{b}\n{}", canonical(a));
        }
    }

    fn ruleset(body: &str) -> Ruleset {
        let text = format!("*nat\n:POSTROUTING ACCEPT [1:2]\n{body}COMMIT\n");
        Ruleset::parse("test", text.into()).expect("a ruleset")
    }

    #[test]
    fn order_counters_chains_and_policies() {
        let id = RulesetId { family: Family::Ipv4, backend: Backend::Nft };
        let differ = |a: &str, b: &str| {
            let found = ruleset_differences(id, Some(&ruleset(a)), Some(&ruleset(b)));
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let (x, y) = ("-A POSTROUTING -s 10.0.0.0/8 -j RETURN\n", "-A POSTROUTING -j MASQUERADE\n");
        assert!(differ(&format!("[5:6] {x}{y}"), &format!("{x}[7:8] {y}")).is_empty());
        assert_eq!(differ(&format!("{x}{y}"), &format!("{y}{x}")).len(), 2);
        assert_eq!(
            differ(&format!("{x}{y}"), x),
            ["- iptables-nft nat: -A POSTROUTING -j MASQUERADE"]
        );
        assert_eq!(differ("", ":C - [0:0]\n"), ["+ iptables-nft nat: chain C"]);
        let drop = Ruleset::parse("t", "*nat\n:POSTROUTING DROP [0:0]\nCOMMIT\n".into());
        let drop = drop.expect("a ruleset");
        assert_eq!(ruleset_differences(id, Some(&ruleset("")), Some(&drop)).len(), 1);
        assert!(ruleset_differences(id, None, Some(&ruleset(""))).is_empty());
    }
}
