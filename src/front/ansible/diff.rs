//! The rules concerned, before and after, as Ansible's diff mode shows them.

use serde_json::{Value, json};

use crate::plan::change::{Direction, Edit, Target};
use crate::state::NodeState;
use crate::state::equivalence::DifferenceKind;

/// The objects that change: their lines before, and their lines after.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Diff {
    before: String,
    after: String,
}

impl Diff {
    /// What is different between two states of the node.
    pub(super) fn between(before: &NodeState, after: &NodeState) -> Diff {
        let mut diff = Diff::default();
        for difference in before.differences(after) {
            let line = format!("{} {}", difference.part, difference.text);
            match difference.what {
                DifferenceKind::Gone => diff.gone(&line),
                DifferenceKind::New => diff.came(&line),
                DifferenceKind::Changed => diff.came(&format!("{line} (changed)")),
            }
        }
        diff
    }

    /// What edits would change.
    pub(super) fn of(edits: &[Edit]) -> Diff {
        let mut diff = Diff::default();
        for edit in edits {
            for line in lines(&edit.target) {
                match edit.direction {
                    Direction::Remove => diff.gone(&line),
                    Direction::Add => diff.came(&line),
                }
            }
        }
        diff
    }

    /// kube-proxy goes from one mode to another.
    pub(super) fn modes(mut self, from: &str, to: &str) -> Diff {
        if from != to {
            self.gone(&format!("kube-proxy mode {from}"));
            self.came(&format!("kube-proxy mode {to}"));
        }
        self
    }

    pub(super) fn document(&self) -> Value {
        json!({"before": self.before, "after": self.after})
    }

    fn gone(&mut self, line: &str) {
        self.before += &format!("{line}\n");
    }

    fn came(&mut self, line: &str) {
        self.after += &format!("{line}\n");
    }
}

/// The objects that an edit concerns, as differences name them.
fn lines(target: &Target) -> Vec<String> {
    let Target::Table(table) = target else { return vec![target.to_string()] };
    let place = format!("{} {}", table.ruleset, table.table);
    let mut lines: Vec<String> =
        table.rules.iter().map(|r| format!("{place} {}", r.text)).collect();
    for chain in &table.chains {
        lines.push(format!("{place} chain {}", chain.name));
        lines.extend(chain.rules.iter().map(|rule| format!("{place} {rule}")));
    }
    lines
}
