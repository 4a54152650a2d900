//! Docker: nothing is ever removed, for nothing of it comes back; what looks stale is named.

use crate::owners::liveness;
use crate::owners::matcher::Evidence;
use crate::plan::candidates::{Candidates, OwnedChain};
use crate::plan::leftovers::cni::owner;

const NAME: &str = "docker";

/// Names what is probably stale.
pub(super) fn suspects(candidates: &mut Candidates<'_>) {
    let Some(component) = candidates.catalogue.component(NAME) else { return };
    let life = liveness::liveness(component, candidates.state);
    for OwnedChain { at, table, chain, .. } in candidates.chains_of(NAME) {
        if life.is_gone() {
            candidates.keep_chain(at, format!("suspected: docker seems gone: {}", life.evidence()));
        } else if !table.rules().any(|(_, _, r)| r.target.as_deref() == Some(&*chain.name)) {
            candidates.keep_chain(at, "suspected: no rule leads to it");
        }
    }
    for (at, context, _) in candidates.built_in_rules() {
        if owner(candidates, &context) != NAME {
            continue;
        }
        let (table, chain) = (&context.table.name, &context.chain.name);
        let a = candidates.ownership.rule_attribution(context.id, table, chain, context.position);
        if !matches!(a.why, Evidence::Shape(_) | Evidence::Link) {
            continue;
        }
        let words = context.ruleset.words(context.rule);
        let links = &candidates.state.links;
        let missing = |name: &str| {
            !links.is_empty() && !name.ends_with('+') && links.iter().all(|l| l.name != name)
        };
        if let Some((_, link)) = words.value("-o").filter(|(_, link)| missing(link)) {
            candidates.keep_rule(at, format!("suspected: there is no link {link}"));
        } else if &**table == "nat" {
            candidates.keep_rule(at, "docker's, which never writes it again by itself");
        }
    }
}
