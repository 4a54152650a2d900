//! Makes the input of `iptables-restore --noflush` for one table.

use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::plan::change::{ChainText, RulePos};

/// The input that removes rules, then flushes and deletes `chains`.
///
/// A rule in `only` is named by its text, because an index that arrives late removes whatever is
/// there then. That is not possible for a rule in `repeated`, because the text would remove the
/// first of several equal rules: these are named by their index, from the last to the first, before
/// any other rule moves them.
pub(super) fn removal(
    table: &str,
    only: &[RulePos],
    repeated: &[RulePos],
    chains: &[ChainText],
) -> String {
    let mut rules: Vec<&RulePos> = repeated.iter().collect();
    rules.sort_by(|a, b| (&a.chain, b.position).cmp(&(&b.chain, a.position)));
    let mut text = format!("*{table}\n");
    for rule in rules {
        let _ = writeln!(text, "-D {} {}", rule.chain, rule.position + 1);
    }
    for rule in only {
        let _ = writeln!(text, "-D {}{}", rule.chain, body(rule));
    }
    for chain in chains {
        let _ = writeln!(text, ":{} - [0:0]", chain.name);
    }
    for chain in chains {
        let _ = writeln!(text, "-X {}", chain.name);
    }
    text.push_str("COMMIT\n");
    text
}

/// The input that adds `chains` with their rules, then inserts `rules` at their positions, from the
/// first to the last. The lines in `first` come before all other lines.
///
/// Declares the chains in scattered order, because a table that was built in the sorted order of a
/// save makes every later iptables-nft-save of the table many times slower.
pub(super) fn addition(
    table: &str,
    first: &str,
    rules: &[RulePos],
    chains: &[ChainText],
) -> String {
    let mut scattered: Vec<&ChainText> = chains.iter().collect();
    scattered.sort_by_cached_key(|c| {
        let mut hasher = DefaultHasher::new();
        c.name.hash(&mut hasher);
        hasher.finish()
    });
    let mut text = format!("*{table}\n{first}");
    for chain in scattered {
        let _ = writeln!(text, ":{} - [0:0]", chain.name);
    }
    for rule in chains.iter().flat_map(|c| &c.rules) {
        let _ = writeln!(text, "{rule}");
    }
    let mut rules: Vec<&RulePos> = rules.iter().collect();
    rules.sort_by(|a, b| (&a.chain, a.position).cmp(&(&b.chain, b.position)));
    for rule in rules {
        let _ = writeln!(text, "-I {} {}{}", rule.chain, rule.position + 1, body(rule));
    }
    text.push_str("COMMIT\n");
    text
}

/// The rule text after `-A CHAIN`.
fn body(rule: &RulePos) -> &str {
    let body = rule.text.strip_prefix("-A ").unwrap_or(&rule.text);
    body.strip_prefix(rule.chain.as_str()).unwrap_or(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(chain: &str, position: usize, text: &str) -> RulePos {
        RulePos { chain: chain.into(), position, text: text.into(), after: None }
    }

    #[test]
    fn removes_from_the_bottom_and_empties_before_deleting() {
        let equal = [at("A", 0, "-A A -j X"), at("A", 2, "-A A -j X"), at("B", 1, "-A B -j X")];
        let only = [at("A", 1, "-A A ! -s 1.2.3.4 -j X")];
        let chains = [ChainText { name: "X".into(), rules: vec!["-A X -j RETURN".into()] }];
        let want =
            "*nat\n-D A 3\n-D A 1\n-D B 2\n-D A ! -s 1.2.3.4 -j X\n:X - [0:0]\n-X X\nCOMMIT\n";
        assert_eq!(removal("nat", &only, &equal, &chains), want);
    }

    #[test]
    fn adds_from_the_top() {
        let rules =
            [at("A", 2, "-A A -j X"), at("A", 0, "-A A"), at("B", 1, "-A B ! -s 1.2.3.4 -j X")];
        let chains = [ChainText { name: "X".into(), rules: vec!["-A X -j RETURN".into()] }];
        let want = "*nat\n:X - [0:0]\n-A X -j RETURN\n-I A 1\n-I A 3 -j X\n-I B 2 ! -s 1.2.3.4 -j X\nCOMMIT\n";
        assert_eq!(addition("nat", "", &rules, &chains), want);
    }

    #[test]
    fn withdraws_by_text() {
        let rules = [at("B", 1, "-A B ! -s 1.2.3.4 -j X"), at("A", 0, "-A A")];
        assert_eq!(
            removal("nat", &rules, &[], &[]),
            "*nat\n-D B ! -s 1.2.3.4 -j X\n-D A\nCOMMIT\n"
        );
    }
}
