//! The folder of a run: in the store and, while the run is pending, a copy of it in memory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The two places of a run's files.
#[derive(Debug, Clone)]
pub struct RunFolder {
    disk: PathBuf,
    memory: Option<PathBuf>,
}

impl RunFolder {
    /// The folder `disk` of the store, and its copy `memory`, if there is one.
    pub fn new(disk: PathBuf, memory: Option<PathBuf>) -> RunFolder {
        RunFolder { disk, memory }
    }

    /// The folder in the store.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The folder of the copy in memory; none without a copy.
    pub fn memory(&self) -> Option<&Path> {
        self.memory.as_deref()
    }

    /// Whether the folder has a file of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.memory.iter().chain([&self.disk]).any(|dir| dir.join(name).exists())
    }

    /// Reads a file of the folder: the copy in memory, if it is there.
    ///
    /// # Errors
    /// The system's error of reading the file in the store.
    pub fn read(&self, name: &str) -> Result<String> {
        let copy = self.memory.as_ref().and_then(|dir| fs::read_to_string(dir.join(name)).ok());
        let path = self.disk.join(name);
        copy.map_or_else(|| fs::read_to_string(&path).map_err(|e| Error::io(&path, &e)), Ok)
    }

    /// Writes a file of the folder, readable by its owner alone. The write is atomic, and synced
    /// when this returns.
    ///
    /// # Errors
    /// The system's error of writing to the store. A copy in memory that cannot be written is done
    /// without.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        write(&self.disk, name, text).map_err(|e| Error::io(self.disk.join(name), &e))?;
        if let Some(dir) = &self.memory
            && write(dir, name, text).is_err()
        {
            let _ = fs::remove_file(dir.join(name));
        }
        Ok(())
    }
}

/// Writes a file with mode 0600.
fn write(dir: &Path, name: &str, text: &str) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}
