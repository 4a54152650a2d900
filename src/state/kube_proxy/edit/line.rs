//! One line of YAML, parsed just far enough to change one value in it and nothing else.

use std::ops::Range;

use crate::error::{Error, Kind};

/// The error for line `at` (from 0) of `file`, which cannot be edited.
pub(super) fn refused(file: &str, at: usize, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Parse, format!("{file}:{}", at + 1), cause)
        .hint("make this change by hand, or write the line in the plain form")
}

/// True for a line that is neither blank nor a comment.
pub(super) fn is_content(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}

/// The number of leading spaces.
pub(super) fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

/// The key that begins at the column `indent`, and the index after its colon.
pub(super) fn key(line: &str, indent: usize) -> Option<(&str, usize)> {
    let rest = line.get(indent..)?;
    let (key, end) = match rest.chars().next()? {
        quote @ ('"' | '\'') => {
            let close = 1 + rest[1..].find(quote)?;
            (&rest[1..close], close + 1)
        }
        _ => {
            let colon = rest.match_indices(':').map(|(i, _)| i);
            let end = colon
                .into_iter()
                .find(|i| matches!(rest[i + 1..].chars().next(), None | Some(' ')))?;
            (rest[..end].trim_end(), end)
        }
    };
    let after = &rest[end..];
    let colon = end + after.find(':').filter(|i| after[..*i].trim().is_empty())?;
    let start = indent + colon + 1;
    matches!(line[start..].chars().next(), None | Some(' ')).then_some((key, start))
}

/// The range of the value after the index `from`: a plain or quoted text within the line, or a list
/// in brackets. An empty range at `from` if the key has no value. `None` for any other YAML.
pub(super) fn value(line: &str, from: usize) -> Option<Range<usize>> {
    let rest = line.get(from..)?;
    let start = from + (rest.len() - rest.trim_start_matches(' ').len());
    let text = &line[start..];
    let end = match text.chars().next() {
        None => return Some(from..from),
        // In YAML, `#` begins a comment only after a space.
        Some('#') => return (start > from).then_some(from..from),
        Some(quote @ ('"' | '\'')) => {
            let inner = &text[1..];
            let close = inner.find(quote)?;
            if inner[..close].contains('\\') || inner[close + 1..].starts_with(quote) {
                return None;
            }
            start + close + 2
        }
        Some('[') => start + text.find(']')? + 1,
        Some('{') if text.starts_with("{}") => start + 2,
        Some('&' | '*' | '!' | '|' | '>' | '{' | '%' | '@' | '`' | '?' | ',' | ']' | '}') => {
            return None;
        }
        Some(_) => start + text.find(" #").map_or(text, |i| &text[..i]).trim_end().len(),
    };
    let beyond = &line[end..];
    let nothing = beyond.trim().is_empty();
    (nothing || (beyond.starts_with(' ') && beyond.trim_start().starts_with('#')))
        .then_some(start..end)
}

/// A YAML text without the quotes around it.
pub(super) fn unquoted(text: &str) -> &str {
    let within = |quote| text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote));
    within('"').or_else(|| within('\'')).unwrap_or(text)
}

/// `new` in the quotes that `old` has. `new` must have no quotes of its own.
pub(super) fn quoted_like(old: &str, new: &str) -> String {
    match old.chars().next() {
        Some(quote @ ('"' | '\'')) => format!("{quote}{new}{quote}"),
        _ => new.to_owned(),
    }
}

/// Replaces the value at `range` by `new`. Adds a space before `new` if the key had no value.
pub(super) fn put(line: &mut String, range: Range<usize>, new: &str) {
    let space = if range.is_empty() { " " } else { "" };
    line.replace_range(range, &format!("{space}{new}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_however_they_are_written() {
        for (line, at, expected) in [
            ("mode: ipvs", 0, Some(("mode", 5))),
            ("mode : ipvs", 0, Some(("mode", 6))),
            ("\"mode\": x", 0, Some(("mode", 7))),
            ("'mode' :", 0, Some(("mode", 8))),
            ("  mode:", 2, Some(("mode", 7))),
            ("mode:x", 0, None),
            ("\"mode\":x", 0, None),
            ("- mode", 0, None),
            ("", 0, None),
            ("a", 4, None),
        ] {
            assert_eq!(key(line, at), expected, "{line}");
        }
    }

    #[test]
    fn values_end_where_comments_begin() {
        for (line, expected) in [
            ("m: ipvs", Some("ipvs")),
            ("m:   a b  # c", Some("a b")),
            ("m: a#b", Some("a#b")),
            ("m: '' # c", Some("''")),
            ("m: \"a # b\"", Some("\"a # b\"")),
            ("m: [a, b] # c", Some("[a, b]")),
            ("m: {}", Some("{}")),
            ("m:", Some("")),
            ("m: # c", Some("")),
            ("m: \"a\\n\"", None),
            ("m: 'it''s'", None),
            ("m: 'a' b", None),
            ("m: 'a'#b", None),
            ("m: 'a", None),
            ("m: [a", None),
            ("m: {a: b}", None),
            ("m: &x a", None),
            ("m: *x", None),
            ("m: !!str a", None),
            ("m: |", None),
            ("m: >-", None),
        ] {
            assert_eq!(value(line, 2).map(|r| &line[r]), expected, "{line}");
        }
    }
}
