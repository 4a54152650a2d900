//! Edits native nf_tables tables, each as a whole. The `nft` program reads and rebuilds a table. A
//! netlink batch removes a table. The batch is bound to the generation at which the table was still
//! as planned.

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::nfnetlink::{Batch, Netfilter};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, NativeTable};
use crate::state::nft::{NftTable, NftTables, is_identifier, rebuild};

pub(in crate::apply) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    table: &NativeTable,
) -> Result<()> {
    match direction {
        Direction::Remove => remove(kernel, table),
        Direction::Add => add(kernel, table),
    }
}

fn remove(kernel: &Kernel<'_>, table: &NativeTable) -> Result<()> {
    if !is_identifier(&table.name) {
        let object = format!("nft table {} {:?}", table.family, table.name);
        return Err(Error::new(Kind::Kernel, object, "its name cannot be given to nft"));
    }
    let mut netfilter = Netfilter::open()?;
    let generation = netfilter.generation()?;
    let text = kernel
        .tools
        .command(Tool::Nft)?
        .args(["-j", "list", "table", &table.family, &table.name])
        .run()?
        .stdout;
    let now = NftTables::parse("nft -j list table", &text)?;
    let planned = NftTable {
        family: table.family.clone(),
        name: table.name.clone(),
        objects: table.objects.clone(),
    };
    let object = format!("nft table {} {}", table.family, table.name);
    let Some(now) = now.get(&table.family, &table.name) else {
        return Err(Error::new(Kind::LostRace, object, "the table is gone"));
    };
    if let Some(difference) = planned.differences(now).first() {
        let cause = format!("someone else changed it: {difference}");
        return Err(Error::new(Kind::LostRace, object, cause));
    }
    let mut batch = Batch::new();
    batch.delete_table(&table.family, &table.name);
    netfilter.commit(&batch, generation)
}

fn add(kernel: &Kernel<'_>, table: &NativeTable) -> Result<()> {
    kernel
        .writer(Tool::Nft)?
        .args(["-j", "-f", "-"])
        .stdin(rebuild(&table.objects).to_string())
        .run()
        .map_err(|e| Error { kind: Kind::Kernel, ..e })?;
    Ok(())
}
