//! Loads and deletes the bridge, a table of ours (see [`crate::kube_proxy::bridge`]).

use std::time::Duration;

use crate::error::Result;
use crate::kube_proxy::bridge::Bridge;
use crate::node::tools::{Tool, Tools};
use crate::state::Family;

/// How long nft may take. A bridge of 25,000 endpoints takes it a second.
const DEADLINE: Duration = Duration::from_secs(60);

/// Loads the bridge of one family in one transaction, in place of one that is there. `script` is as
/// of [`Bridge::script`].
///
/// # Errors
/// [`Kind::MissingTool`](crate::error::Kind::MissingTool) without nft;
/// [`Kind::Command`](crate::error::Kind::Command) when nft or the kernel refuses it, and nothing is
/// loaded.
pub fn load(tools: &Tools, script: &str) -> Result<()> {
    nft(tools, script)
}

/// Deletes the bridge of one family, if it is there.
///
/// # Errors
/// As [`load`].
pub fn delete(tools: &Tools, family: Family) -> Result<()> {
    nft(tools, &Bridge::removal(family))
}

fn nft(tools: &Tools, script: &str) -> Result<()> {
    let nft = tools.command(Tool::Nft)?.args(["-f", "-"]).stdin(script);
    nft.deadline(DEADLINE).bound().run().map(drop)
}
