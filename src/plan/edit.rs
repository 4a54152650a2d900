//! One reversible change, as data.

use serde::{Deserialize, Serialize};

use crate::state::RulesetId;

/// A rule and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleAt {
    /// Its chain.
    pub chain: String,
    /// Its position, from 0: for a removal in the chain before the edit, for an addition in the
    /// chain after it.
    pub position: usize,
    /// Its text from `-A` on.
    pub text: String,
}

/// A user-defined chain with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainText {
    /// Its name.
    pub name: String,
    /// Its rules' texts, from `-A` on, first to last.
    pub rules: Vec<String>,
}

/// What changes in one table, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEdit {
    /// The family and backend.
    pub ruleset: RulesetId,
    /// The table.
    pub table: String,
    /// Rules that go from chains that stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove_rules: Vec<RuleAt>,
    /// Chains that go, with the rules they are known to hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove_chains: Vec<ChainText>,
    /// Chains that are put back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_chains: Vec<ChainText>,
    /// Rules that are put back into chains that are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add_rules: Vec<RuleAt>,
}

/// One reversible change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "edit")]
pub enum Edit {
    /// Rules and chains of one xtables table.
    Table(TableEdit),
}
