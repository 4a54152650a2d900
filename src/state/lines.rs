//! Functions that the parsers share: numbered lines and their errors, lists of networks, and the
//! differences between two lists of facts.

use std::cmp::Ordering;
use std::fmt;

use ipnet::IpNet;

use crate::error::{Error, Kind, Result};

/// A parse error in line `number` (from 1) of `file`. The error's object reads `ipset.save:12`.
pub(super) fn error(file: &str, number: usize, cause: impl fmt::Display) -> Error {
    Error::new(Kind::Parse, format!("{file}:{number}"), cause)
}

/// The lines of `text` with their numbers, from 1. Refuses a text that has carriage returns, which
/// show that it was rewritten, and a text that has no final newline, which shows that it was cut
/// off.
pub(super) fn numbered<'a>(file: &str, text: &'a str) -> Result<Vec<(usize, &'a str)>> {
    let lines: Vec<_> = text.lines().enumerate().map(|(at, line)| (at + 1, line)).collect();
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(error(file, lines.len(), "the last line is cut off: it has no newline"));
    }
    if let Some(at) = text.find('\r') {
        let number = text[..at].matches('\n').count() + 1;
        return Err(error(file, number, "a carriage return: the file was rewritten on its way"));
    }
    Ok(lines)
}

/// Parses comma-separated networks, and masks their host bits.
pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let net = |part: &str| part.parse().map_err(|_| format!("`{part}` is no network"));
    parts.map(|part| net(part).map(|net: IpNet| net.trunc())).collect()
}

/// The differences between two lists of facts, whose order does not count: `- fact` is only in
/// `before`, `+ fact` is only in `after`. Sorted by fact, so that the old and the new side of a
/// change are adjacent.
pub(super) fn differences(mut before: Vec<String>, mut after: Vec<String>) -> Vec<String> {
    before.sort_unstable();
    after.sort_unstable();
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    let mut found = Vec::new();
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return found,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(b), Some(a)) => b.cmp(a),
        };
        if order.is_le()
            && let Some(gone) = before.next()
            && order.is_ne()
        {
            found.push(format!("- {gone}"));
        }
        if order.is_ge()
            && let Some(new) = after.next()
            && order.is_ne()
        {
            found.push(format!("+ {new}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn differences_are_those_of_multisets() {
        assert!(differences(facts(&["b", "a"]), facts(&["a", "b"])).is_empty());
        assert_eq!(
            differences(facts(&["a", "a", "c"]), facts(&["d", "a", "b"])),
            ["- a", "+ b", "- c", "+ d"]
        );
    }

    #[test]
    fn cut_off_and_rewritten_texts_are_refused_by_line() {
        assert_eq!(numbered("f", "a\nb").unwrap_err().to_string().split(' ').next(), Some("f:2:"));
        assert!(numbered("f", "a\r\n").unwrap_err().to_string().starts_with("f:1: a carriage"));
        assert_eq!(numbered("f", "a\n\n").unwrap(), [(1, "a"), (2, "")]);
        assert!(numbered("f", "").unwrap().is_empty());
    }
}
