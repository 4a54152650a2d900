//! The changed objects, before and after, in the form of Ansible's diff mode.

use serde_json::{Value, json};

use crate::plan::change::{Direction, Edit, Target};
use crate::state::NodeState;
use crate::state::equivalence::DifferenceKind;
use crate::visible::visible;

/// The changed objects, one a line: `before` has those that are gone, and `after` has those that
/// are new or changed. Ansible prints them as they are, so hidden characters are escaped.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Diff {
    before: String,
    after: String,
}

impl Diff {
    /// The differences between two states of the node.
    pub(super) fn between(before: &NodeState, after: &NodeState) -> Diff {
        let mut diff = Diff::default();
        for difference in before.differences(after) {
            let line = format!("{} {}", difference.part, difference.text);
            match difference.what {
                DifferenceKind::Gone => diff.removed(&line),
                DifferenceKind::New => diff.added(&line),
                DifferenceKind::Changed => diff.added(&format!("{line} (changed)")),
            }
        }
        diff
    }

    /// The objects that `edits` would remove and add.
    pub(super) fn of(edits: &[Edit]) -> Diff {
        let mut diff = Diff::default();
        for edit in edits {
            for line in lines(&edit.target) {
                match edit.direction {
                    Direction::Remove => diff.removed(&line),
                    Direction::Add => diff.added(&line),
                }
            }
        }
        diff
    }

    /// Adds the change of kube-proxy's mode to the diff.
    pub(super) fn modes(mut self, from: &str, to: &str) -> Diff {
        if from != to {
            self.removed(&format!("kube-proxy mode {from}"));
            self.added(&format!("kube-proxy mode {to}"));
        }
        self
    }

    pub(super) fn document(&self) -> Value {
        json!({"before": self.before, "after": self.after})
    }

    fn removed(&mut self, line: &str) {
        self.before += &format!("{}\n", visible(line));
    }

    fn added(&mut self, line: &str) {
        self.after += &format!("{}\n", visible(line));
    }
}

/// The objects of an edit, in the same words as the differences between two node states.
fn lines(target: &Target) -> Vec<String> {
    let Target::Table(table) = target else { return vec![target.to_string()] };
    let location = format!("{} {}", table.ruleset, table.table);
    let mut lines: Vec<String> =
        table.rules.iter().map(|r| format!("{location} {}", r.text)).collect();
    for chain in &table.chains {
        lines.push(format!("{location} chain {}", chain.name));
        lines.extend(chain.rules.iter().map(|rule| format!("{location} {rule}")));
    }
    lines
}
