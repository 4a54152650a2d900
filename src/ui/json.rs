//! JSON whose text is safe on a terminal: hidden characters are written as `\u009b`, which is the
//! same value.

use std::io::{self, Write};

use crate::visible::is_hidden;

/// Writes `document` on several lines, and ends the last one. It is written in pieces, because a
/// plan may be large.
///
/// # Errors
/// When `out` cannot be written.
pub fn write(out: impl Write, document: &impl serde::Serialize) -> io::Result<()> {
    let mut out = Escaping(io::BufWriter::new(out));
    serde_json::to_writer_pretty(&mut out, document)?;
    out.0.write_all(b"\n")?;
    out.0.flush()
}

/// Writes `document` as one line.
///
/// # Errors
/// When `out` cannot be written.
pub fn write_line(out: impl Write, document: &impl serde::Serialize) -> io::Result<()> {
    let mut out = Escaping(io::BufWriter::new(out));
    serde_json::to_writer(&mut out, document)?;
    out.0.write_all(b"\n")?;
    out.0.flush()
}

/// Passes on what serde_json writes, with hidden characters escaped. serde_json escapes C0 itself,
/// and lays the document out with newlines. All others are inside of strings, where an escape means
/// the same.
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    /// serde_json never splits a character: it writes its text in pieces of `str`.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = str::from_utf8(bytes).map_err(io::Error::other)?;
        let mut rest = text;
        while let Some(at) = rest.find(|c| c != '\n' && is_hidden(c)) {
            let (before, hidden) = rest.split_at(at);
            self.0.write_all(before.as_bytes())?;
            let mut chars = hidden.chars();
            for unit in chars.next().unwrap_or_default().encode_utf16(&mut [0; 2]) {
                write!(self.0, "\\u{unit:04x}")?;
            }
            rest = chars.as_str();
        }
        self.0.write_all(rest.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_is_the_same() {
        let given = serde_json::json!({
            "\u{9b}key\u{7f}": ["\u{1b}]0;x\u{7}", "a\nb", "\u{202e}", "\u{e0041}", "süß 🦀"]
        });
        let (mut lines, mut line) = (Vec::new(), Vec::new());
        write(&mut lines, &given).unwrap();
        write_line(&mut line, &given).unwrap();
        for out in [lines, line] {
            let text = String::from_utf8(out).unwrap();
            assert!(!text.contains(|c| c != '\n' && is_hidden(c)), "{text}");
            assert!(text.contains(r"\u009bkey\u007f") && text.contains(r"\udb40\udc41"), "{text}");
            assert!(text.contains("süß 🦀"), "{text}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), given);
        }
    }
}
