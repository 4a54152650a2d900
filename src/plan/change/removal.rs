//! The edits that carry out a plan's removals.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::error::{Error, Kind, Result};
use crate::plan::Plan;
use crate::plan::change::{
    ChainText, Direction, Edit, LinkSpec, NativeTable, RealServerRef, RulePos, SetDump, TableEdit,
    Target,
};
use crate::state::NodeState;
use crate::state::nft_messages::TableCopy;
use crate::state::object::{ObjectId, TableId};
use crate::state::ruleset::{Ruleset, Table};

/// The edits of a plan that was made from `state`, in the order in which they must be applied.
/// First comes one edit for each xtables table, in which jumps are removed before the chains they
/// lead to. Then follow native tables, ipsets, virtual servers and links.
pub fn edits(plan: &Plan, state: &NodeState) -> Vec<Edit> {
    let mut edits = table_edits(plan, state);
    let targets = plan.removals().filter_map(|object| target(&object.id, state));
    edits.extend(targets.map(|target| Edit { direction: Direction::Remove, target }));
    edits.sort_by_key(|e| match &e.target {
        Target::Table(_) => 0,
        Target::NativeTable(_) => 1,
        Target::Set(_) => 2,
        Target::VirtualServer(_) | Target::RealServer(_) => 3,
        Target::Link(_) => 4,
    });
    edits
}

/// What `state` has of the object. `None` for chains and rules, because the edit of their table
/// removes them.
fn target(id: &ObjectId, state: &NodeState) -> Option<Target> {
    Some(match id {
        ObjectId::Chain { .. } | ObjectId::Rule { .. } => return None,
        ObjectId::NativeTable { family, name } => {
            Target::NativeTable(native_table(family, name, state)?)
        }
        ObjectId::Set { name, .. } => {
            let set = state.ipsets.get(name)?;
            let lines = set.render().lines().map(str::to_owned).collect();
            Target::Set(SetDump { family: set.family, name: set.name.clone(), lines })
        }
        ObjectId::VirtualServer(service) => Target::VirtualServer(state.ipvs.get(service)?.clone()),
        ObjectId::RealServer(id) => {
            let real = state.ipvs.real(&id.service, &id.address)?.clone();
            Target::RealServer(RealServerRef { service: id.service, real })
        }
        ObjectId::Link { name } => Target::Link(link(name, state)?),
    })
}

/// What `state` has of a native table.
pub fn native_table(family: &str, name: &str, state: &NodeState) -> Option<NativeTable> {
    let table = state.nft.get(family, name)?;
    Some(NativeTable {
        family: table.family.clone(),
        name: table.name.clone(),
        objects: table.objects.clone(),
        messages: match state.nft_messages.of(family, name) {
            Some(TableCopy::Messages(messages)) => messages,
            _ => Vec::new(),
        },
    })
}

fn link(name: &str, state: &NodeState) -> Option<LinkSpec> {
    let link = state.links.iter().find(|link| link.name == name)?;
    let link_local = |a: &&IpNet| matches!(a, IpNet::V6(a) if a.addr().is_unicast_link_local());
    Some(LinkSpec {
        name: link.name.clone(),
        kind: link.kind.clone()?,
        // The kernel itself adds a link-local address to every link that is up, so an undo need not
        // add that address.
        addresses: link.addresses.iter().filter(|a| !link_local(a)).copied().collect(),
        up: link.up,
    })
}

/// The chains and rules that a plan removes from one table.
#[derive(Default)]
struct TableRemoval<'a> {
    chains: BTreeSet<&'a str>,
    rules: BTreeSet<(&'a str, usize)>,
}

fn table_edits(plan: &Plan, state: &NodeState) -> Vec<Edit> {
    let mut tables: BTreeMap<&TableId, TableRemoval<'_>> = BTreeMap::new();
    for object in plan.removals() {
        match &object.id {
            ObjectId::Chain { table, name } => {
                tables.entry(table).or_default().chains.insert(name);
            }
            ObjectId::Rule { table, chain, position, .. } => {
                tables.entry(table).or_default().rules.insert((chain, *position as usize));
            }
            _ => {}
        }
    }
    let edit = |(id, removal): (&TableId, TableRemoval<'_>)| {
        let ruleset = state.rulesets.get(&id.ruleset)?;
        let edit = table_edit(id, ruleset, ruleset.table(&id.name)?, &removal);
        Some(Edit { direction: Direction::Remove, target: Target::Table(edit) })
    };
    tables.into_iter().filter_map(edit).collect()
}

fn table_edit(
    id: &TableId,
    ruleset: &Ruleset,
    table: &Table,
    removal: &TableRemoval<'_>,
) -> TableEdit {
    let chains = table.chains.iter().filter(|c| removal.chains.contains(&*c.name));
    let rule = |&(chain, position): &(&str, usize)| {
        if removal.chains.contains(chain) {
            return None;
        }
        let text = ruleset.shared_text(table.chain(chain)?.rules.get(position)?);
        Some(RulePos { chain: chain.into(), position, text, after: None })
    };
    TableEdit {
        ruleset: id.ruleset,
        table: table.name.to_string(),
        rules: removal.rules.iter().filter_map(rule).collect(),
        chains: chains.map(|c| ChainText::of(ruleset, c)).collect(),
    }
}

/// Copies edits into memory of their own. Otherwise the edits of a plan keep the text of the whole
/// state alive, and lie scattered among the plan's other objects.
///
/// # Errors
/// Never for edits that can be written to the journal.
pub fn detach(edits: Vec<Edit>) -> Result<Vec<Edit>> {
    let failed = |e| Error::new(Kind::Unexpected, "edits", e);
    let text = serde_json::to_vec(&edits).map_err(failed)?;
    drop(edits);
    serde_json::from_slice(&text).map_err(failed)
}
