//! Connection tracking: the parser of `/proc/net/stat/nf_conntrack`, and what an entry is.

mod entry;

use std::collections::BTreeMap;

use super::lines;
use crate::error::Result;

pub use entry::ConntrackEntry;

/// The kernel's counters of connection tracking since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConntrackStat {
    /// Each column summed over the CPUs, keyed by its name. Only `entries` is not a sum, because
    /// every CPU's line has the number of entries of the whole table.
    pub counters: BTreeMap<String, u64>,
}

impl ConntrackStat {
    /// Parses a heading with the counters' names, then a line of hexadecimal numbers for each CPU.
    /// The columns differ between kernels. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<ConntrackStat> {
        let mut lines = lines::numbered(file, text)?.into_iter();
        let names: Vec<&str> = match lines.next() {
            Some((_, heading)) if heading.split_whitespace().next() == Some("entries") => {
                heading.split_whitespace().collect()
            }
            _ => return Err(lines::error(file, 1, "no heading that begins with `entries`")),
        };
        let mut counters: BTreeMap<String, u64> =
            names.iter().map(|name| ((*name).to_owned(), 0)).collect();
        for (number, line) in lines {
            let values: Vec<&str> = line.split_whitespace().collect();
            if values.len() != names.len() {
                let cause = format!("{} numbers under {} names", values.len(), names.len());
                return Err(lines::error(file, number, cause));
            }
            for (name, word) in names.iter().zip(values) {
                let value = u64::from_str_radix(word, 16).map_err(|_| {
                    lines::error(file, number, format!("`{word}` is no hexadecimal number"))
                })?;
                if let Some(sum) = counters.get_mut(*name) {
                    *sum = if *name == "entries" { value } else { sum.saturating_add(value) };
                }
            }
        }
        Ok(ConntrackStat { counters })
    }

    /// The counter `name`; none if this kernel does not have it.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.counters.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_summed_by_name() {
        let text = "entries  searched found new invalid drop\n\
            0000000a 00000000 00000001 00000000 000000ff 00000000\n\
            0000000a 00000000 00000002 00000000 00000001 00000000\n";
        let stat = ConntrackStat::parse("nf_conntrack.stat", text).unwrap();
        assert_eq!(stat.get("entries"), Some(10));
        assert_eq!((stat.get("found"), stat.get("invalid")), (Some(3), Some(256)));
        assert_eq!(stat.get("clashres"), None);
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, expected) in [
            ("", "stat:1: no heading"),
            ("00000001 00000002\n", "stat:1: no heading"),
            ("entriesfound drop\n00000001 00000002\n", "stat:1: no heading"),
            ("entries drop\n00000001\n", "stat:2: 1 numbers under 2 names"),
            ("entries drop\n00000001 0000000g\n", "stat:2: `0000000g` is no hexadecimal"),
            ("entries drop\n00000001 000", "stat:2: the last line is cut off"),
        ] {
            let error = ConntrackStat::parse("stat", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
