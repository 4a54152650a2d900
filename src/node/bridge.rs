//! Reads the bridge, a table of ours that serves while kube-proxy changes its mode.

use serde::Deserialize;

use super::nfnetlink::{Netfilter, TableFamily};
use super::tools::{Tool, Tools};
use crate::error::{Error, Kind, Result};
use crate::state::Family;
use crate::state::bridge_table::{TABLE, TRANSLATED, Translated};

/// The families of which a bridge is loaded. This may load `nf_tables`, so ask only where a bridge may
/// be.
///
/// # Errors
/// As [`Netfilter::open`] and [`Netfilter::tables`].
pub fn loaded() -> Result<Vec<Family>> {
    let tables = Netfilter::open()?.tables()?;
    let is_there = |family: &Family| {
        tables.iter().any(|t| t.name == TABLE && t.family == TableFamily::from(*family))
    };
    Ok(Family::ALL.into_iter().filter(is_there).collect())
}

/// How many connections the bridge of a family has translated.
///
/// # Errors
/// [`Kind::Command`] when nft cannot list its counter, [`Kind::Parse`] for another answer than that.
pub fn translated(tools: &Tools, family: Family) -> Result<Translated> {
    let words = ["-j", "list", "counter", family.nft(), TABLE, TRANSLATED];
    let listed = tools.command(Tool::Nft)?.args(words).run()?.stdout;
    let listed: Listed = serde_json::from_str(&listed)
        .map_err(|e| Error::new(Kind::Parse, "nft -j list counter", e))?;
    let counters = listed.nftables.iter().filter_map(|object| object.counter.as_ref());
    Ok(counters.fold(Translated::default(), |sum, counter| Translated {
        packets: sum.packets + counter.packets,
        bytes: sum.bytes + counter.bytes,
    }))
}

#[derive(Deserialize)]
struct Listed {
    nftables: Vec<ListedObject>,
}

#[derive(Deserialize)]
struct ListedObject {
    counter: Option<Counter>,
}

#[derive(Deserialize)]
struct Counter {
    packets: u64,
    bytes: u64,
}
