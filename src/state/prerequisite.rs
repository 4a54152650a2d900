//! What rules name and the kernel must hold before it takes them. A rule that is loaded in a private
//! namespace, or put back on a node, needs these objects first.
//!
//! Other extensions name things too, and need nothing beforehand. The kernel makes these together
//! with the rule: the lists of `recent` and `hashlimit`, and the timers of IDLETIMER. These are the
//! same in every network namespace: helpers (`-j CT --helper`), control groups (`-m cgroup
//! --path`), pinned programs (`-m bpf --object-pinned`). If one of them is gone, the kernel refuses
//! the rule, and a rehearsal names it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use crate::state::NodeState;
use crate::state::accounting::AccountingObject;
use crate::state::equivalence::{Difference, in_words};
use crate::state::rule::Words;
use crate::state::timeout_policy::TimeoutPolicy;

/// The kind of a [`Prerequisite`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PrerequisiteKind {
    /// An ipset (`-m set`, `-j SET`).
    Set,
    /// An accounting object (`-m nfacct`), as nfacct(8) makes them.
    Accounting,
    /// A timeout policy of connection tracking (`-j CT --timeout`), as nfct(8) makes them.
    TimeoutPolicy,
    /// A rate estimator (`-m rateest`). A rule of the target RATEEST makes it.
    Estimator,
}

/// An object that the kernel must hold before it takes a rule that names the object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prerequisite {
    /// The object's kind.
    pub kind: PrerequisiteKind,
    /// The object's name. It is unique among those of its kind, whatever their address family.
    pub name: String,
}

impl fmt::Display for Prerequisite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            PrerequisiteKind::Set => "set",
            PrerequisiteKind::Accounting => "accounting object",
            PrerequisiteKind::TimeoutPolicy => "timeout policy",
            PrerequisiteKind::Estimator => "rate estimator",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// The options that name a prerequisite, with the target to which the option belongs. None means any
/// match or target.
const OPTIONS: [(&str, Option<&str>, PrerequisiteKind); 9] = [
    ("--match-set", None, PrerequisiteKind::Set),
    ("--add-set", None, PrerequisiteKind::Set),
    ("--del-set", None, PrerequisiteKind::Set),
    ("--map-set", None, PrerequisiteKind::Set),
    ("--nfacct-name", None, PrerequisiteKind::Accounting),
    // SET and IDLETIMER have an option of this name for a time.
    ("--timeout", Some("CT"), PrerequisiteKind::TimeoutPolicy),
    ("--rateest", None, PrerequisiteKind::Estimator),
    ("--rateest1", None, PrerequisiteKind::Estimator),
    ("--rateest2", None, PrerequisiteKind::Estimator),
];

/// A rule that names a prerequisite has one of these texts. Few rules do.
const MARKS: [&str; 4] = ["-set ", "--nfacct-name ", "--timeout ", "--rateest"];

impl<'a> Words<'a> {
    /// What the rule names and the kernel must hold before it takes the rule.
    pub fn prerequisites(self) -> Vec<Prerequisite> {
        let named = self.named(&MARKS).into_iter();
        named.map(|(kind, name)| Prerequisite { kind, name: name.into_owned() }).collect()
    }

    /// The names of the ipsets that the rule matches, fills or empties.
    pub fn sets(self) -> Vec<Cow<'a, str>> {
        let named = self.named(&MARKS[..1]).into_iter();
        named.filter(|(kind, _)| *kind == PrerequisiteKind::Set).map(|(_, name)| name).collect()
    }

    fn named(self, marks: &[&str]) -> Vec<(PrerequisiteKind, Cow<'a, str>)> {
        if !marks.iter().any(|mark| self.text().contains(mark)) {
            return Vec::new();
        }
        let mut target = None;
        let mut found = Vec::new();
        for mut term in self.terms() {
            if matches!(term.option, "-j" | "--jump") {
                target = term.values.into_iter().next();
                continue;
            }
            let known = OPTIONS.iter().find(|(option, of, _)| {
                *option == term.option && (of.is_none() || *of == target.as_deref())
            });
            if let (Some((_, _, kind)), false) = (known, term.values.is_empty()) {
                found.push((*kind, term.values.remove(0)));
            }
        }
        found
    }
}

impl NodeState {
    /// What the xtables rules of this node name and the kernel must hold before it takes them.
    pub fn prerequisites(&self) -> BTreeSet<Prerequisite> {
        let mut all = BTreeSet::new();
        for ruleset in self.rulesets.values() {
            for (_, _, rule) in ruleset.tables.iter().flat_map(|table| table.rules()) {
                all.extend(ruleset.words(rule).prerequisites());
            }
        }
        all
    }

    /// The differences of the accounting objects and timeout policies that rules of both states name.
    pub fn named_differences(&self, after: &NodeState) -> Vec<Difference> {
        let objects = AccountingObject::differences(&self.accounting, &after.accounting);
        let policies = (&self.timeout_policies, &after.timeout_policies);
        let policies = TimeoutPolicy::differences(policies.0, policies.1);
        let objects = objects.into_iter().map(|text| in_words("nfacct", text));
        objects.chain(policies.into_iter().map(|text| in_words("cttimeout", text))).collect()
    }

    /// The files that hold the accounting objects and timeout policies.
    pub(super) fn render_named(&self) -> [(&'static str, String); 2] {
        render_named(&self.accounting, &self.timeout_policies)
    }
}

/// The files of a node state that hold what rules name and is no ipset, each with its text.
pub fn render_named(
    objects: &[AccountingObject],
    policies: &[TimeoutPolicy],
) -> [(&'static str, String); 2] {
    [
        ("nfacct.save", AccountingObject::render(objects)),
        ("cttimeout.save", TimeoutPolicy::render(policies)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rule: &str) -> Vec<String> {
        Words::of_rule(rule).prerequisites().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_option_that_names_an_object_is_known() {
        for (rule, expected) in [
            ("-A X -m set --match-set a src -m set ! --match-set b dst -j Y", "set a, set b"),
            ("-A X -j SET --add-set a src,dst --exist --timeout 60", "set a"),
            ("-A X -j SET --del-set -a src", "set -a"),
            ("-A X -j SET --map-set inet6:a src --map-mark", "set inet6:a"),
            ("-A X -m nfacct --nfacct-name  \"a \\\"b\" -j DROP", "accounting object a \"b"),
            ("-A X -m nfacct --nfacct-name -x -j DROP", "accounting object -x"),
            ("-A X -p tcp -j CT --timeout pol", "timeout policy pol"),
            ("-A X -p tcp -j CT --timeout -z", "timeout policy -z"),
            ("-A X -p tcp -j CT --helper ftp", ""),
            ("-A X -j IDLETIMER --timeout 10 --label lab", ""),
            ("-A X -m rateest --rateest a --rateest-lt --rateest-bps 1Mbit", "rate estimator a"),
            (
                "-A X -m rateest --rateest1 a --rateest-lt --rateest2 b",
                "rate estimator a, rate estimator b",
            ),
            ("-A X -j RATEEST --rateest-name a --rateest-interval 250.0ms", ""),
            ("-A X -m comment --comment \"--match-set a src\" -j Y", ""),
            ("-A X -m comment --comment --nfacct-name -j Y", ""),
            ("-A X -m nfacct --nfacct-name", ""),
        ] {
            assert_eq!(of(rule).join(", "), expected, "{rule}");
        }
    }
}
