//! A hash of all rules and ipsets of a node state, and of what else its rules name. Two states are
//! compared by their hashes, so that they need not be in memory at the same time: on a large node,
//! each state takes as much memory as all of the node's rules.

use sha2::{Digest, Sha256};

use crate::state::NodeState;
use crate::state::accounting::AccountingObject;
use crate::state::ruleset::Table;
use crate::state::timeout_policy::TimeoutPolicy;

/// A hash of a node's rules and ipsets. Two equal fingerprints mean that the rules are the same to
/// the letter and in the same order, and that the ipsets are equivalent. Two unequal fingerprints
/// may still belong to equivalent states: see [`NodeState::differences`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl NodeState {
    /// The fingerprint of this state's xtables rules, and of the ipsets and other objects that they
    /// name.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        let mut put = |word: &str| {
            // Each word is preceded by its length, so that two different lists of words never give
            // the same bytes.
            hash.update((word.len() as u64).to_le_bytes());
            hash.update(word);
        };
        for (id, ruleset) in &self.rulesets {
            let used = ruleset.tables.iter().filter(|t| !t.is_pristine());
            let mut tables: Vec<&Table> = used.collect();
            tables.sort_by(|a, b| a.name.cmp(&b.name));
            for table in tables {
                put(&format!("{id} {} {}", table.name, table.chains.len()));
                for chain in table.by_name() {
                    put(&chain.name);
                    put(chain.policy.as_deref().unwrap_or_default());
                    put(&chain.rules.len().to_string());
                    chain.rules.iter().for_each(|rule| put(ruleset.rule_text(rule)));
                }
            }
        }
        let mut facts = self.ipsets.facts();
        facts.extend(AccountingObject::facts(&self.accounting));
        facts.extend(TimeoutPolicy::facts(&self.timeout_policies));
        facts.sort_unstable();
        facts.iter().for_each(|fact| put(fact));
        Fingerprint(hash.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Files;

    fn node(rules: &str, sets: &str) -> Fingerprint {
        let files = [
            ("iptables-nft.save", format!("# Now\n*nat\n{rules}COMMIT\n")),
            ("ipset.save", sets.to_owned()),
        ];
        let files: Files =
            files.into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        NodeState::parse(files).unwrap().fingerprint()
    }

    const RULES: &str =
        ":OUTPUT ACCEPT [1:2]\n:A - [0:0]\n:B - [0:0]\n[3:4] -A A -j B\n-A A -j RETURN\n";
    const SETS: &str = "create S hash:ip family inet hashsize 64\nadd S 10.0.0.1\nadd S 10.0.0.2\n";

    #[test]
    fn counters_and_the_order_of_chains_and_entries_do_not_matter() {
        let other =
            ":B - [0:0]\n:OUTPUT ACCEPT [7:7]\n:A - [0:0]\n-A A -j B\n[9:9] -A A -j RETURN\n";
        let sets = "create S hash:ip family inet hashsize 128\nadd S 10.0.0.2\nadd S 10.0.0.1\n";
        assert_eq!(node(RULES, SETS), node(other, sets));
    }

    #[test]
    fn every_other_change_does() {
        let all = node(RULES, SETS);
        for (from, to) in [
            ("OUTPUT ACCEPT", "OUTPUT DROP"),
            (":B - [0:0]\n", ":B - [0:0]\n:C - [0:0]\n"),
            ("-A A -j B\n-A A -j RETURN", "-A A -j RETURN\n-A A -j B"),
            ("-A A -j RETURN", "-A B -j RETURN"),
            ("-j RETURN", "-j ACCEPT"),
        ] {
            assert_ne!(node(&RULES.replace("[3:4] ", "").replace(from, to), SETS), all, "{to}");
        }
        assert_ne!(node(RULES, &SETS.replace("10.0.0.2", "10.0.0.3")), all);
        assert_ne!(node(RULES, ""), all);
    }
}
