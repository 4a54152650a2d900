//! Captures the native tables of nf_tables: as nft's JSON, and as the kernel's own messages.

use std::panic::resume_unwind;
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::{SAVE_DEADLINE, put, save};
use crate::error::{Error, Kind, Result};
use crate::event::{Event, Sink};
use crate::node::nfnetlink::{Netfilter, TableFamily};
use crate::node::subsystems;
use crate::node::tools::{Tool, Tools};
use crate::state::kernel_listing;
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
        let (mut items, copy) = native_table(tools, table, sink)?;
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
///
/// An nft that crashes, hangs or prints what is no JSON stops nothing: what the kernel's messages say
/// takes the place of its listing.
fn native_table(
    tools: &Tools,
    table: &NftTableName,
    sink: &dyn Sink,
) -> Result<(Vec<Value>, String)> {
    let NftTableName { family, name } = table;
    let (full, of_family) = (format!("{family} {name}"), TableFamily::named(family)?);
    let mut netfilter = Netfilter::open()?;
    for tries_left in (0..NATIVE_TRIES).rev() {
        let generation = netfilter.settled_generation()?;
        // Both at once, because each of them asks the kernel for the elements of thousands of sets.
        let (listed, copy) = thread::scope(|scope| {
            let listing = tools.lists(&full).then(|| scope.spawn(|| list(tools, table)));
            let copy = netfilter.copy_table(of_family, name);
            let join = |listing: thread::ScopedJoinHandle<'_, _>| {
                listing.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            (listing.map(join), copy)
        });
        if let Some(Err(unlisted)) = &listed
            && unlisted.hangs
            && tries_left > 0
        {
            // Somebody has surely written meanwhile. It is not waited for again.
            unlisted.warn(tools, &full, sink);
            continue;
        }
        // What was read of a table that somebody changed or deleted meanwhile counts for nothing, and
        // neither does an error.
        let is_settled = netfilter.generation()? == generation;
        if tries_left == 0 || is_settled {
            let Some(copy) = copy? else { break };
            let items = match listed {
                Some(Ok(items)) => items,
                Some(Err(unlisted)) if !is_settled || unlisted.error.kind == Kind::MissingTool => {
                    return Err(unlisted.error);
                }
                failed => {
                    if let Some(Err(unlisted)) = failed {
                        unlisted.warn(tools, &full, sink);
                    }
                    kernel_listing::items(family, name, &netfilter.messages_of(of_family, name)?)
                }
            };
            return Ok((items, copy.render(family, name)));
        }
    }
    Ok(Default::default())
}

/// A table that nft did not list.
struct Unlisted {
    error: Error,
    hangs: bool,
}

impl Unlisted {
    /// Remembers and says it. This is said once, because nft is not asked again.
    fn warn(&self, tools: &Tools, table: &str, sink: &dyn Sink) {
        tools.set_unlisted((!self.hangs).then_some(table));
        let text = format!(
            "{} cannot list table {table} ({}): what the kernel itself says of it is taken instead",
            tools.described(Tool::Nft),
            self.error.cause
        );
        sink.emit(Event::Warning { text });
    }
}

/// The items of a table as nft lists them.
fn list(tools: &Tools, table: &NftTableName) -> Result<Vec<Value>, Unlisted> {
    let begin = Instant::now();
    let listed = save(tools, Tool::Nft, &["-j", "list", "table", &table.family, &table.name]);
    listed.and_then(|listed| json(&listed.stdout)).map_err(|error| {
        let hangs = error.kind == Kind::Command && begin.elapsed() >= SAVE_DEADLINE;
        Unlisted { error, hangs }
    })
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
