//! The kernel's own messages about native nf_tables tables, from which each table can be made again.
//!
//! nft's JSON does not say everything: nft 1.0.6 neither prints the comment of a table nor the flag
//! `dynamic` of a set, and reads no comment of a set. The messages are what the kernel was told, in
//! the order in which it can be told again.
//!
//! In a node state they are a line each: family, table, kind, attributes. A table that cannot be made
//! again has one line, with the reason.
//!
//! ```text
//! ip kube-proxy chain 0f0001006b7562652d70726f78790000…
//! bridge filter - its rules have matches or targets of xtables
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::lines;
use super::netlink_attributes::{Attributes, push};
use super::shared_str::SharedStr;
use crate::error::{Error, Kind, Result};

/// What a message makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    /// The table.
    Table,
    /// A chain.
    Chain,
    /// A stateful object: a counter, a quota, a helper and so on.
    Object,
    /// A flowtable.
    Flowtable,
    /// A set or a map, which may be a rule's own.
    Set,
    /// Elements of a set or a map.
    Elements,
    /// A rule.
    Rule,
}

/// The kinds by name, in the order in which a table is made: elements jump to chains and name objects,
/// and rules name everything else.
const KINDS: [(MessageKind, &str); 7] = [
    (MessageKind::Table, "table"),
    (MessageKind::Chain, "chain"),
    (MessageKind::Object, "object"),
    (MessageKind::Flowtable, "flowtable"),
    (MessageKind::Set, "set"),
    (MessageKind::Elements, "elements"),
    (MessageKind::Rule, "rule"),
];

/// Stands in the place of a kind, where the reason follows why a table cannot be made again.
const REFUSED: &str = "-";

/// Attributes by the numbers of linux/netfilter/nf_tables.h: of a set (NFTA_SET_FLAGS), of a message
/// with elements (NFTA_SET_ELEM_LIST_SET, …), of an element (NFTA_SET_ELEM_EXPIRATION, and those of its
/// expressions, which count), of a chain (NFTA_CHAIN_COUNTERS), of an object, a rule and an expression.
const SET: u16 = 2;
const SET_FLAGS: u16 = 3;
const ELEMENTS: u16 = 3;
const EXPIRATION: u16 = 5;
const ELEMENT_EXPRESSIONS: [u16; 2] = [7, 11];
const CHAIN_COUNTERS: u16 = 8;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

/// The flag of a set that rules add to (NFT_SET_EVAL).
const DYNAMIC: u32 = 0x20;

/// A message that makes a part of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TableMessage {
    /// What it makes.
    pub kind: MessageKind,
    /// Its netlink attributes.
    pub attributes: Vec<u8>,
}

/// Example: `set 0f000100…`.
impl fmt::Display for TableMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A table of thousands of services has megabytes, for which a format a byte is slow.
        const DIGITS: [char; 16] =
            ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
        let mut text = String::with_capacity(2 * self.attributes.len());
        for byte in &self.attributes {
            text.push(DIGITS[usize::from(byte >> 4)]);
            text.push(DIGITS[usize::from(byte & 0xf)]);
        }
        write!(f, "{} {text}", self.kind.name())
    }
}

impl MessageKind {
    /// The kind's name: `chain`.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name)
    }
}

impl FromStr for TableMessage {
    type Err = Error;

    fn from_str(text: &str) -> Result<TableMessage> {
        message(text).ok_or_else(|| Error::new(Kind::Parse, text, "is no message of nf_tables"))
    }
}

impl TryFrom<String> for TableMessage {
    type Error = Error;

    fn try_from(text: String) -> Result<TableMessage> {
        text.parse()
    }
}

impl From<TableMessage> for String {
    fn from(message: TableMessage) -> String {
        message.to_string()
    }
}

fn message(text: &str) -> Option<TableMessage> {
    let (name, digits) = text.split_once(' ')?;
    let (kind, _) = *KINDS.iter().find(|(_, known)| *known == name)?;
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let pairs = digits.as_bytes().chunks(2);
    let attributes: Vec<u8> = pairs
        .map(|pair| match pair {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        })
        .collect::<Option<_>>()?;
    Attributes(&attributes).are_whole().then_some(TableMessage { kind, attributes })
}

/// What a table can be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableCopy {
    /// The messages that make it.
    Messages(Vec<TableMessage>),
    /// It cannot be made again, for this reason.
    Refused(String),
}

impl TableCopy {
    /// The lines of the table in a node state.
    pub fn render(&self, family: &str, table: &str) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        match self {
            TableCopy::Refused(cause) => {
                let _ = writeln!(text, "{family} {table} {REFUSED} {cause}");
            }
            TableCopy::Messages(messages) => messages.iter().for_each(|message| {
                let _ = writeln!(text, "{family} {table} {message}");
            }),
        }
        text
    }
}

/// The messages of all native tables of a node state. They are as large as the tables, so they stay
/// text until they are needed.
#[derive(Debug, Clone, Default)]
pub struct TableMessages(Option<SharedStr>);

impl TableMessages {
    /// Takes the text of a node state's file. Errors name `file` and the line.
    pub fn parse(file: &str, text: SharedStr) -> Result<TableMessages> {
        for (number, line) in lines::numbered(file, &text)? {
            let is_known = parts(line).is_some_and(|(.., rest)| {
                rest.strip_prefix("- ").is_some() || message(rest).is_some()
            });
            if !is_known {
                let shown: String = line.chars().take(60).collect();
                return Err(lines::error(file, number, format!("`{shown}` is no such message")));
            }
        }
        Ok(TableMessages(Some(text)))
    }

    /// What a table can be made of; `None` if the state does not say.
    pub fn of(&self, family: &str, table: &str) -> Option<TableCopy> {
        let mut messages = Vec::new();
        for (.., rest) in self.lines().filter(|(f, t, _)| (*f, *t) == (family, table)) {
            match message(rest) {
                Some(message) => messages.push(message),
                None => {
                    let cause = rest.trim_start_matches(REFUSED).trim_start();
                    return Some(TableCopy::Refused(cause.to_owned()));
                }
            }
        }
        (!messages.is_empty()).then_some(TableCopy::Messages(messages))
    }

    /// Why a table cannot be made again; `None` if it can, or if the state does not say.
    pub fn refusal(&self, family: &str, table: &str) -> Option<&str> {
        let own = self.lines().find(|(f, t, _)| (*f, *t) == (family, table));
        own.and_then(|(.., rest)| rest.strip_prefix("- "))
    }

    /// True if the state has no messages, as one that an older version captured.
    pub fn is_empty(&self) -> bool {
        self.lines().next().is_none()
    }

    /// The family and name of each table that is not made of the same parts in `after`, among those
    /// that both have. See [`same_parts`].
    pub fn changed(&self, after: &TableMessages) -> Vec<(String, String)> {
        let name = |(family, table, _): (&str, &str, _)| (family.to_owned(), table.to_owned());
        let tables: BTreeSet<(String, String)> = self.lines().map(name).collect();
        let differs = |(family, table): &(String, String)| match (
            self.of(family, table),
            after.of(family, table),
        ) {
            (Some(TableCopy::Messages(a)), Some(TableCopy::Messages(b))) => !same_parts(&a, &b),
            (Some(a), Some(b)) => a != b,
            _ => false,
        };
        tables.into_iter().filter(differs).collect()
    }

    fn lines(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.0.iter().flat_map(|text| text.lines()).filter_map(parts)
    }
}

/// Splits a line into family, table and the rest.
fn parts(line: &str) -> Option<(&str, &str, &str)> {
    let (family, rest) = line.split_once(' ')?;
    let (table, rest) = rest.split_once(' ')?;
    Some((family, table, rest))
}

/// Whether two lists of messages make the same table. What packets and time change does not count:
/// counters, used quotas, elements that expire or that rules add. Nor does the order of elements.
pub fn same_parts(a: &[TableMessage], b: &[TableMessage]) -> bool {
    let rest = |all: &[TableMessage]| -> Vec<TableMessage> {
        all.iter().filter(|m| m.kind != MessageKind::Elements).map(at_rest).collect()
    };
    elements(a) == elements(b) && rest(a) == rest(b)
}

/// The lasting elements of each set that no rule adds to, sorted.
fn elements(messages: &[TableMessage]) -> BTreeMap<&[u8], Vec<Vec<u8>>> {
    let of =
        |kind| messages.iter().filter(move |m| m.kind == kind).map(|m| Attributes(&m.attributes));
    let is_dynamic = |set: &Attributes<'_>| set.u32(SET_FLAGS).is_some_and(|f| f & DYNAMIC != 0);
    let dynamic = of(MessageKind::Set).filter(is_dynamic).filter_map(|set| set.get(SET));
    let dynamic: BTreeSet<&[u8]> = dynamic.collect();
    let mut found: BTreeMap<&[u8], Vec<Vec<u8>>> = BTreeMap::new();
    for message in of(MessageKind::Elements) {
        let set = message.get(SET).unwrap_or_default();
        if dynamic.contains(set) {
            continue;
        }
        let all = Attributes(message.get(ELEMENTS).unwrap_or_default()).map(|(_, element)| element);
        let lasting = all.filter(|e| Attributes(e).get(EXPIRATION).is_none());
        let at_rest = lasting.map(|e| Attributes(e).without(&ELEMENT_EXPRESSIONS));
        found.entry(set).or_default().extend(at_rest);
    }
    found.values_mut().for_each(|elements| elements.sort_unstable());
    found.retain(|_, elements| !elements.is_empty());
    found
}

/// A message without what packets change.
fn at_rest(message: &TableMessage) -> TableMessage {
    let attributes = Attributes(&message.attributes);
    let attributes = match message.kind {
        MessageKind::Rule => {
            let mut kept = attributes.without(&[EXPRESSIONS]);
            for (name, data) in at_rest_expressions(&attributes) {
                push(&mut kept, EXPRESSION_NAME, name.as_bytes());
                push(&mut kept, EXPRESSION_DATA, &data);
            }
            kept
        }
        MessageKind::Object => {
            let mut kept = attributes.without(&[OBJECT_DATA]);
            let name = match attributes.u32(OBJECT_TYPE) {
                Some(1) => "counter",
                Some(2) => "quota",
                _ => "",
            };
            let data = Attributes(attributes.get(OBJECT_DATA).unwrap_or_default());
            kept.extend(data.without(counts(name)));
            kept
        }
        MessageKind::Chain => attributes.without(&[CHAIN_COUNTERS]),
        _ => attributes.0.to_vec(),
    };
    TableMessage { kind: message.kind, attributes }
}

/// The name and the data of each expression of a rule, without what packets change.
pub(super) fn at_rest_expressions(rule: &Attributes<'_>) -> Vec<(String, Vec<u8>)> {
    let all = Attributes(rule.get(EXPRESSIONS).unwrap_or_default());
    let expressions = all.map(|(_, expression)| {
        let expression = Attributes(expression);
        let name = expression.text(EXPRESSION_NAME).unwrap_or_default();
        let data = Attributes(expression.get(EXPRESSION_DATA).unwrap_or_default());
        let data = data.without(counts(&name));
        (name, data)
    });
    expressions.collect()
}

/// The attributes of an expression or object that packets and time change.
fn counts(name: &str) -> &'static [u16] {
    match name {
        "counter" | "last" => &[1, 2],
        "quota" => &[4],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements_of(values: &[&[u8]]) -> TableMessage {
        let mut list = Vec::new();
        for value in values {
            let mut element = Vec::new();
            push(&mut element, 1, value);
            push(&mut list, 1, &element);
        }
        let mut attributes = Vec::new();
        push(&mut attributes, SET, b"s\0");
        push(&mut attributes, ELEMENTS, &list);
        TableMessage { kind: MessageKind::Elements, attributes }
    }

    #[test]
    fn lines_are_read_as_they_are_written() {
        let copy = TableCopy::Messages(vec![elements_of(&[b"1"]), elements_of(&[b"2"])]);
        let refused = TableCopy::Refused("a reason".into());
        let text = copy.render("ip", "a") + &refused.render("bridge", "filter");
        let all = TableMessages::parse("nft.messages", text.into()).unwrap();
        assert_eq!(all.of("ip", "a"), Some(copy));
        assert_eq!(all.of("bridge", "filter"), Some(refused));
        assert_eq!((all.of("ip6", "a"), all.of("ip", "b")), (None, None));
        assert_eq!(all.refusal("bridge", "filter"), Some("a reason"));
        assert_eq!(all.refusal("ip", "a"), None);
        for line in ["ip a", "ip a chain 0", "ip a chain 0g", "ip a chaos 00", "ip a chain 0300"] {
            let error = TableMessages::parse("nft.messages", format!("{line}\n").into());
            assert!(error.is_err(), "{line}");
        }
    }

    #[test]
    fn counters_do_not_count() {
        let rule = |name: &[u8], number: u16| {
            let (mut data, mut expression, mut list, mut attributes) =
                (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            push(&mut data, number, &[9; 8]);
            push(&mut expression, EXPRESSION_NAME, name);
            push(&mut expression, EXPRESSION_DATA, &data);
            push(&mut list, 1, &expression);
            push(&mut attributes, EXPRESSIONS, &list);
            [TableMessage { kind: MessageKind::Rule, attributes }]
        };
        assert!(same_parts(&rule(b"counter\0", 1), &rule(b"counter\0", 2)));
        assert!(!same_parts(&rule(b"counter\0", 1), &rule(b"last\0", 1)));
        assert!(!same_parts(&rule(b"quota\0", 1), &rule(b"quota\0", 4)));
        assert!(!same_parts(&rule(b"lookup\0", 1), &rule(b"lookup\0", 2)));
    }

    #[test]
    fn the_order_of_elements_does_not_count_and_each_element_does() {
        let one = [elements_of(&[b"1", b"2"]), elements_of(&[b"3"])];
        assert!(same_parts(&one, &[elements_of(&[b"3", b"1", b"2"])]));
        assert!(!same_parts(&one, &[elements_of(&[b"1", b"2"])]));
        assert!(!same_parts(&one, &[elements_of(&[b"1", b"2", b"3", b"3"])]));
    }
}
