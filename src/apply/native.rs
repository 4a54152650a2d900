//! Native nf_tables tables, whole, through `nft`.

use serde_json::json;

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::commands::Command;
use crate::node::tools::Tool;
use crate::plan::edit::{Direction, NativeTable};
use crate::state::nft::rebuild;

pub(super) fn apply(kernel: &Kernel<'_>, direction: Direction, table: &NativeTable) -> Result<()> {
    let document = match direction {
        Direction::Remove => {
            let name = json!({"family": table.family, "name": table.name});
            json!({"nftables": [{"delete": {"table": name}}]})
        }
        Direction::Add => rebuild(&table.objects),
    };
    Command::new(kernel.tools.tool(Tool::Nft)?)
        .args(["-j", "-f", "-"])
        .stdin(document.to_string())
        .run()
        .map_err(|e| Error { kind: Kind::Kernel, ..e })?;
    Ok(())
}
