//! Makes what the rules of a node name in the private namespace, before its rules are loaded.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::apply::Kernel;
use crate::apply::prerequisites::Definitions;
use crate::error::Result;
use crate::node::command::Command;
use crate::node::tools::{Tool, Tools};
use crate::state::accounting::AccountingObject;
use crate::state::ipset::IpSets;
use crate::state::prerequisite::{Prerequisite, PrerequisiteKind};
use crate::state::ruleset::Ruleset;
use crate::state::{NodeState, RulesetId};

/// How long to wait for the xtables lock, which nobody else asks for in the private namespace.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The chain that holds rules of the target RATEEST until their tables are loaded.
const ESTIMATORS: &str = "proxyshift-estimators";

/// Makes what the rules of `state` name, except ipsets, which are loaded as a whole before. Returns
/// what is not there all the same.
///
/// An accounting object of which `state` does not say what it was has no quota here: nothing is
/// counted in a private namespace.
///
/// # Errors
/// [`Kind::MissingTool`](crate::error::Kind::MissingTool).
pub(super) fn prepare(state: &NodeState, tools: &Tools) -> Result<BTreeSet<Prerequisite>> {
    let needed = state.prerequisites();
    let mut accounting = state.accounting.clone();
    for one in needed.iter().filter(|one| one.kind == PrerequisiteKind::Accounting) {
        if !accounting.iter().any(|object| object.name == one.name) {
            accounting.push(AccountingObject::plain(&one.name));
        }
    }
    let definitions = Definitions {
        sets: &IpSets::default(),
        accounting: &accounting,
        timeout_policies: &state.timeout_policies,
    };
    let prepared = Kernel::new(tools, LOCK_WAIT).prepare(&needed, definitions);
    if needed.iter().any(|one| one.kind == PrerequisiteKind::Estimator) {
        make_estimators(state, tools)?;
    }
    Ok(prepared.missing.into_iter().map(|(one, _)| one).collect())
}

/// Makes the estimators of all tables, because the rule that needs one may be loaded before the rule
/// that makes it. Each table is loaded as a whole later, without this chain; an estimator stays for as
/// long as a rule uses it.
fn make_estimators(state: &NodeState, tools: &Tools) -> Result<()> {
    for (id, ruleset) in &state.rulesets {
        for table in &ruleset.tables {
            let makers = table.rules().filter_map(|(_, _, rule)| {
                let text = ruleset.rule_text(rule);
                let is_maker =
                    ruleset.words(rule).target().is_some_and(|(name, _)| name == "RATEEST");
                is_maker.then(|| text.rfind(" -j RATEEST ").map(|at| &text[at..])).flatten()
            });
            let rules: String = makers.map(|target| format!("-A {ESTIMATORS}{target}\n")).collect();
            if rules.is_empty() {
                continue;
            }
            let text = format!("*{}\n:{ESTIMATORS} - [0:0]\n{rules}COMMIT\n", table.name);
            let restore = Command::new(tools.tool(Tool::Restore(*id))?).args(["--noflush"]);
            // If the kernel refuses one, it refuses the rules that need it, which are named then.
            let _ = restore.stdin(text).run();
        }
    }
    Ok(())
}

/// The save of a ruleset without the rules that name one of `missing`. Their lines are added to
/// `unsupported`.
pub(super) fn without<'a>(
    id: RulesetId,
    ruleset: &'a Ruleset,
    missing: &BTreeSet<Prerequisite>,
    unsupported: &mut Vec<String>,
) -> Cow<'a, str> {
    if missing.is_empty() {
        return Cow::Borrowed(ruleset.text());
    }
    let rules = ruleset.tables.iter().flat_map(|table| table.rules()).map(|(_, _, rule)| rule);
    let left_out: BTreeSet<&str> = rules
        .filter(|rule| ruleset.words(rule).prerequisites().iter().any(|one| missing.contains(one)))
        .map(|rule| ruleset.line_of(rule))
        .collect();
    unsupported.extend(left_out.iter().map(|line| format!("{id}: {line}")));
    let kept = ruleset.text().lines().filter(|line| !left_out.contains(line));
    Cow::Owned(kept.map(|line| format!("{line}\n")).collect())
}
