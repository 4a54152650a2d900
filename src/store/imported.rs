//! Snapshots that were imported. They are in a folder of their own, each beside a mark that says
//! where it came from, so nothing in an archive can make a snapshot look like one that was taken
//! here.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::IMPORTED;
use super::disk;
use crate::clock;
use crate::error::{Error, Kind, Result};

/// The names in the folder of an imported snapshot: the mark, and the snapshot itself.
const MARK: &str = "imported.json";
pub(super) const CONTENT: &str = "snapshot";

/// The version of the format of the mark.
const VERSION: u32 = 1;

/// Where a snapshot came from that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The path of the archive.
    pub from: String,
    /// When it was imported: `2026-11-21T20:15:02Z`.
    pub when: String,
}

/// The content of the mark.
#[derive(Serialize, Deserialize)]
struct ImportMark {
    v: u32,
    #[serde(flatten)]
    imported: Imported,
}

impl Imported {
    /// A mark of now, for what the archive `from` held.
    pub(super) fn now(from: &Path) -> Imported {
        let from = std::path::absolute(from).unwrap_or_else(|_| from.to_owned());
        Imported { from: from.display().to_string(), when: clock::now() }
    }

    /// Writes the mark into the folder `dir`.
    pub(super) fn write(self, dir: &Path) -> Result<()> {
        let json = serde_json::to_vec(&ImportMark { v: VERSION, imported: self })
            .map_err(|e| Error::new(Kind::Unexpected, MARK, e))?;
        disk::write_new(&dir.join(MARK), &json)
    }

    /// The mark of the snapshot in `dir`, if imported snapshots lie there. What the mark does not
    /// say is empty.
    pub(super) fn of(dir: &Path) -> Option<Imported> {
        let folder = dir.parent().filter(|_| dir.ends_with(CONTENT))?;
        if !folder.parent()?.ends_with(IMPORTED) {
            return None;
        }
        let mark = disk::read_file(&folder.join(MARK)).ok();
        let mark = mark.and_then(|json| serde_json::from_slice::<ImportMark>(&json).ok());
        let unknown = || Imported { from: String::new(), when: String::new() };
        Some(mark.map_or_else(unknown, |mark| mark.imported))
    }
}
