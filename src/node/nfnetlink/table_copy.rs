//! Reads a native table as the messages that make it again, and makes the messages of a batch of
//! them.

use netlink_bindings::consts::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL};
use netlink_bindings::nftables::Nfgenmsg;

use super::raw::{Attributes, RawRequest};
use super::socket::Consistent;
use super::{Netfilter, TableFamily};
use crate::error::Result;
use crate::state::netlink_attributes::push;
use crate::state::nft_messages::{MessageKind, TableCopy, TableMessage};

/// The number of the subsystem (NFNL_SUBSYS_NFTABLES).
const SUBSYSTEM: u16 = 10 << 8;

/// The names of a table and of a set: the first two attributes of every kind of message.
const TABLE: u16 = 1;
const NAME: u16 = 2;

/// Other attributes (NFTA_TABLE_FLAGS, NFTA_CHAIN_FLAGS, NFTA_SET_ID, NFTA_RULE_EXPRESSIONS,
/// NFTA_EXPR_NAME, NFTA_EXPR_DATA), as linux/netfilter/nf_tables.h numbers them.
const TABLE_FLAGS: u16 = 2;
const CHAIN_FLAGS: u16 = 10;
const SET_ID: u16 = 10;
const EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// The flag of a table that ends with the program that made it (NFT_TABLE_F_OWNER), and of a chain
/// that a rule has for itself (NFT_CHAIN_BINDING).
const OWNED: u32 = 2;
const BINDING: u32 = 4;

/// How the kernel speaks of parts of a kind: the numbers of the messages that make one and that get
/// all, and the attributes of the reply that are no part of what is made, such as handles and counts
/// of uses.
struct Wire {
    make: u16,
    get: u16,
    dropped: &'static [u16],
}

fn wire(kind: MessageKind) -> Wire {
    let (make, dropped): (u16, &[u16]) = match kind {
        MessageKind::Table => (0, &[3, 4, 7]),
        MessageKind::Chain => (3, &[2, 6, 11]),
        MessageKind::Rule => (6, &[3, 6]),
        // The last two are a set's type in words and its number of elements.
        MessageKind::Set => (9, &[SET_ID, 16, 19, 20]),
        MessageKind::Elements => (12, &[]),
        MessageKind::Object => (18, &[5, 6]),
        MessageKind::Flowtable => (22, &[4, 5]),
    };
    Wire { make: SUBSYSTEM | make, get: SUBSYSTEM | (make + 1), dropped }
}

/// The message of a batch that makes a part of a table. `number` is another for each message.
pub(super) fn new_part(family: TableFamily, message: &TableMessage, number: u32) -> RawRequest {
    let flags = match message.kind {
        MessageKind::Table => NLM_F_CREATE | NLM_F_EXCL,
        MessageKind::Rule => NLM_F_CREATE | NLM_F_APPEND,
        _ => NLM_F_CREATE,
    };
    let mut attributes = message.attributes.clone();
    if message.kind == MessageKind::Set {
        push(&mut attributes, SET_ID, &number.to_be_bytes());
    }
    RawRequest::with_attributes(wire(message.kind).make, flags, family, &attributes)
}

impl Netfilter {
    /// What a native table can be made of; `None` if there is no such table. If the generation is the
    /// same before and after, this shows the table at one moment.
    ///
    /// # Errors
    /// [`Kind::LostRace`](crate::error::Kind::LostRace) if others kept writing;
    /// [`Kind::Kernel`](crate::error::Kind::Kernel).
    pub fn copy_table(&mut self, family: TableFamily, table: &str) -> Result<Option<TableCopy>> {
        let messages = self.messages_of(family, table)?;
        if messages.is_empty() {
            return Ok(None);
        }
        Ok(Some(match messages.iter().find_map(refusal) {
            Some(cause) => TableCopy::Refused(cause.to_owned()),
            None => TableCopy::Messages(messages),
        }))
    }

    /// All messages about a table, whether it can be made of them or not; none if there is no such
    /// table.
    ///
    /// # Errors
    /// As [`Self::copy_table`].
    pub fn messages_of(&mut self, family: TableFamily, table: &str) -> Result<Vec<TableMessage>> {
        let mut messages = self.parts(MessageKind::Table, family, table, None)?;
        if messages.is_empty() {
            return Ok(messages);
        }
        let kinds = [
            MessageKind::Chain,
            MessageKind::Object,
            MessageKind::Flowtable,
            MessageKind::Set,
            MessageKind::Elements,
            MessageKind::Rule,
        ];
        for kind in kinds {
            if kind != MessageKind::Elements {
                messages.extend(self.parts(kind, family, table, None)?);
                continue;
            }
            let sets = messages.iter().filter(|m| m.kind == MessageKind::Set);
            let names: Vec<Vec<u8>> = sets
                .filter_map(|set| Attributes(&set.attributes).get(NAME).map(<[u8]>::to_vec))
                .collect();
            for name in names {
                messages.extend(self.parts(kind, family, table, Some(&name))?);
            }
        }
        Ok(messages)
    }

    /// The parts of one kind: of a table, or of a set of it.
    fn parts(
        &mut self,
        kind: MessageKind,
        family: TableFamily,
        table: &str,
        set: Option<&[u8]>,
    ) -> Result<Vec<TableMessage>> {
        let object = format!("{} list of table {family} {table}", kind.name());
        let Wire { get, dropped, .. } = wire(kind);
        let mut request = RawRequest::list_of(get, family);
        // The kernel gives all tables and chains of the family, whatever the request says.
        if !matches!(kind, MessageKind::Table | MessageKind::Chain) {
            request.push_text(TABLE, table);
        }
        if let Some(name) = set {
            request.push(NAME, name);
        }
        self.dump(&object, |socket, parts| -> Result<Consistent> {
            socket.request(&request, &object, |reply: Vec<u8>| {
                let attributes = Attributes(reply.get(Nfgenmsg::len()..).unwrap_or_default());
                if attributes.text(TABLE).as_deref() == Some(table) {
                    let attributes = attributes.without(dropped);
                    parts.push(TableMessage { kind, attributes: taken_back(kind, attributes) });
                }
                Ok(())
            })
        })
    }
}

/// The attributes of a part, as the kernel takes them.
fn taken_back(kind: MessageKind, attributes: Vec<u8>) -> Vec<u8> {
    if kind != MessageKind::Rule {
        return attributes;
    }
    let expression = |expression: &[u8]| {
        let parts = Attributes(expression);
        let name = parts.text(EXPRESSION_NAME)?;
        let data = parts.get(EXPRESSION_DATA)?;
        let refused = refused_attribute(&name, &Attributes(data))?;
        let kept = Attributes(data).without(&[refused]);
        Some(parts.changed(|number, _| (number == EXPRESSION_DATA).then(|| kept.clone())))
    };
    Attributes(&attributes).changed(|number, list| {
        (number == EXPRESSIONS).then(|| Attributes(list).changed(|_, one| expression(one)))
    })
}

/// The attribute of an expression of which the kernel tells though it says nothing, and which it
/// refuses: no timeout of elements that a rule adds (NFTA_DYNSET_TIMEOUT), no flags of what sets a
/// field of an extension header (NFTA_EXTHDR_FLAGS, beside NFTA_EXTHDR_SREG) or of `osf`
/// (NFTA_OSF_FLAGS). Found on Linux 6.18 by trying each expression that nft has.
fn refused_attribute(name: &str, data: &Attributes<'_>) -> Option<u16> {
    match name {
        "dynset" if data.u64(6) == Some(0) => Some(6),
        "exthdr" if data.u32(5) == Some(0) && data.get(7).is_some() => Some(5),
        "osf" if data.u32(3) == Some(0) => Some(3),
        _ => None,
    }
}

/// Why a table with this part cannot be made again.
fn refusal(part: &TableMessage) -> Option<&'static str> {
    let attributes = Attributes(&part.attributes);
    let has = |number, flag| attributes.u32(number).is_some_and(|flags| flags & flag != 0);
    match part.kind {
        MessageKind::Table if has(TABLE_FLAGS, OWNED) => {
            Some("it belongs to a program, and ends with that")
        }
        MessageKind::Chain if has(CHAIN_FLAGS, BINDING) => {
            Some("a rule has a chain without a name, which nothing can name again")
        }
        MessageKind::Rule => {
            let all = Attributes(attributes.get(EXPRESSIONS).unwrap_or_default());
            let names = all.filter_map(|(_, e)| Attributes(e).text(EXPRESSION_NAME));
            let is_xtables = |name: String| ["match", "target"].contains(&name.as_str());
            { names }.any(is_xtables).then_some(
                "its rules have matches or targets of xtables, of which the kernel does not tell all",
            )
        }
        _ => None,
    }
}
