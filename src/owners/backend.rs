//! The backend of a component that lives. Its chains in another one are left from before: every
//! packet still passes them, and nobody keeps them up to date.

use crate::owners::component::{ChainEntry, Component};
use crate::owners::matcher::Ownership;
use crate::state::ruleset::Chain;
use crate::state::{Backend, Family, NodeState, RulesetId};

/// The chain in table mangle by which the kubelet tells others its backend.
const HINT: &str = "KUBE-IPTABLES-HINT";

/// What shows that a component has left a backend.
#[derive(Debug, Default)]
pub struct LeftBackends {
    /// The component's native table through which packets pass.
    native: Option<String>,
    /// The rulesets that the component seems to have left for the other backend, each with why.
    rulesets: Vec<(RulesetId, String)>,
}

impl LeftBackends {
    /// Looks at the tables and chains that `component` has.
    pub fn of(component: &Component, state: &NodeState, owners: &Ownership<'_>) -> LeftBackends {
        let is_its = |family: &str, name: &str| {
            owners.table(family, name).is_some_and(|owner| owner.name == component.name)
        };
        let mut tables = state.native_tables().into_iter();
        let native = tables.find(|table| {
            is_its(&table.family, &table.name)
                && table.of_kind("chain").any(|chain| chain.contains_key("hook"))
        });
        let both = |family: &Family| {
            let ids =
                [Backend::Legacy, Backend::Nft].map(|b| RulesetId { family: *family, backend: b });
            ids.iter().all(|id| has_chains(component, state, owners, *id)).then_some(ids)
        };
        let rulesets = Family::ALL.iter().filter_map(both).flatten();
        LeftBackends {
            native: native.map(|table| format!("{} {}", table.family, table.name)),
            rulesets: rulesets
                .filter_map(|id| Some((id, left_for_the_other(state, id)?)))
                .collect(),
        }
    }

    /// Why the component seems to have left the chains of this entry in this ruleset; `None` if
    /// nothing shows that it has.
    pub fn why(&self, id: RulesetId, entry: &ChainEntry) -> Option<String> {
        let native = self.native.as_ref().filter(|_| entry.unless_native);
        let left = || self.rulesets.iter().find(|(left, _)| *left == id);
        native
            .map(|table| format!("it has the table {table}"))
            .or_else(|| left().map(|(_, why)| why.clone()))
    }
}

/// Whether the component has chains in this ruleset.
fn has_chains(
    component: &Component,
    state: &NodeState,
    owners: &Ownership<'_>,
    id: RulesetId,
) -> bool {
    let mut tables = state.rulesets.get(&id).into_iter().flat_map(|ruleset| &ruleset.tables);
    tables.any(|table| {
        let is_its = |c: &Chain| owners.chain_name(id, &table.name, &c.name) == component.name;
        table.chains.iter().any(is_its)
    })
}

/// Why the ruleset, of a component that has chains in both backends, seems to be the one that it has
/// left; `None` if it is that of the kubelet, whose backend others choose.
fn left_for_the_other(state: &NodeState, id: RulesetId) -> Option<String> {
    let hints = state.rulesets.iter().filter(|(_, ruleset)| {
        ruleset.table("mangle").is_some_and(|table| table.chain(HINT).is_some())
    });
    let mut hinted: Vec<Backend> = hints.map(|(id, _)| id.backend).collect();
    hinted.sort_unstable();
    hinted.dedup();
    match hinted[..] {
        [backend] if backend == id.backend => None,
        [backend] => Some(format!("it has chains in {backend} too, where {HINT} is")),
        _ => Some("it has chains in legacy and in nft, and writes one of them alone".into()),
    }
}
