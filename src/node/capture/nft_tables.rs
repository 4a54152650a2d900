//! Captures the native tables of nf_tables: as nft's JSON, and as the kernel's own messages.

use std::panic::resume_unwind;
use std::thread;

use serde_json::Value;

use super::{put, save};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Sink};
use crate::node::nfnetlink::{Netfilter, TableFamily};
use crate::node::subsystems;
use crate::node::tools::{Tool, Tools};
use crate::state::nft::is_identifier;
use crate::state::{Family, Files};

/// How often a native table is read while others write. What was read last counts then; whether it is
/// the same table twice, a snapshot shows.
const NATIVE_TRIES: usize = 3;

/// The family and name of a table of nf_tables.
pub(super) struct NftTableName {
    pub(super) family: String,
    pub(super) name: String,
}

impl NftTableName {
    /// True if the iptables-nft-save program of `family` prints this table.
    pub(super) fn is_of(&self, family: Family) -> bool {
        self.family == family.nft() && subsystems::XTABLES.contains(&self.name.as_str())
    }

    fn is_native(&self) -> bool {
        !Family::ALL.iter().any(|&family| self.is_of(family))
    }
}

/// The tables of nf_tables. The list is read over netlink, so a node that has only iptables-nft's
/// tables needs no `nft` program.
pub(super) fn listed() -> Result<Vec<NftTableName>> {
    let tables = Netfilter::open()?.tables()?.into_iter();
    Ok(tables.map(|t| NftTableName { family: t.family.to_string(), name: t.name }).collect())
}

/// Captures the native ones of `tables`.
pub(super) fn capture_native(
    tools: &Tools,
    tables: &[NftTableName],
    files: &mut Files,
    sink: &dyn Sink,
) -> Result<()> {
    let (mut native, mut messages): (Vec<Value>, String) = Default::default();
    for table in tables.iter().filter(|t| t.is_native()) {
        if !is_identifier(&table.name) {
            let text = format!(
                "table {} {:?} is not captured: its name cannot be given to nft",
                table.family, table.name
            );
            sink.emit(Event::Note { text });
            continue;
        }
        let (mut items, copy) = native_table(tools, table)?;
        // Each listing repeats the item with nft's version; only the first is kept.
        items.retain(|item| native.is_empty() || item.get("metainfo").is_none());
        native.append(&mut items);
        messages.push_str(&copy);
    }
    put(files, "nft.messages", messages);
    if !native.is_empty() {
        put(files, "nft.json", format!("{}\n", serde_json::json!({ "nftables": native })));
    }
    Ok(())
}

/// The items of one native table in nft's JSON, and the lines of its messages; empty if the table was
/// deleted meanwhile. Reads both again while somebody writes between the two.
fn native_table(tools: &Tools, table: &NftTableName) -> Result<(Vec<Value>, String)> {
    let NftTableName { family, name } = table;
    let mut netfilter = Netfilter::open()?;
    for tries_left in (0..NATIVE_TRIES).rev() {
        let generation = netfilter.settled_generation()?;
        // Both at once, because each of them asks the kernel for the elements of thousands of sets.
        let (listed, copy) = thread::scope(|scope| {
            let nft = ["-j", "list", "table", family, name];
            let listing = scope.spawn(move || save(tools, Tool::Nft, &nft));
            let copy = netfilter.copy_table(TableFamily::named(family)?, name);
            let listed = listing.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok::<_, Error>((listed, copy))
        })?;
        // What was read of a table that somebody changed or deleted meanwhile counts for nothing, and
        // neither does an error.
        if tries_left == 0 || netfilter.generation()? == generation {
            let Some(copy) = copy? else { break };
            let unreadable = |e: Error| Error { object: format!("nft table {family} {name}"), ..e };
            let items = json(&listed?.stdout).map_err(unreadable)?;
            return Ok((items, copy.render(family, name)));
        }
    }
    Ok(Default::default())
}

/// The items of a JSON document that nft printed.
fn json(text: &str) -> Result<Vec<Value>> {
    let parse = |e: &dyn std::fmt::Display| Error::new(Kind::Parse, "nft -j", e);
    let document: Value = serde_json::from_str(text).map_err(|e| parse(&e))?;
    match document {
        Value::Object(mut members) => match members.remove("nftables") {
            Some(Value::Array(items)) => Ok(items),
            _ => Err(parse(&"it has no list named nftables")),
        },
        _ => Err(parse(&"it is not an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_iptables_are_distinguished_from_native_ones() {
        let table =
            |family: &str, name: &str| NftTableName { family: family.into(), name: name.into() };
        let names = [("ip", "nat"), ("ip6", "nat"), ("inet", "nat"), ("ip", "kube-proxy")];
        let tables = names.map(|(family, name)| table(family, name));
        let native: Vec<_> = tables.iter().map(NftTableName::is_native).collect();
        assert_eq!(native, [false, false, true, true]);
        assert!(tables[0].is_of(Family::Ipv4) && !tables[0].is_of(Family::Ipv6));
    }

    #[test]
    fn what_is_not_a_document_of_nft_is_an_error() {
        for text in ["", "[]", "{}", r#"{"nftables": 1}"#] {
            assert_eq!(json(text).unwrap_err().kind, Kind::Parse, "{text}");
        }
    }
}
