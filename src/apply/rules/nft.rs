//! Edits iptables-nft tables, by netlink batches that are bound to an nf_tables generation.
//!
//! The first batch carries the generation at which the table was read; if any program has written
//! since, the kernel refuses the whole batch (`ERESTART`). The later batches name each rule by its
//! handle, and carry the current generation; the kernel refuses such a batch when one of those
//! rules is gone, or when a removed chain holds a rule that the batch does not name. The rules come
//! from iptables-nft-save, their handles from a netlink dump.

use std::time::Duration;

use crate::apply::rules::{payload, table};
use crate::apply::{Applied, Kernel};
use crate::error::{Error, Kind, Result};
use crate::node::nfnetlink::{Batch, Netfilter};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, RulePos, TableEdit};
use crate::plan::invariants::without;
use crate::state::ruleset::Ruleset;

/// How often the handles are read again because another program wrote to the same chains, and how
/// often a batch is sent again because another program wrote to any table.
const TRIES: u32 = 50;

/// The longest pause between two tries. The pause is random, so that the tries do not coincide with
/// a writer that writes periodically.
const LONGEST_PAUSE_MS: u32 = 10;

/// A first input line for iptables-nft-restore that names no chain. With `--noflush` the program
/// searches, for each line, a sorted list of all chains named so far, which takes over a minute for
/// 30,000 chains. After a line that names no chain, the program reads all chains at once and keeps
/// no such list, which takes 2 s (measured with 1.8.9).
const READ_ALL_CHAINS: &str = "-S\n";

pub(in crate::apply) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    edit: &TableEdit,
) -> Result<Applied> {
    match direction {
        Direction::Remove => remove(kernel, edit),
        Direction::Add => add(kernel, edit),
    }
}

fn remove(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<Applied> {
    let mut netfilter = Netfilter::open()?;
    match remove_at_once(kernel, &mut netfilter, edit)? {
        Some(applied) => Ok(applied),
        None => remove_by_handle(kernel, &mut netfilter, edit),
    }
}

/// Removes rules and chains in the usual case, in which no other program writes meanwhile: reads
/// the table, and flushes the chains to remove at the generation at which they were read. Returns
/// none if another program did write meanwhile.
///
/// If the reads of this function do not show the table at one moment, the kernel refuses the batch:
/// see [`Netfilter::settled_generation`].
fn remove_at_once(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    edit: &TableEdit,
) -> Result<Option<Applied>> {
    let generation = netfilter.settled_generation()?;
    let (now, rules) = planned_rules(kernel, edit)?;
    let before = without(&now, edit)?;
    drop(now);
    let names = kept_chains(edit);
    let handles = read_handles(netfilter, edit, &names)?;
    let Some(handles) = of_rules(&rules, &names, &handles) else { return Ok(None) };
    let committed = netfilter.commit(&batch(edit, &handles, None), generation);
    match committed {
        Ok(()) => verify_removal(kernel, netfilter, generation, edit, &before).map(Some),
        Err(e) if e.kind == Kind::LostRace && netfilter.generation()? != generation => Ok(None),
        Err(e) => Err(e),
    }
}

/// The handles of the rules that an edit removes. The kernel never reuses a handle, so whatever
/// other programs change, a handle never identifies another rule.
struct Handles {
    /// The chain and handle of each rule to remove from a chain that is kept.
    rules: Vec<(String, u64)>,
    /// The handles of all rules of each removed chain; the chains are in the edit's order.
    chains: Vec<Vec<u64>>,
}

/// Removes the rules by handle, for a table to which other programs keep writing. The batch names
/// every rule. If the kernel refuses the batch because the generation has changed, sends it again
/// with the current generation.
fn remove_by_handle(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    edit: &TableEdit,
) -> Result<Applied> {
    let (planned, before, Handles { rules, chains }) = planned_handles(kernel, netfilter, edit)?;
    let batch = batch(edit, &rules, Some(&chains));
    let mut generation = planned;
    for _ in 0..TRIES {
        match netfilter.commit(&batch, generation) {
            Ok(()) if generation == planned => {
                return verify_removal(kernel, netfilter, planned, edit, &before);
            }
            // Another program wrote since the table was read, so there is no expected state to
            // compare with.
            Ok(()) => return Ok(Applied::default()),
            Err(e) if e.kind != Kind::LostRace => return Err(e),
            Err(e) => {
                let now = netfilter.generation()?;
                if now == generation {
                    // The generation has not changed, so the kernel refused the batch because of
                    // the rules or chains that it names.
                    return Err(e);
                }
                generation = now;
            }
        }
    }
    Err(lost_race(edit))
}

fn lost_race(edit: &TableEdit) -> Error {
    let object = format!("{} {}", edit.ruleset, edit.table);
    Error::new(Kind::LostRace, object, "others wrote while it was being read, every time")
}

/// Compares the table with the expected result of the removal. Compares nothing if there was
/// another commit than ours since `generation`.
fn verify_removal(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    generation: u32,
    edit: &TableEdit,
    before: &Ruleset,
) -> Result<Applied> {
    let after = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    if netfilter.generation()? != generation.wrapping_add(1) {
        return Ok(Applied::default());
    }
    Ok(table::applied(Direction::Remove, edit, Some(before), after.as_ref()))
}

/// Reads the table, compares it with the edit, and returns two things: the table, and the edit's
/// rules at their current positions.
fn planned_rules(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<(Ruleset, Vec<RulePos>)> {
    let now = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    let rules = table::find_rules(edit, now.as_ref())?;
    now.map(|now| (now, rules)).ok_or_else(|| lost_race(edit))
}

/// The names of the chains that lose rules but are kept.
fn kept_chains(edit: &TableEdit) -> Vec<&str> {
    let mut names: Vec<&str> = edit.rules.iter().map(|r| r.chain.as_str()).collect();
    names.dedup();
    names
}

/// Reads the generation first, then the table and the handles of the edit's rules. Of the table,
/// returns only the part that the edit keeps, because the part to remove is large, and was compared
/// with the edit already.
///
/// A chain that has the same handles before and after iptables-nft-save ran kept those rules all
/// the time, because a handle is never reused. The output of iptables-nft-save may have one more
/// rule, which was added and removed meanwhile; then it has more rules than the chain has handles.
/// Writes to other chains do not matter.
fn planned_handles(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    edit: &TableEdit,
) -> Result<(u32, Ruleset, Handles)> {
    let mut names = kept_chains(edit);
    let kept = names.len();
    names.extend(edit.chains.iter().map(|c| c.name.as_str()));
    for attempt in 0..TRIES {
        let generation = netfilter.generation()?;
        let before = read_handles(netfilter, edit, &names)?;
        let (now, rules) = planned_rules(kernel, edit)?;
        let saved = |name: &&str| Some(now.table(&edit.table)?.chain(name)?.rules.len());
        let unchanged = names.iter().map(saved).eq(before.iter().map(|chain| Some(chain.len())));
        let left = without(&now, edit)?;
        drop(now);
        let mut handles = read_handles(netfilter, edit, &names)?;
        if unchanged && before == handles {
            let chains = handles.split_off(kept);
            let rules = of_rules(&rules, &names, &handles).ok_or_else(|| lost_race(edit))?;
            return Ok((generation, left, Handles { rules, chains }));
        }
        pause(attempt);
    }
    Err(lost_race(edit))
}

/// The handles of the rules of each chain; the chains are in the order of `names`.
fn read_handles(
    netfilter: &mut Netfilter,
    edit: &TableEdit,
    names: &[&str],
) -> Result<Vec<Vec<u64>>> {
    let of_chain = |name: &&str| {
        let rules = netfilter.rules(edit.ruleset.family, &edit.table, name)?;
        Ok(rules.iter().map(|r| r.handle).collect())
    };
    names.iter().map(of_chain).collect()
}

/// The chain and handle of each of `rules`; `handles` has the handles of the chains `names`, in
/// that order.
fn of_rules(rules: &[RulePos], names: &[&str], handles: &[Vec<u64>]) -> Option<Vec<(String, u64)>> {
    let of_rule = |rule: &RulePos| {
        let chain = names.iter().position(|name| *name == rule.chain)?;
        let handle = handles.get(chain)?.get(rule.position)?;
        Some((rule.chain.clone(), *handle))
    };
    rules.iter().map(of_rule).collect()
}

/// Waits for a time that varies from try to try, up to [`LONGEST_PAUSE_MS`].
fn pause(attempt: u32) {
    let micros = (attempt * 2617) % (LONGEST_PAUSE_MS * 1000);
    std::thread::sleep(Duration::from_micros(micros.into()));
}

/// The batch of a removal: first the rules in kept chains (the jumps), then every rule of the
/// removed chains, then those chains. With `handles`, each rule of a removed chain is removed by
/// its own handle: if another program added a rule, the chain is not empty and the kernel refuses
/// the whole batch. Without `handles`, each removed chain is flushed; that is safe only at the very
/// generation at which the chain was read.
fn batch<'a>(
    edit: &'a TableEdit,
    rules: &'a [(String, u64)],
    handles: Option<&[Vec<u64>]>,
) -> Batch<'a> {
    let family = edit.ruleset.family;
    let table = edit.table.as_str();
    let mut batch = Batch::new();
    for (chain, handle) in rules {
        batch.delete_rule(family, table, chain, *handle);
    }
    for (i, chain) in edit.chains.iter().enumerate() {
        match handles {
            None if chain.rules.is_empty() => {}
            None => batch.flush_chain(family, table, &chain.name),
            Some(handles) => {
                for handle in &handles[i] {
                    batch.delete_rule(family, table, &chain.name, *handle);
                }
            }
        }
    }
    for chain in &edit.chains {
        batch.delete_chain(family, table, &chain.name);
    }
    batch
}

/// Adds rules with iptables-nft-restore, because `nft` cannot add xtables expressions.
/// iptables-nft-restore takes no generation, so the result is verified afterwards, and a rule that
/// landed at the wrong position, because another program wrote meanwhile, is removed.
fn add(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<Applied> {
    let mut netfilter = Netfilter::open()?;
    let generation = netfilter.generation()?;
    let before = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    let rules = table::insert_positions(edit, before.as_ref())?;
    let restored = kernel
        .writer(Tool::Restore(edit.ruleset))?
        .args(["--noflush"])
        .stdin(payload::addition(&edit.table, READ_ALL_CHAINS, &rules, &edit.chains))
        .deadline(table::DEADLINE)
        .run();
    match restored {
        // Another program removed a rule, so the index of an insertion was too high. Nothing was
        // added.
        Err(_) if netfilter.generation()? != generation => return Err(lost_race(edit)),
        Err(e) => return Err(Error { kind: Kind::Kernel, ..e }),
        Ok(_) => {}
    }
    let after = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    if netfilter.generation()? == generation.wrapping_add(1) {
        return Ok(table::applied(Direction::Add, edit, before.as_ref(), after.as_ref()));
    }
    let misplaced = table::misplaced(edit, &rules, before.as_ref(), after.as_ref());
    if misplaced.is_empty() {
        return Ok(Applied::default());
    }
    remove_misplaced(kernel, edit, misplaced)?;
    Err(lost_race(edit))
}

/// Removes the added rules that are misplaced. Names each by its rule text, which occurs only once
/// in the chain. iptables-nft-restore looks the text up in the state at its own commit, so writes
/// by other programs do not matter.
fn remove_misplaced(kernel: &Kernel<'_>, edit: &TableEdit, misplaced: Vec<RulePos>) -> Result<()> {
    let by_text = kernel
        .writer(Tool::Restore(edit.ruleset))?
        .args(["--noflush"])
        .stdin(payload::removal(&edit.table, &misplaced, &[], &[]))
        .deadline(table::DEADLINE)
        .run();
    if by_text.is_ok() {
        return Ok(());
    }
    let named = misplaced.first().map_or_else(String::new, |r| r.text.to_string());
    let by_handle = TableEdit { rules: misplaced, chains: Vec::new(), ..edit.clone() };
    remove(kernel, &by_handle).map(|_| ()).map_err(|e| {
        let object = format!("{} {} {named}", edit.ruleset, edit.table);
        let cause = format!("landed in the wrong place, and could not be taken out again: {e}");
        Error::new(Kind::Kernel, object, cause)
    })
}
