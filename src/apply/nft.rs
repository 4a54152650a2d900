//! iptables-nft tables: one netlink batch bound to the generation it was planned on.
//!
//! The save says what the rules are, the netlink dump says which handles they have. The batch carries
//! a generation: the kernel refuses it as a whole when anyone has written since (`ERESTART`). Then it
//! is sent again on the next generation, and names each rule by its handle: it is refused when one of
//! its rules is gone, or when a chain that goes holds a rule that it does not name.

use std::time::Duration;

use crate::apply::{Applied, Kernel, payload, table};
use crate::error::{Error, Kind, Result};
use crate::node::commands::Command;
use crate::node::nfnetlink::{Batch, Netfilter};
use crate::node::tools::Tool;
use crate::plan::edit::{Direction, RuleAt, TableEdit};
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

/// What a removal names, by numbers that the kernel never gives twice: whatever others write, they
/// mean these rules or nothing.
struct Handles {
    /// Rules that go from chains that stay.
    rules: Vec<(String, u64)>,
    /// All rules of each chain that goes, in the edit's order.
    chains: Vec<Vec<u64>>,
}

fn remove(kernel: &Kernel<'_>, edit: &TableEdit) -> Result<Applied> {
    let mut netfilter = Netfilter::open()?;
    let (planned, before, handles) = planned_handles(kernel, &mut netfilter, edit)?;
    let mut generation = planned;
    for _ in 0..TRIES {
        let batch = batch(edit, &handles, generation == planned);
        match netfilter.commit(&batch, generation) {
            Ok(()) if generation == planned => {
                return proof(kernel, &mut netfilter, planned, Direction::Remove, edit, before);
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
) -> Result<(u32, Option<Ruleset>, Handles)> {
    let mut names: Vec<&str> = edit.rules.iter().map(|r| r.chain.as_str()).collect();
    names.dedup();
    names.extend(edit.chains.iter().map(|c| c.name.as_str()));
    for attempt in 0..TRIES {
        let generation = netfilter.generation()?;
        let before = read_handles(netfilter, edit, &names)?;
        let now = table::read(kernel.tools, edit.ruleset, &edit.table, None)?;
        let rules = table::locate(edit, now.as_ref())?;
        let held = |name: &&str| {
            now.as_ref()?.table(&edit.table)?.chain(name).map(|chain| chain.rules.len())
        };
        let seen = names.iter().map(held).eq(before.iter().map(|chain| Some(chain.len())));
        let now = now.map(|now| without(&now, edit)).transpose()?;
        let handles = read_handles(netfilter, edit, &names)?;
        if seen && before == handles {
            return Ok((generation, now, of_edit(edit, &rules, &names, handles)?));
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

fn of_edit(
    edit: &TableEdit,
    rules: &[RuleAt],
    names: &[&str],
    mut handles: Vec<Vec<u64>>,
) -> Result<Handles> {
    // The chains that go stand last, in the edit's order.
    let chains = handles.split_off(names.len() - edit.chains.len());
    let of_rule = |rule: &RuleAt| {
        let chain = names.iter().position(|name| *name == rule.chain)?;
        let handle = handles.get(chain)?.get(rule.position)?;
        Some((rule.chain.clone(), *handle))
    };
    let rules: Option<_> = rules.iter().map(of_rule).collect();
    rules.map(|rules| Handles { rules, chains }).ok_or_else(|| lost_race(edit))
}

/// Waits a little, each time for another time.
fn pause(attempt: u32) {
    let micros = (attempt * 2617) % (LONGEST_PAUSE_MS * 1000);
    std::thread::sleep(Duration::from_micros(micros.into()));
}

/// Jumps first, then every rule of the chains that go, then these chains. Where nobody wrote since the
/// chains were read (`quiet`: the kernel refuses the batch otherwise), a chain is emptied at once;
/// else each rule goes by its handle: a chain that someone added a rule to is then not empty, and
/// the kernel refuses the whole batch.
fn batch<'a>(edit: &'a TableEdit, handles: &'a Handles, quiet: bool) -> Batch<'a> {
    let (family, table) = (edit.ruleset.family, edit.table.as_str());
    let mut batch = Batch::new();
    for (chain, handle) in &handles.rules {
        batch.delete_rule(family, table, chain, *handle);
    }
    for (chain, handles) in edit.chains.iter().zip(&handles.chains) {
        if quiet && !handles.is_empty() {
            batch.flush_chain(family, table, &chain.name);
            continue;
        }
        for handle in handles {
            batch.delete_rule(family, table, &chain.name, *handle);
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
    take_out(kernel, edit, wrong)?;
    Err(lost_race(edit))
}

/// Takes rules out again that landed in the wrong place. By their text: they stand there once, and
/// iptables-nft-restore finds them in the state in which it commits, however busy others are.
fn take_out(kernel: &Kernel<'_>, edit: &TableEdit, wrong: Vec<RuleAt>) -> Result<()> {
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
