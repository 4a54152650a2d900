//! iptables-nft tables: one netlink batch bound to the generation it was planned on.
//!
//! The save says what the rules are, the netlink dump says which handles they have; both are read
//! between two equal generations. A batch that carries that generation is refused by the kernel
//! (`ERESTART`) when anyone has written since.

use crate::apply::{Applied, Kernel, payload, table};
use crate::error::{Error, Kind, Result};
use crate::node::commands::Command;
use crate::node::nfnetlink::{Batch, Netfilter};
use crate::node::tools::Tool;
use crate::plan::edit::{Direction, RuleAt, TableEdit};
use crate::state::ruleset::Ruleset;

/// How often a batch is tried again, as long as the handles it names are still the ones planned:
/// someone wrote, but nothing that concerns us. Reading handles takes about a millisecond.
const QUICK_TRIES: usize = 20;

/// With `--noflush`, iptables-nft-restore goes through a sorted list of all chains named so far, for
/// each line: a minute and more for 30,000 chains. Once a line names no chain, as this one, it reads
/// all chains at once and keeps no list: 2 s (measured with 1.8.9).
const READ_ALL_CHAINS: &str = "-S\n";

pub(super) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    edit: &TableEdit,
) -> Result<Applied> {
    match direction {
        Direction::Remove => remove(kernel, edit),
        Direction::Add => add(kernel, edit),
    }
}

/// The handles that a removal names.
#[derive(PartialEq, Eq)]
struct Handles {
    /// Rules that go from chains that stay.
    rules: Vec<(String, u64)>,
    /// All rules of each chain that goes, in the edit's order.
    chains: Vec<Vec<u64>>,
}

fn remove(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<Applied> {
    let mut netfilter = Netfilter::open()?;
    let (planned, before, handles) = planned_handles(kernel, &mut netfilter, edit)?;
    let batch = batch(edit, &handles);
    let mut generation = planned;
    let mut last = None;
    for _ in 0..QUICK_TRIES {
        match netfilter.commit(&batch, generation) {
            Err(e) if e.kind == Kind::LostRace => last = Some(e),
            Err(e) => return Err(e),
            Ok(()) if generation == planned => {
                return proof(kernel, &mut netfilter, planned, Direction::Remove, edit, before);
            }
            // Others wrote since the table was read: there is nothing to compare with.
            Ok(()) => return Ok(Applied::default()),
        }
        generation = netfilter.generation()?;
        if !still_there(&mut netfilter, edit, &handles)? {
            break;
        }
    }
    Err(last.unwrap_or_else(|| lost_race(edit)))
}

fn lost_race(edit: &TableEdit) -> Error {
    let place = format!("{} {}", edit.ruleset, edit.table);
    Error::new(Kind::LostRace, place, "others wrote while it was being read, every time")
}

/// Holds the table against what the edit should have made of it, if ours was the only commit since
/// `generation`.
fn proof(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    generation: u32,
    direction: Direction,
    edit: &TableEdit,
    before: Option<Ruleset>,
) -> Result<Applied> {
    let after = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    if netfilter.generation()? != generation.wrapping_add(1) {
        return Ok(Applied::default());
    }
    Ok(table::applied(direction, edit, before.as_ref(), after.as_ref()))
}

/// Reads the table and its handles at one generation.
fn planned_handles(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    edit: &TableEdit,
) -> Result<(u32, Option<Ruleset>, Handles)> {
    for _ in 0..QUICK_TRIES {
        let generation = netfilter.generation()?;
        let now = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
        let rules = table::locate(edit, now.as_ref())?;
        let handles = read_handles(netfilter, edit, &rules)?;
        if netfilter.generation()? == generation {
            return Ok((generation, now, handles));
        }
    }
    Err(lost_race(edit))
}

fn read_handles(netfilter: &mut Netfilter, edit: &TableEdit, rules: &[RuleAt]) -> Result<Handles> {
    let mut found = Vec::with_capacity(rules.len());
    let mut at: Option<(&str, Vec<u64>)> = None;
    for rule in rules {
        if at.as_ref().is_none_or(|(chain, _)| *chain != rule.chain) {
            at = Some((&rule.chain, chain_handles(netfilter, edit, &rule.chain)?));
        }
        let handle = at.as_ref().and_then(|(_, handles)| handles.get(rule.position).copied());
        found.push((rule.chain.clone(), handle.ok_or_else(|| lost_race(edit))?));
    }
    let chains = edit
        .chains
        .iter()
        .map(|c| chain_handles(netfilter, edit, &c.name))
        .collect::<Result<_>>()?;
    Ok(Handles { rules: found, chains })
}

fn chain_handles(netfilter: &mut Netfilter, edit: &TableEdit, chain: &str) -> Result<Vec<u64>> {
    let rules = netfilter.rules(edit.ruleset.family, &edit.table, chain)?;
    Ok(rules.iter().map(|r| r.handle).collect())
}

/// Handles are never used twice in a table: the same ones are the same rules.
fn still_there(netfilter: &mut Netfilter, edit: &TableEdit, planned: &Handles) -> Result<bool> {
    for (chain, handles) in edit.chains.iter().zip(&planned.chains) {
        if chain_handles(netfilter, edit, &chain.name)? != *handles {
            return Ok(false);
        }
    }
    for (chain, handle) in &planned.rules {
        if !chain_handles(netfilter, edit, chain)?.contains(handle) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Jumps first, then every chain emptied, then every chain deleted.
fn batch(edit: &TableEdit, handles: &Handles) -> Batch {
    let (family, table) = (edit.ruleset.family, edit.table.as_str());
    let mut batch = Batch::new();
    for (chain, handle) in &handles.rules {
        batch.delete_rule(family, table, chain, *handle);
    }
    for chain in &edit.chains {
        batch.flush_chain(family, table, &chain.name);
    }
    for chain in &edit.chains {
        batch.delete_chain(family, table, &chain.name);
    }
    batch
}

/// Rules are put back by the tool that wrote them: `nft` cannot re-add xtables expressions, and
/// iptables-nft-restore takes no generation. So what it did is looked at afterwards, and a rule that
/// landed in the wrong place because someone wrote meanwhile is taken out again.
fn add(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<Applied> {
    let mut netfilter = Netfilter::open()?;
    let generation = netfilter.generation()?;
    let before = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    let rules = table::places(edit, before.as_ref())?;
    let restored = Command::new(kernel.tools.tool(Tool::Restore(edit.ruleset))?)
        .args(["--noflush"])
        .stdin(payload::addition(&edit.table, READ_ALL_CHAINS, &rules, &edit.chains))
        .deadline(table::DEADLINE)
        .run();
    match restored {
        // Someone took a rule away, so that a number was too high: nothing was put in.
        Err(_) if netfilter.generation()? != generation => return Err(lost_race(edit)),
        Err(e) => return Err(Error { kind: Kind::Kernel, ..e }),
        Ok(_) => {}
    }
    let after = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    if netfilter.generation()? == generation.wrapping_add(1) {
        return Ok(table::applied(Direction::Add, edit, before.as_ref(), after.as_ref()));
    }
    let wrong = table::misplaced(edit, &rules, before.as_ref(), after.as_ref());
    if wrong.is_empty() {
        return Ok(Applied::default());
    }
    remove(kernel, &TableEdit { rules: wrong, chains: Vec::new(), ..edit.clone() })?;
    Err(lost_race(edit))
}
