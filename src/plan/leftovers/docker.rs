//! Docker: nothing is ever removed, for nothing of it comes back; what looks stale is named.

use crate::owners::life;
use crate::owners::matcher::Why;
use crate::plan::leftovers::cni::owner;
use crate::plan::leftovers::draft::{Draft, OwnedChain};

const NAME: &str = "docker";

/// Names what is probably stale.
pub(super) fn suspects(draft: &mut Draft<'_>) {
    let Some(component) = draft.catalogue.component(NAME) else { return };
    let life = life::of(component, draft.state);
    for OwnedChain { at, table, chain, .. } in draft.chains_of(NAME) {
        if life.is_gone() {
            draft.keep_chain(at, format!("suspected: docker seems gone: {}", life.evidence()));
        } else if !table.rules().any(|(_, _, r)| r.target.as_deref() == Some(&*chain.name)) {
            draft.keep_chain(at, "suspected: no rule leads to it");
        }
    }
    for (at, place, _) in draft.built_in_rules() {
        if owner(draft, &place) != NAME {
            continue;
        }
        let (table, chain) = (&place.table.name, &place.chain.name);
        let a = draft.ownership.rule_attribution(place.id, table, chain, place.position);
        if !matches!(a.why, Why::Shape(_) | Why::Link) {
            continue;
        }
        let words = place.ruleset.words(place.rule);
        let links = &draft.state.links;
        let missing = |name: &str| {
            !links.is_empty() && !name.ends_with('+') && links.iter().all(|l| l.name != name)
        };
        if let Some((_, link)) = words.value("-o").filter(|(_, link)| missing(link)) {
            draft.keep_rule(at, format!("suspected: there is no link {link}"));
        } else if &**table == "nat" {
            draft.keep_rule(at, "docker's, which never writes it again by itself");
        }
    }
}
