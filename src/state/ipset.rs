//! Parser and renderer of `ipset save`.

use std::collections::HashMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Family, lines};
use crate::error::Result;

/// Options of `create` that only lay out the kernel's memory, so their values differ after each
/// restore. Each option takes one value.
const LAYOUT: [&str; 3] = ["hashsize", "bucketsize", "initval"];

/// All ipsets, in the order of `ipset save`, in which a `list:set` comes after its members.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSets {
    /// The ipsets, each with its entries.
    pub sets: Vec<IpSet>,
}

/// One ipset with its entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSet {
    /// The ipset's name, which may hold any characters except blanks.
    pub name: String,
    /// The ipset's type: `hash:ip,port`, `bitmap:port`, `list:set`.
    pub kind: String,
    /// The ipset's address family; IPv4 for types that have none.
    pub family: Family,
    /// The options after the type in the `create` line, unchanged (`family inet hashsize 1024`).
    pub options: Vec<String>,
    /// The text after the ipset's name in each `add` line: the entry and its options
    /// (`10.0.0.1,tcp:80 timeout 7`).
    pub entries: Vec<String>,
}

impl IpSets {
    /// Parses the output of `ipset save`. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<IpSets> {
        let mut sets: Vec<IpSet> = Vec::new();
        let mut index = HashMap::new();
        for (number, line) in lines::numbered(file, text)? {
            let error = |cause: String| lines::error(file, number, cause);
            let mut words = line.splitn(3, ' ');
            let verb = words.next().unwrap_or_default();
            let (name, rest) = match (words.next(), words.next()) {
                (Some(name), Some(rest)) if !name.is_empty() && !rest.is_empty() => (name, rest),
                _ => return Err(error(format!("`{line}` is not a whole `create` or `add`"))),
            };
            match verb {
                "create" => {
                    if index.insert(name, sets.len()).is_some() {
                        return Err(error(format!("set {name} is created twice")));
                    }
                    sets.push(IpSet::created(name, rest).map_err(error)?);
                }
                "add" => match index.get(name) {
                    Some(&at) => sets[at].entries.push(rest.to_owned()),
                    None => return Err(error(format!("an entry of {name}, which is no set here"))),
                },
                _ => return Err(error(format!("`{verb}` is neither `create` nor `add`"))),
            }
        }
        Ok(IpSets { sets })
    }

    /// Renders the input of `ipset restore`, each ipset followed by its entries: the same bytes that
    /// were parsed, if they came in this order, as those of `ipset save` do.
    pub fn render(&self) -> String {
        self.sets.iter().map(IpSet::render).collect()
    }

    /// The ipset called `name`.
    pub fn get(&self, name: &str) -> Option<&IpSet> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// Entries and ipsets that are only in `after` (`+`) or only in `self` (`-`). Order, memory
    /// layout, counters and the seconds left of a timeout do not count. Whether an entry expires,
    /// and an ipset's default timeout, do count.
    pub fn differences(&self, after: &IpSets) -> Vec<String> {
        lines::differences(self.facts(), after.facts())
    }

    /// The ipsets as comparable lines: one for each ipset, and one for each of its entries.
    pub(super) fn facts(&self) -> Vec<String> {
        self.sets.iter().flat_map(IpSet::facts).collect()
    }
}

impl IpSet {
    fn created(name: &str, rest: &str) -> Result<IpSet, String> {
        let mut words = rest.split(' ').map(str::to_owned);
        let kind = words.next().unwrap_or_default();
        if !kind.contains(':') {
            return Err(format!("`{kind}` is no type of set"));
        }
        let options: Vec<String> = words.collect();
        let mut set =
            IpSet { name: name.to_owned(), kind, family: Family::Ipv4, options, entries: vec![] };
        set.family = match set.option("family") {
            None | Some("inet") => Family::Ipv4,
            Some("inet6") => Family::Ipv6,
            Some(other) => return Err(format!("set {name} has the unknown family `{other}`")),
        };
        Ok(set)
    }

    /// The value of an option of the `create` line, for example of `maxelem`.
    pub fn option(&self, name: &str) -> Option<&str> {
        let at = self.options.iter().position(|word| word == name)?;
        self.options.get(at + 1).map(String::as_str)
    }

    /// This ipset's lines in the format of `ipset save`.
    pub fn render(&self) -> String {
        let mut text = self.create_line();
        for entry in &self.entries {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "add {} {entry}", self.name);
        }
        text
    }

    fn create_line(&self) -> String {
        let mut line = format!("create {} {}", self.name, self.kind);
        for word in &self.options {
            line.push(' ');
            line.push_str(word);
        }
        line.push('\n');
        line
    }

    fn facts(&self) -> impl Iterator<Item = String> {
        let mut create = format!("ipset {} {} {}", self.name, self.kind, self.family);
        let mut words = self.options.iter().filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            if LAYOUT.contains(&word.as_str()) || word == "family" {
                words.next();
            } else {
                create.push(' ');
                create.push_str(word);
            }
        }
        let entries = self.entries.iter();
        std::iter::once(create)
            .chain(entries.map(|entry| format!("ipset {} entry {}", self.name, lasting(entry))))
    }
}

/// The entry without `packets N`, `bytes N` and the seconds of `timeout N`. `timeout 0`, which
/// means that the entry never expires, and anything inside a quoted comment stay.
fn lasting(entry: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut quoted = false;
    let mut words = entry.split(' ');
    while let Some(word) = words.next() {
        match word {
            "packets" | "bytes" if !quoted => {
                words.next();
            }
            "timeout" if !quoted => {
                kept.push(if words.next() == Some("0") { "timeout 0" } else { "timeout" });
            }
            _ => kept.push(word),
        }
        quoted ^= word.matches('"').count() % 2 == 1;
    }
    kept.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> IpSets {
        let sets = IpSets::parse("ipset.save", text).unwrap();
        assert_eq!(sets.render(), text);
        sets
    }

    #[test]
    fn odd_names_trailing_blanks_and_options_survive() {
        let sets = parse(
            "create weave-;^$[]!|~# hash:ip family inet6 hashsize 64 maxelem 65536 comment \n\
             add weave-;^$[]!|~# fd00::1 comment \"a timeout 5 b\"\n\
             create all list:set size 8\n\
             add all weave-;^$[]!|~#\n",
        );
        let odd = sets.get("weave-;^$[]!|~#").unwrap();
        assert_eq!((odd.family, odd.option("maxelem")), (Family::Ipv6, Some("65536")));
        assert_eq!(odd.entries, ["fd00::1 comment \"a timeout 5 b\""]);
        assert_eq!(sets.get("all").unwrap().family, Family::Ipv4);
        assert_eq!(sets.get("none"), None);
    }

    #[test]
    fn what_moves_by_itself_is_no_difference() {
        let before = parse(
            "create a hash:ip family inet hashsize 64 maxelem 9 timeout 60 counters initval 0x1\n\
             add a 10.0.0.1 timeout 55 packets 1 bytes 60\n\
             add a 10.0.0.2 timeout 0 packets 0 bytes 0\n\
             create b bitmap:port range 0-9\n",
        );
        let after = parse(
            "create b bitmap:port range 0-9\n\
             create a hash:ip family inet hashsize 128 maxelem 9 timeout 60 counters\n\
             add a 10.0.0.2 timeout 0 packets 7 bytes 420\n\
             add a 10.0.0.1 timeout 54 packets 2 bytes 120\n",
        );
        assert_eq!(before.differences(&after), Vec::<String>::new());
    }

    #[test]
    fn what_a_set_is_and_holds_is_a_difference() {
        let before = parse("create a hash:ip family inet maxelem 9\nadd a 10.0.0.1\n");
        for (after, expected) in [
            ("create a hash:ip family inet maxelem 9\n", "- ipset a entry 10.0.0.1"),
            (
                "create a hash:ip family inet maxelem 9\nadd a 10.0.0.1 timeout 5\n",
                "- ipset a entry 10.0.0.1",
            ),
            (
                "create a hash:net family inet maxelem 9\nadd a 10.0.0.1\n",
                "+ ipset a hash:net ipv4 maxelem 9",
            ),
            (
                "create a hash:ip family inet maxelem 8\nadd a 10.0.0.1\n",
                "+ ipset a hash:ip ipv4 maxelem 8",
            ),
            (
                "create a hash:ip family inet maxelem 9 comment\nadd a 10.0.0.1\n",
                "+ ipset a hash:ip ipv4 maxelem 9 comment",
            ),
            ("create a hash:ip family inet6 maxelem 9\n", "- ipset a hash:ip ipv4 maxelem 9"),
            (
                "create a hash:ip family inet maxelem 9 timeout 6\nadd a 10.0.0.1\n",
                "+ ipset a hash:ip ipv4 maxelem 9 timeout 6",
            ),
            ("", "- ipset a entry 10.0.0.1"),
        ] {
            let found = before.differences(&parse(after));
            assert!(found.contains(&expected.to_owned()), "{after}: {found:?}");
        }
        let (never, soon) = (
            parse("create a hash:ip timeout 6\nadd a 10.0.0.1 timeout 0\n"),
            parse("create a hash:ip timeout 6\nadd a 10.0.0.1 timeout 3\n"),
        );
        assert_eq!(never.differences(&soon).len(), 2);
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, expected) in [
            ("create a hash:ip\nadd b 10.0.0.1\n", "ipset.save:2: an entry of b, which is no set"),
            ("create a\n", "ipset.save:1: `create a` is not a whole"),
            ("create a hash:ip\nadd a\n", "ipset.save:2: `add a` is not a whole"),
            ("create a hash:ip\nadd a 10.0.0", "ipset.save:2: the last line is cut off"),
            ("create a hash\n", "ipset.save:1: `hash` is no type of set"),
            ("create a hash:ip\ncreate a hash:ip\n", "ipset.save:2: set a is created twice"),
            ("create a hash:ip family unix\n", "ipset.save:1: set a has the unknown family `unix`"),
            ("create a hash:ip\n\n", "ipset.save:2: `` is not a whole"),
            ("swap a b\n", "ipset.save:1: `swap` is neither"),
        ] {
            let error = IpSets::parse("ipset.save", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
