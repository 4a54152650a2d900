//! The checksums of a journal's lines. Each covers its line and the checksum of the line before, so
//! that a line which is damaged, missing, or in another place is found. SHA-256 and no CRC: a
//! journal may hold as much as a node, and the last checksum, which `run.json` repeats, then stands
//! for exactly one journal. It guards against accidents, not against root, who can write all anew.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::disk::{name_of, open_safely};
use super::manifest::hex;
use super::run::JournalEnd;

/// What stands before the checksum at the end of a line, which is JSON.
const BEFORE: &str = ",\"sum\":\"";
/// What stands behind it.
const BEHIND: &str = "\"}";
/// The length of a checksum.
const LENGTH: usize = 64;
/// The length of the end of a line.
const SUFFIX: usize = BEFORE.len() + LENGTH + BEHIND.len();

/// The checksum of the last line so far.
#[derive(Debug, Clone)]
pub(super) struct JournalChain(String);

impl JournalChain {
    /// The start of the chain, which differs from run to run.
    pub(super) fn of_run(dir: &Path) -> JournalChain {
        JournalChain(name_of(dir))
    }

    /// A writer to `to` that computes the checksum of the next line.
    pub(super) fn hashing<W: Write>(&self, to: W) -> Hashing<W> {
        Hashing { to, sum: Sha256::new_with_prefix(&self.0) }
    }

    /// Goes on to the line with this sum. Returns the end of the line in place of its last brace.
    pub(super) fn advance(&mut self, sum: String) -> String {
        self.0 = sum;
        format!("{BEFORE}{}{BEHIND}", self.0)
    }

    /// Goes on to `line`, if its checksum is right. Behind its end are only spaces.
    pub(super) fn follows(&mut self, line: &[u8]) -> bool {
        let line = line.trim_ascii_end();
        let Some((text, sum)) = split(line) else { return false };
        let mut right = Sha256::new_with_prefix(&self.0);
        right.update(text);
        right.update(b"}");
        let is_right = hex(&right.finalize()) == sum;
        if is_right {
            sum.clone_into(&mut self.0);
        }
        is_right
    }

    /// Whether the last line is the one that `end` names.
    pub(super) fn is_at(&self, end: &JournalEnd) -> bool {
        self.0 == end.sum
    }
}

/// The checksum that `line` has; none if it has none.
pub(super) fn sum_of(line: &[u8]) -> Option<&str> {
    split(line.trim_ascii_end()).map(|(_, sum)| sum)
}

/// The text of a line before the end that has its checksum, and the checksum.
fn split(line: &[u8]) -> Option<(&[u8], &str)> {
    let (text, end) = line.split_at_checked(line.len().checked_sub(SUFFIX)?)?;
    let sum = str::from_utf8(end).ok()?.strip_prefix(BEFORE)?.strip_suffix(BEHIND)?;
    Some((text, sum))
}

/// Passes on what is written, and computes its checksum.
pub(super) struct Hashing<W> {
    to: W,
    sum: Sha256,
}

impl<W> Hashing<W> {
    /// The checksum of all that was written.
    pub(super) fn sum(self) -> String {
        hex(&self.sum.finalize())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The end of the last whole line of the journal at `path`; none without one. Only the end of the
/// file is read, because the journal may be large.
pub(super) fn end_of(path: &Path) -> Option<JournalEnd> {
    let file = open_safely(path).ok()?;
    let length = file.metadata().ok()?.len();
    let bytes = last(&file, length, |byte| byte == b'\n')?;
    let text = last(&file, bytes.checked_sub(1)?, |byte| byte != b' ')?;
    let mut end = [0; SUFFIX];
    file.read_exact_at(&mut end, text.checked_sub(SUFFIX as u64)?).ok()?;
    let (_, sum) = split(&end)?;
    Some(JournalEnd { bytes, sum: sum.to_owned() })
}

/// The offset behind the last byte before `end` that is `wanted`.
fn last(file: &File, mut end: u64, wanted: impl Fn(u8) -> bool) -> Option<u64> {
    let mut piece = [0; 4096];
    while end > 0 {
        let begin = end.saturating_sub(piece.len() as u64);
        let piece = &mut piece[..usize::try_from(end - begin).ok()?];
        file.read_exact_at(piece, begin).ok()?;
        if let Some(at) = piece.iter().rposition(|byte| wanted(*byte)) {
            return Some(begin + at as u64 + 1);
        }
        end = begin;
    }
    None
}
