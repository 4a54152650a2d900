//! Export and import of snapshots, each as one `.tar.gz` archive.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use tar::{Archive, Builder, Entry, EntryType, Header};

use super::Store;
use super::disk::{self, LIMITS, SnapshotLimits, check_path, refused};
use super::manifest::{MANIFEST, Manifest};
use super::snapshots::{Reparse, Snapshot, files_of, read_verified};
use crate::error::{Error, Kind, Result};

/// Writes the snapshot in `dir` to the new file `to`, mode 0600. Every export of the same snapshot
/// gives the same bytes.
///
/// # Errors
/// [`Kind::SnapshotRefused`] for a snapshot that is damaged or has no manifest; [`Kind::Store`] on
/// a full disk; [`Kind::Usage`] if `to` exists. Leaves no partial file behind.
pub fn export(dir: &Path, to: &Path) -> Result<()> {
    let (tree, manifest) = read_verified(dir, LIMITS)?;
    let Some(manifest) = manifest else {
        return Err(refused(dir.display().to_string(), "without a manifest there is no snapshot"));
    };
    let io = |e: io::Error| Error::io(to, &e);
    let folder = match to.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let mut builder = Builder::new(GzEncoder::new(&mut file, Compression::default()));
    for (path, bytes) in &tree {
        let mut header = header(&manifest, bytes.len() as u64);
        let path = format!("{}/{path}", manifest.id);
        builder.append_data(&mut header, path, bytes.as_slice()).map_err(io)?;
    }
    builder.into_inner().and_then(GzEncoder::finish).map_err(io)?;
    file.flush().and_then(|()| file.as_file().sync_all()).map_err(io)?;
    file.persist_noclobber(to).map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::new(Kind::Usage, to.display().to_string(), "it exists already")
                .hint("name another file, or remove this one")
        }
        _ => io(e.error),
    })?;
    disk::sync_dir(folder)
}

/// The tar header of a file. The header names no owner, and its time is the snapshot's, so that it
/// is the same for everyone who exports the snapshot.
fn header(manifest: &Manifest, size: u64) -> Header {
    let time = manifest.time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second);
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(time).unwrap_or(0));
    header
}

impl Store {
    /// Imports the archive `from` into the store, after every check of [`Snapshot::load`] and then
    /// `reparse`. If the store already has the same snapshot, to the byte, the existing snapshot is
    /// returned.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] with the reason. Leaves nothing behind.
    pub fn import(&self, from: &Path, reparse: Reparse) -> Result<Snapshot> {
        self.import_within(from, reparse, LIMITS)
    }

    fn import_within(
        &self,
        from: &Path,
        reparse: Reparse,
        limits: SnapshotLimits,
    ) -> Result<Snapshot> {
        let file = File::open(from).map_err(|e| Error::io(from, &e))?;
        let temporary = self.temporary()?;
        let mut unpack = Unpack {
            archive: from.display().to_string(),
            root: temporary.path(),
            limits,
            entries: 0,
            top: None,
            files: BTreeSet::new(),
        };
        unpack.all(GzDecoder::new(io::BufReader::new(file)))?;

        let (tree, manifest) = read_verified(temporary.path(), limits).map_err(|e| {
            // The error names the archive in place of the unpacked directory, which no longer
            // exists when the error is read.
            let unpacked = temporary.path().display().to_string();
            Error { object: e.object.replace(&unpacked, &unpack.archive), ..e }
        })?;
        let Some(manifest) = manifest else {
            return Err(refused(from.display().to_string(), format!("it holds no {MANIFEST}")));
        };
        let dir = self.snapshots_dir().join(&manifest.id);
        if dir.exists() {
            if read_verified(&dir, LIMITS).is_ok_and(|(present, _)| present == tree) {
                return Ok(Snapshot { id: manifest.id, dir });
            }
            return Err(refused(&manifest.id, "the store holds another snapshot of this name")
                .hint("compare them with `proxyshift snapshot diff`, or use another --store DIR"));
        }
        reparse(&files_of(&unpack.archive, tree)?)?;
        disk::sync_dirs(temporary.path(), unpack.files.iter().map(String::as_str))?;
        self.keep(temporary, &manifest.id)
    }
}

/// Unpacks an untrusted archive into a directory.
struct Unpack<'a> {
    archive: String,
    root: &'a Path,
    limits: SnapshotLimits,
    entries: usize,
    /// The top directory of the first entry; every other entry must be in the same top directory.
    top: Option<String>,
    files: BTreeSet<String>,
}

impl Unpack<'_> {
    fn refused(&self, path: &str, cause: impl std::fmt::Display) -> Error {
        refused(format!("{}: {path}", self.archive), cause)
    }

    fn damaged(&self, error: &io::Error) -> Error {
        refused(&self.archive, format!("cannot be read: {error}"))
    }

    fn all(&mut self, stream: impl Read) -> Result<()> {
        // Limits how many bytes are unpacked, whatever sizes the archive claims. The limit is the
        // sum of the largest number of bytes of all files and, for each entry, a header and a
        // partial block.
        let most = self.limits.bytes + 1024 * self.limits.entries as u64 + 1024;
        let mut archive = Archive::new(Capped { inner: stream, left: most });
        let entries = archive.entries().map_err(|e| self.damaged(&e))?;
        for entry in entries {
            let entry = entry.map_err(|e| self.damaged(&e))?;
            self.entries += 1;
            if self.entries > self.limits.entries {
                let most = self.limits.entries;
                return Err(refused(&self.archive, format!("it holds more than {most} files")));
            }
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, mut entry: Entry<impl Read>) -> Result<()> {
        let name = entry.path_bytes().into_owned();
        let Ok(name) = String::from_utf8(name) else {
            return Err(self.refused("an entry", "its name is not UTF-8"));
        };
        let is_dir = match entry.header().entry_type() {
            EntryType::Regular => false,
            EntryType::Directory => true,
            other => {
                return Err(self.refused(&name, format!("neither file nor directory: {other:?}")));
            }
        };
        let path = if is_dir { name.strip_suffix('/').unwrap_or(&name) } else { name.as_str() };
        check_path(path).map_err(|why| self.refused(&name, why))?;
        let (top, rest) = path.split_once('/').unwrap_or((path, ""));
        if self.top.get_or_insert_with(|| top.to_owned()) != top {
            return Err(self.refused(&name, "not in the directory of the first entry"));
        }
        if is_dir {
            return Ok(());
        }
        if rest.is_empty() {
            return Err(self.refused(&name, "a file outside of any directory"));
        }
        if !self.files.insert(rest.to_owned()) {
            return Err(self.refused(&name, "it is in the archive twice"));
        }
        let target = self.root.join(rest);
        target.parent().map_or(Ok(()), disk::make_dirs)?;
        self.copy(&mut entry, &target)
    }

    fn copy(&self, entry: &mut impl Read, target: &PathBuf) -> Result<()> {
        let io = |e: io::Error| Error::io(target, &e);
        let mut file = disk::create_new(target)?;
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = entry.read(&mut buffer).map_err(|e| self.damaged(&e))?;
            if n == 0 {
                return file.sync_all().map_err(io);
            }
            file.write_all(&buffer[..n]).map_err(io)?;
        }
    }
}

/// A reader that fails once it has read more than `left` bytes.
struct Capped<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("it unpacks to more than a snapshot may hold"))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Imports an archive that holds one file of `size` zeros, into a store with a limit of 64 KiB.
    fn import(size: usize) -> Error {
        let tmp = tempfile::tempdir().unwrap();
        let store = Store::open(Some(&tmp.path().join("store"))).unwrap();
        let path = tmp.path().join("bomb.tar.gz");
        let mut builder =
            Builder::new(GzEncoder::new(File::create(&path).unwrap(), Compression::best()));
        let mut header = Header::new_gnu();
        header.set_size(size as u64);
        builder.append_data(&mut header, "s/zeros", vec![0; size].as_slice()).unwrap();
        builder.into_inner().unwrap().finish().unwrap();
        assert!(path.metadata().unwrap().len() < 64 * 1024);

        let limits = SnapshotLimits { entries: 4, bytes: 64 * 1024 };
        let error = store.import_within(&path, &|_| Ok(()), limits).unwrap_err();
        assert_eq!(error.kind, Kind::SnapshotRefused);
        assert_eq!(store.snapshots_dir().read_dir().unwrap().count(), 0);
        error
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let error = import(16 << 20);
        assert!(error.cause.contains("unpacks to more"), "{error}");
        let error = import(60 * 1024);
        assert!(error.cause.contains("holds no manifest"), "{error}");
    }

    #[test]
    fn nothing_is_read_past_the_cap() {
        let mut capped = Capped { inner: io::repeat(0), left: 1000 };
        let mut unpacked = Vec::new();
        capped.read_to_end(&mut unpacked).unwrap_err();
        assert!(unpacked.len() <= 1000, "{}", unpacked.len());
    }
}
