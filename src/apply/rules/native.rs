//! Edits native nf_tables tables, each as a whole: removes a table, and makes it again from the
//! kernel's own messages about it. Each is one netlink batch, which the kernel refuses if anybody has
//! written since the table was compared with the plan.

use crate::error::{Error, Kind, Result};
use crate::node::nfnetlink::{Batch, Netfilter, TableFamily};
use crate::plan::change::{Direction, NativeTable};
use crate::state::nft::is_identifier;
use crate::state::nft_messages::{TableCopy, same_parts};

/// How often a batch is made anew because others wrote to any table meanwhile.
const TRIES: usize = 20;

pub(in crate::apply) fn apply(direction: Direction, table: &NativeTable) -> Result<()> {
    if !is_identifier(&table.name) {
        let object = format!("nft table {} {:?}", table.family, table.name);
        return Err(Error::new(Kind::Kernel, object, "its name cannot be given to nft"));
    }
    if table.messages.is_empty() {
        let cause = "it could not be put back: the capture lacks the kernel's messages about it";
        return Err(Error::new(Kind::Kernel, named(table), cause).hint("nothing was changed"));
    }
    let mut netfilter = Netfilter::open()?;
    for _ in 1..TRIES {
        let generation = netfilter.settled_generation()?;
        match commit(&mut netfilter, generation, direction, table) {
            Err(e) if e.kind == Kind::LostRace && netfilter.generation()? != generation => {}
            result => return result,
        }
    }
    let generation = netfilter.settled_generation()?;
    commit(&mut netfilter, generation, direction, table)
}

/// Removes or makes the table, if at `generation` it is as the edit has it.
fn commit(
    netfilter: &mut Netfilter,
    generation: u32,
    direction: Direction,
    table: &NativeTable,
) -> Result<()> {
    let mut batch = Batch::new();
    match direction {
        Direction::Remove => {
            is_as_planned(netfilter, table)?;
            batch.delete_table(&table.family, &table.name);
        }
        // The first message is refused if the table is there: it would be somebody else's.
        Direction::Add => {
            table.messages.iter().for_each(|m| batch.make(&table.family, &table.name, m));
        }
    }
    netfilter.commit(&batch, generation)
}

/// Compares the table with the edit.
fn is_as_planned(netfilter: &mut Netfilter, table: &NativeTable) -> Result<()> {
    let cause = match netfilter.copy_table(TableFamily::named(&table.family)?, &table.name)? {
        None => "the table is gone".to_owned(),
        Some(TableCopy::Messages(now)) if same_parts(&now, &table.messages) => return Ok(()),
        Some(TableCopy::Messages(_)) => "someone else changed it".to_owned(),
        Some(TableCopy::Refused(cause)) => format!("someone else changed it: {cause}"),
    };
    Err(Error::new(Kind::LostRace, named(table), cause))
}

fn named(table: &NativeTable) -> String {
    format!("nft table {} {}", table.family, table.name)
}
