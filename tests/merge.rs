//! The three-way merge on rulesets of every shape: the rules that we removed are restored between
//! their neighbours, and foreign changes are kept.

use proptest::prelude::*;
use proptest::sample::Index;
use proxyshift::plan::change::{ChainText, Direction, Edit, RulePos, TableEdit, Target};
use proxyshift::plan::merge::{UndoPlan, undo};
use proxyshift::state::{Backend, Family, Files, NodeState, RulesetId};

const ID: RulesetId = RulesetId { family: Family::Ipv4, backend: Backend::Nft };
const CHAIN: &str = "POSTROUTING";
const OURS: &str = "KUBE-SVC-X";

/// A nat table whose POSTROUTING has `rules`. If `ours` is given, the table also has a chain of
/// ours with the rules in `ours`.
fn node(rules: &[String], ours: Option<&[String]>) -> NodeState {
    let mut text = format!("*nat\n:{CHAIN} ACCEPT [0:0]\n");
    if ours.is_some() {
        text += &format!(":{OURS} - [0:0]\n");
    }
    for rule in rules.iter().chain(ours.into_iter().flatten()) {
        text += &format!("{rule}\n");
    }
    text += "COMMIT\n";
    let files = Files::from([(ID.file(), text.into())]);
    NodeState::parse(files).expect("a table")
}

/// The `n`-th rule of the writer `whose`.
fn rule(chain: &str, whose: &str, n: usize) -> String {
    format!("-A {chain} -s 10.0.0.{n}/32 -m comment --comment {whose}-{n} -j ACCEPT")
}

fn removal(rules: Vec<RulePos>, chains: Vec<ChainText>) -> Edit {
    let table = TableEdit { ruleset: ID, table: "nat".into(), rules, chains };
    Edit { direction: Direction::Remove, target: Target::Table(table) }
}

/// The edit that removes those rules of `base` that `gone` marks, and the rules that remain.
fn remove(base: &[String], gone: &[bool]) -> (Edit, Vec<String>) {
    let (mut rules, mut left) = (Vec::new(), Vec::new());
    for (position, text) in base.iter().enumerate() {
        if gone[position] {
            let text = text.as_str().into();
            rules.push(RulePos { chain: CHAIN.into(), position, text, after: None });
        } else {
            left.push(text.clone());
        }
    }
    (removal(rules, Vec::new()), left)
}

/// The rules of POSTROUTING after `undo` is applied to a node whose rules are `now`.
fn applied(undo: &UndoPlan, now: &[String]) -> Vec<String> {
    let mut rules = now.to_vec();
    for edit in &undo.edits {
        assert_eq!(edit.direction, Direction::Add);
        let Target::Table(table) = &edit.target else { panic!("{edit}") };
        for back in &table.rules {
            let before = back.position.checked_sub(1).map(|i| rules[i].clone());
            assert_eq!(before, back.after, "{} is not behind the rule it names", back.text);
            rules.insert(back.position, back.text.to_string());
        }
    }
    rules
}

/// The rules of `all` that are also in `some`, in the order of `all`.
fn only(all: &[String], some: &[String]) -> Vec<String> {
    all.iter().filter(|r| some.contains(r)).cloned().collect()
}

/// Up to nine rules, each with a mark that says whether to remove it.
fn rules_and_removal(kinds: usize) -> impl Strategy<Value = (Vec<usize>, Vec<bool>)> {
    prop::collection::vec((0..kinds, any::<bool>()), 1..10)
        .prop_map(|both| both.into_iter().unzip())
}

proptest! {
    // Inputs that fail are not written into the source tree, because a failure prints its input
    // anyway.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn nobody_else_wrote_so_all_is_as_before((numbers, gone) in rules_and_removal(4)) {
        let base: Vec<String> = numbers.iter().map(|n| rule(CHAIN, "any", *n)).collect();
        let (edit, left) = remove(&base, &gone);
        let undone = undo(&[edit], &node(&base, None), &node(&left, None));
        prop_assert!(undone.conflicts.is_empty(), "{:?}", undone.conflicts);
        prop_assert!(undone.already_restored.is_empty(), "{:?}", undone.already_restored);
        prop_assert_eq!(&applied(&undone, &left), &base);
        let (edit, _) = remove(&base, &gone);
        let looked_at = undo(&[edit], &node(&base, None), &node(&base, None));
        prop_assert!(looked_at.misplaced.is_empty(), "{:?}", looked_at.misplaced);
    }

    #[test]
    fn foreign_changes_are_kept_and_ours_is_restored_between_its_neighbours(
        (marks, gone) in rules_and_removal(2),
        added in prop::collection::vec(any::<Index>(), 0..6),
    ) {
        // A mark of 1 means that a foreign change removes the rule, unless the edit removes it.
        let base: Vec<String> = (0..marks.len()).map(|n| rule(CHAIN, "base", n)).collect();
        let (edit, left) = remove(&base, &gone);
        let is_kept = |r: &String| marks[base.iter().position(|b| b == r).expect("of base")] == 0;
        let mut now: Vec<String> = left.iter().filter(|r| is_kept(r)).cloned().collect();
        let survivors = now.clone();
        for (n, at) in added.iter().enumerate() {
            now.insert(at.index(now.len() + 1), rule(CHAIN, "foreign", n));
        }
        let undone = undo(&[edit], &node(&base, None), &node(&now, None));
        let after = applied(&undone, &now);
        prop_assert_eq!(only(&after, &now), now.clone(), "what others have is not as they left it");

        let ours: Vec<String> = base.iter().filter(|b| !left.contains(b)).cloned().collect();
        let back = only(&after, &ours);
        prop_assert_eq!(back.len() + undone.conflicts.len(), ours.len(), "{:?}", undone);
        let from_base = only(&after, &base);
        prop_assert_eq!(&from_base, &only(&base, &from_base), "not in their old order");
        // If at least one old rule is left, or if nobody else removed a rule, the order of the
        // restored rules is determined.
        if !survivors.is_empty() || left.is_empty() {
            prop_assert_eq!(back, ours, "{:?}", undone.conflicts);
            let (edit, _) = remove(&base, &gone);
            let looked_at = undo(&[edit], &node(&base, None), &node(&after, None));
            prop_assert!(looked_at.misplaced.is_empty(), "{:?} in {:?}", looked_at.misplaced, after);
        } else {
            prop_assert!(back.is_empty(), "{:?}", back);
        }
    }

    #[test]
    fn what_is_already_back_is_not_added_twice(
        (numbers, gone) in rules_and_removal(1), again in prop::collection::vec(any::<bool>(), 10),
    ) {
        let base: Vec<String> = (0..numbers.len()).map(|n| rule(CHAIN, "base", n)).collect();
        let (edit, _) = remove(&base, &gone);
        let there = |i: &usize| !gone[*i] || again[*i];
        let now: Vec<String> = (0..base.len()).filter(there).map(|i| base[i].clone()).collect();
        let undone = undo(&[edit], &node(&base, None), &node(&now, None));
        prop_assert_eq!(applied(&undone, &now), base.clone());
        let returned = (0..base.len()).filter(|i| gone[*i] && again[*i]).count();
        prop_assert_eq!(undone.already_restored.len(), returned, "{:?}", undone.already_restored);
    }

    #[test]
    fn a_chain_made_anew_is_never_touched(
        was in prop::collection::vec(0..4usize, 0..5),
        anew in prop::option::of(prop::collection::vec(0..4usize, 0..5)),
    ) {
        let texts = |numbers: &[usize]| -> Vec<String> {
            numbers.iter().map(|n| rule(OURS, "any", *n)).collect()
        };
        let chain = ChainText { name: OURS.into(), rules: texts(&was).into_iter().map(Into::into).collect() };
        let was = texts(&was);
        let now = anew.as_deref().map(texts);
        let edit = removal(Vec::new(), vec![chain.clone()]);
        let base = node(&[], Some(&was));
        let undone = undo(std::slice::from_ref(&edit), &base, &node(&[], now.as_deref()));
        match now {
            None => {
                let back = Edit { direction: Direction::Add, ..edit };
                prop_assert_eq!(undone, UndoPlan { edits: vec![back], ..UndoPlan::default() });
            }
            Some(now) => {
                prop_assert!(undone.edits.is_empty(), "{:?}", undone.edits);
                let same = now == was;
                prop_assert_eq!(undone.already_restored.len(), usize::from(same));
                prop_assert_eq!(undone.conflicts.len(), usize::from(!same));
            }
        }
    }
}

#[test]
fn a_jump_to_a_chain_that_is_gone_is_a_conflict() {
    let jump = format!("-A {CHAIN} -j {OURS}");
    let base = node(std::slice::from_ref(&jump), Some(&[]));
    let at = RulePos { chain: CHAIN.into(), position: 0, text: jump.into(), after: None };
    let undone = undo(&[removal(vec![at], Vec::new())], &base, &node(&[], None));
    assert!(undone.edits.is_empty(), "{:?}", undone.edits);
    assert!(undone.conflicts[0].contains("the chain KUBE-SVC-X is gone"), "{:?}", undone.conflicts);
}

#[test]
fn a_rule_that_is_back_on_the_wrong_side_of_another_is_named() {
    let base: Vec<String> = (0..3).map(|n| rule(CHAIN, "base", n)).collect();
    let (edit, left) = remove(&base, &[false, true, false]);
    for position in 0..3 {
        let mut now = left.clone();
        now.insert(position, base[1].clone());
        let edit = std::slice::from_ref(&edit);
        let undone = undo(edit, &node(&base, None), &node(&now, None));
        assert_eq!(undone.already_restored.len(), 1);
        assert_eq!(undone.misplaced.len(), usize::from(position != 1), "{:?}", undone.misplaced);
    }
}
