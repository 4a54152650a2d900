//! Native nf_tables tables, whole, through `nft`.

use serde_json::{Value, json};

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::commands::Command;
use crate::node::tools::Tool;
use crate::plan::edit::{Direction, NativeTable};

pub(super) fn apply(kernel: &Kernel<'_>, direction: Direction, table: &NativeTable) -> Result<()> {
    let commands: Vec<Value> = match direction {
        Direction::Remove => {
            vec![json!({"delete": {"table": {"family": table.family, "name": table.name}}})]
        }
        Direction::Add => table.objects.iter().map(|o| json!({"add": o})).collect(),
    };
    Command::new(kernel.tools.tool(Tool::Nft)?)
        .args(["-j", "-f", "-"])
        .stdin(json!({"nftables": commands}).to_string())
        .run()
        .map_err(|e| Error { kind: Kind::Kernel, ..e })?;
    Ok(())
}
