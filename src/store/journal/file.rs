//! One file with the lines of a journal, open for appending.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;

use super::JournalEntry;
use super::read::lines_after;
use crate::error::{Error, Kind, Result};
use crate::store::chain::{self, JournalChain};
use crate::store::disk;

/// A file with the lines of a journal: on the disk, or the copy in memory.
#[derive(Debug)]
pub(super) struct JournalFile {
    path: PathBuf,
    file: File,
    /// The offset at which the next line begins.
    end: u64,
}

impl JournalFile {
    /// Creates the file, and reserves `reserve` bytes of space for it.
    pub(super) fn create(path: &Path, reserve: u64) -> Result<JournalFile> {
        let file = disk::create_new(path)?;
        if reserve > 0 {
            disk::reserve(&file, path, reserve)?;
        }
        file.sync_all().map_err(|e| Error::io(path, &e))?;
        Ok(JournalFile { path: path.to_owned(), file, end: 0 })
    }

    /// Opens the file, which holds `lines` or the first of them, and appends those that it lacks.
    pub(super) fn continued(path: &Path, lines: &[u8]) -> Result<JournalFile> {
        let io = |e: io::Error| Error::io(path, &e);
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = options.open(path).map_err(io)?;
        let (end, missing) = match chain::end_of(path) {
            // Without one whole line, it holds nothing of worth.
            None => file.set_len(0).map(|()| (0, lines)).map_err(io)?,
            Some(end) => {
                let missing = lines_after(lines, &end).ok_or_else(|| {
                    Error::new(Kind::Store, path.display().to_string(), "is not as it was written")
                })?;
                (end.bytes, missing)
            }
        };
        let mut at = At { file: &file, end };
        if !missing.is_empty() {
            at.write_all(missing).and_then(|()| file.sync_data()).map_err(io)?;
        }
        let end = at.end;
        Ok(JournalFile { path: path.to_owned(), file, end })
    }

    /// Appends one line with its checksum, and syncs it. `chain` is that of the line before; returns
    /// that of this line.
    ///
    /// What was written of a line that failed is overwritten by the next line.
    pub(super) fn append<P: Serialize>(
        &mut self,
        entry: &JournalEntry<P>,
        chain: &JournalChain,
    ) -> Result<JournalChain> {
        let io = |e: io::Error| Error::io(&self.path, &e);
        let length = self.file.metadata().map_err(io)?.len();
        // The line is written in pieces, because a change may be as large as the node's state.
        let mut line = BufWriter::with_capacity(1 << 16, At { file: &self.file, end: self.end });
        let mut hashing = chain.hashing(&mut line);
        serde_json::to_writer(&mut hashing, entry).map_err(|e| io(e.into()))?;
        let sum = hashing.sum();
        line.flush().map_err(io)?;
        // The checksum takes the place of the last brace.
        line.get_mut().end -= 1;
        let mut chain = chain.clone();
        line.write_all(chain.advance(sum).as_bytes()).and_then(|()| line.flush()).map_err(io)?;
        // A torn line is overwritten and not truncated, because truncating would give up the
        // reserved space. The rest of the torn line is overwritten with spaces, which mean nothing
        // at the end of a JSON line.
        let covered = line.get_ref().end + 1;
        let torn = usize::try_from(length.saturating_sub(covered)).unwrap_or(0);
        line.write_all(&b" ".repeat(torn)).map_err(io)?;
        line.write_all(b"\n").and_then(|()| line.flush()).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        let end = line.get_ref().end;
        drop(line);
        self.end = end;
        Ok(chain)
    }
}

/// Writes to a file from the offset `end` on, which moves with each write.
struct At<'a> {
    file: &'a File,
    end: u64,
}

impl Write for At<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(bytes, self.end)?;
        self.end += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
