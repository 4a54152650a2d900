//! The precedence of components: if two components match an object, the one that comes first is the
//! object's owner.

use crate::error::Result;
use crate::owners::component::Component;
use crate::owners::names::refused;

/// Sorts components by name, then moves each in front of those that its `before` lists.
///
/// # Errors
/// [`crate::error::Kind::Usage`] if `before` lists an unknown component, or if two components list
/// each other, directly or through others.
pub(crate) fn ordered(mut components: Vec<Component>) -> Result<Vec<Component>> {
    let unknown = |name: &&String| !components.iter().any(|c| c.name == **name);
    for component in &components {
        if let Some(name) = component.before.iter().find(unknown) {
            let cause = format!("no component is called `{name}`");
            return Err(refused(&component.name, "before", cause));
        }
    }
    components.sort_by(|a, b| a.name.cmp(&b.name));
    let mut ordered = Vec::with_capacity(components.len());
    while let Some(first) = components.first() {
        let waits = |c: &Component| components.iter().any(|other| other.before.contains(&c.name));
        let Some(next) = components.iter().position(|c| !waits(c)) else {
            return Err(refused(&first.name, "before", "two components are before each other"));
        };
        ordered.push(components.remove(next));
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::string::string_regex;
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::owners::catalogue::{Catalogue, EntryId};

    /// True if it is decided which of the two components comes first, because one lists the other
    /// in `before`.
    fn is_settled(a: &Component, b: &Component) -> bool {
        a.name == b.name || a.before.contains(&b.name) || b.before.contains(&a.name)
    }

    /// True if both chain entries can have chains in the same table.
    fn share_a_table(catalogue: &Catalogue, a: EntryId, b: EntryId) -> bool {
        let tables = |e: EntryId| &catalogue.at(e).chains[usize::from(e.item)].tables;
        let (a, b) = (tables(a), tables(b));
        a.is_empty() || b.is_empty() || a.iter().any(|table| b.contains(table))
    }

    #[test]
    fn components_that_would_claim_the_same_name_say_who_is_first() {
        let catalogue = Catalogue::builtin().unwrap();
        let mut runner = TestRunner::deterministic();
        let mut samples = |pattern: &str| -> Vec<String> {
            let bare = pattern.trim_start_matches('^').trim_end_matches('$');
            let texts = string_regex(bare).unwrap();
            (0..50).map(|_| texts.new_tree(&mut runner).unwrap().current()).collect()
        };
        for (c, component) in catalogue.components().iter().enumerate() {
            for (i, chain) in component.chains.iter().enumerate() {
                let entry = EntryId::new(c, i);
                for name in samples(&chain.name) {
                    let rivals = catalogue
                        .chains
                        .all(&name)
                        .filter(|e| share_a_table(&catalogue, entry, *e));
                    for rival in rivals {
                        assert!(is_settled(component, catalogue.at(rival)), "{name}");
                    }
                }
            }
            for (names, patterns) in [
                (&catalogue.comments, &component.comments),
                (&catalogue.sets, &component.sets),
                (&catalogue.links, &component.links),
                (&catalogue.nft_tables, &component.nft_tables),
            ] {
                for name in patterns.iter().flat_map(|pattern| samples(pattern)) {
                    for rival in names.all(&name) {
                        assert!(is_settled(component, catalogue.at(rival)), "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn components_are_in_order_of_name_but_for_those_that_are_before() {
        let component = |name: &str, before: &str| {
            let text = format!(
                "{{component: {name}, about: a, source: s, heals: never, before: [{before}]}}"
            );
            crate::yaml::parse::<Component>("t", &text).unwrap()
        };
        let names = |all: Vec<Component>| {
            ordered(all).unwrap().into_iter().map(|c| c.name).collect::<Vec<_>>()
        };
        assert_eq!(names(vec![component("b", ""), component("a", "")]), ["a", "b"]);
        let all = vec![component("a", ""), component("b", ""), component("c", "a")];
        assert_eq!(names(all), ["b", "c", "a"]);
        assert!(ordered(vec![component("a", "b"), component("b", "a")]).is_err());
        assert!(ordered(vec![component("a", "z")]).is_err());
    }
}
