//! What the kernel's own messages say of a native table, in the form of nft's JSON: for a table that the
//! node's nft cannot list.
//!
//! Chains, sets and the verdicts of rules are as nft prints them. Any other part of a rule is
//! `{"kernel": "NAME BYTES"}`, which nobody can take for something that it is not.

use serde_json::{Map, Value, json};

use super::netlink_attributes::Attributes;
use super::nft::UNLISTED;
use super::nft_messages::{MessageKind, TableMessage, at_rest_expressions};

/// Attributes by the numbers of linux/netfilter/nf_tables.h: the names in every message, of a chain, of
/// its hook, of a set, of a rule, of a verdict.
const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const NAME: u16 = 2;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const SET_FLAGS: u16 = 3;
const VERDICT_DATA: u16 = 2;
const VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

/// The flags of a set that a rule has for itself (NFT_SET_ANONYMOUS), and of a map (NFT_SET_MAP,
/// NFT_SET_OBJECT).
const ANONYMOUS: u32 = 1;
const MAP: u32 = 8 | 0x40;

/// The items of the table `family` `name` that these messages make.
pub fn items(family: &str, name: &str, messages: &[TableMessage]) -> Vec<Value> {
    let mut table = json!({ "family": family, "name": name, UNLISTED: true });
    if messages.iter().any(is_dormant) {
        table["flags"] = "dormant".into();
    }
    let mut items = vec![json!({ "table": table })];
    items.extend(messages.iter().filter_map(|message| {
        let attributes = Attributes(&message.attributes);
        let (kind, own) = match message.kind {
            MessageKind::Table | MessageKind::Elements => return None,
            MessageKind::Chain => ("chain", chain(family, &attributes)),
            MessageKind::Set => set(&attributes)?,
            MessageKind::Object => ("object", named(&attributes, NAME)),
            MessageKind::Flowtable => ("flowtable", named(&attributes, NAME)),
            MessageKind::Rule => ("rule", rule(message)),
        };
        let mut body = Map::new();
        body.insert("family".into(), family.into());
        body.insert("table".into(), lossy(&attributes, TABLE_NAME).into());
        body.extend(own);
        Some(json!({ kind: body }))
    }));
    items
}

/// Whether a message makes a table whose chains see no packet (NFT_TABLE_F_DORMANT).
fn is_dormant(message: &TableMessage) -> bool {
    let flags = Attributes(&message.attributes).u32(TABLE_FLAGS).unwrap_or_default();
    message.kind == MessageKind::Table && flags & 1 != 0
}

/// A text of an attribute, in which what is not UTF-8 is replaced.
fn lossy(attributes: &Attributes<'_>, number: u16) -> String {
    let bytes = attributes.get(number).unwrap_or_default();
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn named(attributes: &Attributes<'_>, number: u16) -> Map<String, Value> {
    Map::from_iter([("name".to_owned(), lossy(attributes, number).into())])
}

fn chain(family: &str, attributes: &Attributes<'_>) -> Map<String, Value> {
    let mut body = named(attributes, CHAIN_NAME);
    let Some(hook) = attributes.get(CHAIN_HOOK).map(Attributes) else { return body };
    let number = hook.u32(HOOK_NUMBER).unwrap_or(u32::MAX);
    body.insert("type".into(), lossy(attributes, CHAIN_TYPE).into());
    body.insert("hook".into(), hook_name(family, number).into());
    let priority = hook.u32(HOOK_PRIORITY).unwrap_or_default().cast_signed();
    body.insert("prio".into(), priority.into());
    let policy = if attributes.u32(CHAIN_POLICY) == Some(0) { "drop" } else { "accept" };
    body.insert("policy".into(), policy.into());
    body
}

/// The name of a hook (linux/netfilter.h, netfilter_arp.h and netfilter_netdev.h).
fn hook_name(family: &str, number: u32) -> &'static str {
    let names: &[&str] = match family {
        "arp" => &["input", "output", "forward"],
        "netdev" => &["ingress", "egress"],
        _ => &["prerouting", "input", "forward", "output", "postrouting", "ingress"],
    };
    usize::try_from(number).ok().and_then(|at| names.get(at)).copied().unwrap_or("unknown")
}

/// A set or a map; none for one that a rule has for itself, which is a part of that.
fn set(attributes: &Attributes<'_>) -> Option<(&'static str, Map<String, Value>)> {
    let flags = attributes.u32(SET_FLAGS).unwrap_or_default();
    let kind = if flags & MAP == 0 { "set" } else { "map" };
    (flags & ANONYMOUS == 0).then(|| (kind, named(attributes, NAME)))
}

fn rule(message: &TableMessage) -> Map<String, Value> {
    let attributes = Attributes(&message.attributes);
    let chain = lossy(&attributes, NAME);
    let parts = at_rest_expressions(&attributes).into_iter().map(|(name, data)| part(&name, &data));
    Map::from_iter([
        ("chain".to_owned(), chain.into()),
        ("expr".to_owned(), Value::Array(parts.collect())),
    ])
}

fn part(name: &str, data: &[u8]) -> Value {
    match name {
        "counter" | "log" | "reject" => json!({ name: null }),
        "masq" => json!({ "masquerade": null }),
        _ => verdict(name, &Attributes(data)).unwrap_or_else(|| {
            let bytes: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "kernel": format!("{name} {bytes}") })
        }),
    }
}

/// The verdict that an expression gives; none for any other expression.
fn verdict(name: &str, data: &Attributes<'_>) -> Option<Value> {
    if name != "immediate" {
        return None;
    }
    let verdict = Attributes(Attributes(data.get(VERDICT_DATA)?).get(VERDICT)?);
    let chain = || json!({ "target": lossy(&verdict, VERDICT_CHAIN) });
    Some(match verdict.u32(VERDICT_CODE)?.cast_signed() {
        0 => json!({ "drop": null }),
        1 => json!({ "accept": null }),
        -1 => json!({ "continue": null }),
        -3 => json!({ "jump": chain() }),
        -4 => json!({ "goto": chain() }),
        -5 => json!({ "return": null }),
        _ => return None,
    })
}
