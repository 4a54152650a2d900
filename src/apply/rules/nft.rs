//! iptables-nft tables: one netlink batch bound to the generation it was planned on.
//!
//! The batch carries the generation that the table was read on: the kernel refuses it as a whole when
//! anyone has written since (`ERESTART`). Then it names each rule by its handle, and is sent on the
//! next generation: it is refused when one of its rules is gone, or when a chain that goes holds a rule
//! that it does not name. The save says what the rules are, a netlink dump which handles they have.

use std::time::Duration;

use crate::apply::rules::{payload, table};
use crate::apply::{Applied, Kernel};
use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::nfnetlink::{Batch, Netfilter};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, RulePos, TableEdit};
use crate::plan::invariants::without;
use crate::state::ruleset::Ruleset;

/// How often handles are read again because someone wrote to the same chains meanwhile, and a batch
/// sent again because someone wrote at all.
const TRIES: u32 = 50;

/// Longest pause between two tries, so that a writer with a rhythm of its own does not always meet
/// ours.
const LONGEST_PAUSE_MS: u32 = 10;

/// With `--noflush`, iptables-nft-restore goes through a sorted list of all chains named so far, for
/// each line: a minute and more for 30,000 chains. Once a line names no chain, as this one, it reads
/// all chains at once and keeps no list: 2 s (measured with 1.8.9).
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

/// What nearly always does: reads the table, and empties the chains that go as they were read. None
/// when someone wrote meanwhile, and the kernel refused.
///
/// All that is read here is of one moment, or the batch is refused: see
/// [`Netfilter::settled_generation`].
fn remove_at_once(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    edit: &TableEdit,
) -> Result<Option<Applied>> {
    let generation = netfilter.settled_generation()?;
    let (now, rules) = planned_rules(kernel, edit)?;
    let before = without(&now, edit)?;
    drop(now);
    let names = chains_that_stay(edit);
    let handles = read_handles(netfilter, edit, &names)?;
    let Some(handles) = of_rules(&rules, &names, &handles) else { return Ok(None) };
    let committed = netfilter.commit(&batch(edit, &handles, None), generation);
    match committed {
        Ok(()) => proof(kernel, netfilter, generation, edit, &before).map(Some),
        Err(e) if e.kind == Kind::LostRace && netfilter.generation()? != generation => Ok(None),
        Err(e) => Err(e),
    }
}

/// What a removal names, by numbers that the kernel never gives twice: whatever others write, they
/// mean these rules or nothing.
struct Handles {
    /// Rules that go from chains that stay.
    rules: Vec<(String, u64)>,
    /// All rules of each chain that goes, in the edit's order.
    chains: Vec<Vec<u64>>,
}

/// For a table that others do not leave alone: every rule is named, and each try is on the generation
/// that the last one was refused for.
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
                return proof(kernel, netfilter, planned, edit, &before);
            }
            // Others wrote since the table was read: there is nothing to compare with.
            Ok(()) => return Ok(Applied::default()),
            Err(e) if e.kind != Kind::LostRace => return Err(e),
            Err(e) => {
                let now = netfilter.generation()?;
                if now == generation {
                    // Refused for what the batch names, not for when it came.
                    return Err(e);
                }
                generation = now;
            }
        }
    }
    Err(lost_race(edit))
}

fn lost_race(edit: &TableEdit) -> Error {
    let place = format!("{} {}", edit.ruleset, edit.table);
    Error::new(Kind::LostRace, place, "others wrote while it was being read, every time")
}

/// Holds the table against what a removal should have made of it, if ours was the only commit since
/// `generation`.
fn proof(
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

/// The table as it is, and where the edit's rules stand in it: held against the edit.
fn planned_rules(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<(Ruleset, Vec<RulePos>)> {
    let now = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    let rules = table::find_rules(edit, now.as_ref())?;
    now.map(|now| (now, rules)).ok_or_else(|| lost_race(edit))
}

/// The chains that only lose rules.
fn chains_that_stay(edit: &TableEdit) -> Vec<&str> {
    let mut names: Vec<&str> = edit.rules.iter().map(|r| r.chain.as_str()).collect();
    names.dedup();
    names
}

/// Reads the table and the handles of the edit's rules, with the generation before that. Of the table
/// only what the edit leaves is kept: the rest was just held against the edit, and is large.
///
/// A chain that has the same handles before and after the save held just these rules all the time,
/// since a handle is never given twice; the save may show one more that came and went, which its
/// number of rules tells. Who writes to other chains does not disturb.
fn planned_handles(
    kernel: &Kernel<'_>,
    netfilter: &mut Netfilter,
    edit: &TableEdit,
) -> Result<(u32, Ruleset, Handles)> {
    let mut names = chains_that_stay(edit);
    let stay = names.len();
    names.extend(edit.chains.iter().map(|c| c.name.as_str()));
    for attempt in 0..TRIES {
        let generation = netfilter.generation()?;
        let before = read_handles(netfilter, edit, &names)?;
        let (now, rules) = planned_rules(kernel, edit)?;
        let held = |name: &&str| Some(now.table(&edit.table)?.chain(name)?.rules.len());
        let seen = names.iter().map(held).eq(before.iter().map(|chain| Some(chain.len())));
        let left = without(&now, edit)?;
        drop(now);
        let mut handles = read_handles(netfilter, edit, &names)?;
        if seen && before == handles {
            let chains = handles.split_off(stay);
            let rules = of_rules(&rules, &names, &handles).ok_or_else(|| lost_race(edit))?;
            return Ok((generation, left, Handles { rules, chains }));
        }
        pause(attempt);
    }
    Err(lost_race(edit))
}

/// The handles of each chain's rules, in the order of `names`.
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

/// The chain and handle of each rule, by the handles of the chains `names`.
fn of_rules(rules: &[RulePos], names: &[&str], handles: &[Vec<u64>]) -> Option<Vec<(String, u64)>> {
    let of_rule = |rule: &RulePos| {
        let chain = names.iter().position(|name| *name == rule.chain)?;
        let handle = handles.get(chain)?.get(rule.position)?;
        Some((rule.chain.clone(), *handle))
    };
    rules.iter().map(of_rule).collect()
}

/// Waits a little, each time for another time.
fn pause(attempt: u32) {
    let micros = (attempt * 2617) % (LONGEST_PAUSE_MS * 1000);
    std::thread::sleep(Duration::from_micros(micros.into()));
}

/// Jumps first, then every rule of the chains that go, then these chains. With `handles`, each rule
/// goes by its own: a chain that someone added a rule to is then not empty, and the kernel refuses the
/// whole batch. Without, a chain is emptied at once, on the very generation that it was read on.
fn batch<'a>(
    edit: &'a TableEdit,
    rules: &'a [(String, u64)],
    handles: Option<&[Vec<u64>]>,
) -> Batch<'a> {
    let (family, table) = (edit.ruleset.family, edit.table.as_str());
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

/// Rules are put back by the tool that wrote them: `nft` cannot re-add xtables expressions, and
/// iptables-nft-restore takes no generation. So what it did is looked at afterwards, and a rule that
/// landed in the wrong place because someone wrote meanwhile is taken out again.
fn add(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<Applied> {
    let mut netfilter = Netfilter::open()?;
    let generation = netfilter.generation()?;
    let before = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
    let rules = table::insert_positions(edit, before.as_ref())?;
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
    take_out(kernel, edit, wrong)?;
    Err(lost_race(edit))
}

/// Takes rules out again that landed in the wrong place. By their text: they stand there once, and
/// iptables-nft-restore finds them in the state in which it commits, however busy others are.
fn take_out(kernel: &Kernel<'_>, edit: &TableEdit, wrong: Vec<RulePos>) -> Result<()> {
    let by_text = Command::new(kernel.tools.tool(Tool::Restore(edit.ruleset))?)
        .args(["--noflush"])
        .stdin(payload::withdrawal(&edit.table, &wrong))
        .deadline(table::DEADLINE)
        .run();
    if by_text.is_ok() {
        return Ok(());
    }
    let named = wrong.first().map_or_else(String::new, |r| r.text.to_string());
    let by_handle = TableEdit { rules: wrong, chains: Vec::new(), ..edit.clone() };
    remove(kernel, &by_handle).map(|_| ()).map_err(|e| {
        let place = format!("{} {} {named}", edit.ruleset, edit.table);
        let cause = format!("landed in the wrong place, and could not be taken out again: {e}");
        Error::new(Kind::Kernel, place, cause)
    })
}
