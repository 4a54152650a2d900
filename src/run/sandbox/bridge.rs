//! The bridge in the sandbox: whether this kernel and this nft hold it.

use crate::apply;
use crate::error::{Error, Kind, Result};
use crate::kube_proxy::bridge::{Bridge, TABLE};
use crate::kube_proxy::mode;
use crate::kube_proxy::running::RunningMode;
use crate::node;
use crate::node::command::DEADLINE;
use crate::node::tools::{Tool, Tools};
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::run::sandbox::packets::{CarriedPackets, Trial};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;

/// What was tried of a bridge.
pub(super) struct BridgeAttempt {
    /// How many service ports it answers.
    pub(super) frontends: usize,
    /// What became of packets.
    pub(super) packets: CarriedPackets,
}

/// Loads the bridge that serves while kube-proxy goes from the mode that `state` shows to the mode `to`,
/// lists it, and deletes it. Then sends packets through it in a namespace of their own. Returns none if
/// that move needs no bridge.
///
/// It is listed because `nft -c` does not find all that nft cannot list, and whoever lists the rules of
/// the node while the bridge is there would fail.
///
/// # Errors
/// [`Kind::Rehearsal`], naming what this kernel or nft refuses, or what packet goes astray.
pub(super) fn try_out(
    catalogue: &Catalogue,
    state: &NodeState,
    to: Mode,
    tools: &Tools,
) -> Result<Option<BridgeAttempt>> {
    let Some(from) = RunningMode::of(state, &Ownership::of(catalogue, state)).mode else {
        return Ok(None);
    };
    if mode::of(from).has_own_tables() == mode::of(to).has_own_tables() {
        return Ok(None);
    }
    let bridges = Bridge::of(state, from);
    for bridge in &bridges {
        let family = bridge.family;
        let refused = |e: Error| Error::new(Kind::Rehearsal, format!("the bridge of {family}"), e);
        apply::bridge::load(tools, &bridge.script()).map_err(refused)?;
        for json in [&["-j"][..], &[]] {
            let words = [json, &["list", "table", family.nft(), TABLE]].concat();
            let list = tools.command(Tool::Nft)?.args(words).deadline(6 * DEADLINE);
            list.run().map_err(refused)?;
        }
        apply::bridge::delete(tools, family).map_err(refused)?;
        if node::bridge::loaded()?.contains(&family) {
            let cause = "is there after it was deleted";
            return Err(refused(Error::new(Kind::Kernel, TABLE, cause)));
        }
    }
    let trial = Trial::of(state, from, &bridges);
    let packets = trial.run(&trial.scripts(&bridges), tools)?;
    let frontends = bridges.iter().map(|bridge| bridge.frontends.len()).sum();
    Ok(Some(BridgeAttempt { frontends, packets }))
}
