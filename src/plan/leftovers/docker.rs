//! Docker: no object of docker's is removed, because docker restores none of them by itself. The
//! plan names rules and chains that look stale.

use crate::owners::attribution::Evidence;
use crate::owners::backend::LeftBackends;
use crate::owners::liveness::liveness;
use crate::plan::Action;
use crate::plan::candidates::{Candidates, OwnedChain};
use crate::plan::leftovers::cni::owner;
use crate::plan::reason::Reason;

const NAME: &str = "docker";

/// Adds a plan row for each object of docker's that is probably stale.
pub(super) fn suspects(candidates: &mut Candidates<'_>) {
    let Some(component) = candidates.catalogue.component(NAME) else { return };
    let liveness = liveness(component, candidates.state);
    let left = LeftBackends::of(component, candidates.state, candidates.ownership);
    for OwnedChain { at, table, chain, entry } in candidates.chains_of(NAME) {
        if liveness.is_gone() {
            let evidence = liveness.evidence().to_owned();
            candidates.add_chain(
                Action::Suspect,
                at,
                Reason::OwnerSeemsGone(NAME.into(), evidence),
            );
        } else if let Some(why) = left.why(at.id, entry).filter(|_| liveness.is_alive()) {
            let reason = Reason::OwnerLeftBackend(NAME.into(), why);
            candidates.add_chain(Action::Suspect, at, reason);
        } else if !table.rules().any(|(_, _, r)| r.target.as_deref() == Some(&*chain.name)) {
            candidates.add_chain(Action::Suspect, at, Reason::Unreachable);
        }
    }
    for (at, context, _) in candidates.built_in_rules() {
        if owner(candidates, &context) != NAME {
            continue;
        }
        let (table, chain) = (&context.table.name, &context.chain.name);
        let a = candidates.ownership.rule_attribution(context.id, table, chain, context.position);
        if !matches!(a.evidence, Evidence::Shape(_) | Evidence::Link) {
            continue;
        }
        let words = context.ruleset.words(context.rule);
        let links = &candidates.state.links;
        let missing = |name: &str| {
            !links.is_empty() && !name.ends_with('+') && links.iter().all(|l| l.name != name)
        };
        if let Some((_, link)) = words.value("-o").filter(|(_, link)| missing(link)) {
            candidates.add_rule(Action::Suspect, at, Reason::NoSuchLink(link.to_string()));
        } else if &**table == "nat" {
            candidates.add_rule(Action::Keep, at, Reason::NeverRewritten(NAME.into()));
        }
    }
}
