//! Export and import of snapshots, each as one `.tar.gz` archive.

use std::io::{self, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::Store;
use super::bundle;
use super::disk::{self, LIMITS, SnapshotLimits, refused};
use super::imported::{CONTENT, Imported};
use super::manifest::{MANIFEST, Manifest};
use super::snapshots::{
    OwnFiles, Reparse, Snapshot, files_of, is_captured, read_verified, verified, write_verified,
};
use super::unpack::unpack_file;
use crate::error::{Error, Kind, Result};
use crate::state::Files;

/// Writes the snapshot in `dir` to the new file `to`, mode 0600. Every export of the same snapshot
/// gives the same bytes.
///
/// # Errors
/// [`Kind::SnapshotRefused`] for a snapshot that is damaged or has no manifest; the errors of
/// [`write()`].
pub fn export(dir: &Path, to: &Path) -> Result<()> {
    let (tree, manifest) = read_verified(dir, LIMITS)?;
    let Some(manifest) = manifest else {
        return Err(refused(dir.display().to_string(), "without a manifest there is no snapshot"));
    };
    let files = tree.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice()));
    write(to, &manifest.id, &manifest.time, files)
}

/// Writes `files`, by their paths below the folder `top`, to the new archive `to`, mode 0600. Each has
/// the time `time` and no owner, so that the archive is the same whoever writes it.
///
/// # Errors
/// [`Kind::Store`] on a full disk; [`Kind::Usage`] if `to` exists. Leaves no partial file behind.
pub fn write<'a>(
    to: &Path,
    top: &str,
    time: &str,
    files: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<()> {
    let io = |e: io::Error| {
        let error = Error::io(to, &e);
        match error.kind {
            Kind::Store => error.hint("free some room there, or name a file on another disk"),
            _ => error,
        }
    };
    let folder = match to.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
    let mut builder = Builder::new(GzEncoder::new(&mut file, Compression::default()));
    for (path, bytes) in files {
        let mut header = header(time, bytes.len() as u64);
        builder.append_data(&mut header, format!("{top}/{path}"), bytes).map_err(io)?;
    }
    builder.into_inner().and_then(GzEncoder::finish).map_err(io)?;
    file.flush().and_then(|()| file.as_file().sync_all()).map_err(io)?;
    file.persist_noclobber(to).map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => exists(to),
        _ => io(e.error),
    })?;
    disk::sync_dir(folder)
}

/// Fails if there is something at `to`, before any work is done for it.
///
/// # Errors
/// [`Kind::Usage`].
pub fn is_new(to: &Path) -> Result<()> {
    if to.symlink_metadata().is_ok() { Err(exists(to)) } else { Ok(()) }
}

fn exists(to: &Path) -> Error {
    Error::new(Kind::Usage, to.display().to_string(), "it exists already")
        .hint("name another file, or remove this one")
}

/// The tar header of a file.
fn header(time: &str, size: u64) -> Header {
    let time = time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second);
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(u64::try_from(time).unwrap_or(0));
    header
}

impl Store {
    /// Imports the archive `from` into the store, after every check of [`Snapshot::load`] and then
    /// `reparse`. If the store already has the same snapshot, the existing snapshot is returned.
    ///
    /// Only the manifest and the captured files are taken. `restore.sh`, which root may run, is
    /// written anew, and `SHA256SUMS` with it; files that no capture makes are left out. The
    /// snapshot is kept apart from those that were taken here, with a mark of where it came from.
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
        let archive = from.display().to_string();
        let mut tree = unpack_file(from, limits)?;
        let Some(manifest) = verified(&archive, &tree)? else {
            let error = refused(archive, format!("it holds no {MANIFEST}"));
            return Err(if bundle::is_bundle(&tree) {
                error.hint("it is for a report of a bug: read it with `--snapshot ./FILE`")
            } else {
                error
            });
        };
        manifest.check_form(&format!("{archive}/{MANIFEST}"))?;
        let json = tree.remove(MANIFEST).unwrap_or_default();
        tree.retain(|path, _| is_captured(path));
        let files = files_of(&archive, tree)?;
        if let Some(present) = self.present(&manifest, &json, &files)? {
            return Ok(present);
        }
        reparse(&files)?;
        let size: usize = files.values().map(|text| text.len()).sum();
        self.room_for(size as u64 + (1 << 20))?;

        let own = OwnFiles { manifest: json, script: super::restore::render(&manifest) };
        self.make_imported_dir()?;
        let temporary = disk::temporary_dir(&self.imported_dir())?;
        write_verified(&temporary.path().join(CONTENT), &manifest.id, &files, &own)?;
        Imported::now(from).write(temporary.path())?;
        self.keep_imported(temporary, &manifest.id)
    }

    /// The snapshot of this manifest and these files, if the store has it.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] if it has another one of this name.
    fn present(&self, manifest: &Manifest, json: &[u8], files: &Files) -> Result<Option<Snapshot>> {
        let id = &manifest.id;
        let imported = self.imports()?.into_iter().find(|snapshot| snapshot.id == *id);
        let Some(present) = self.own(id)?.or(imported) else { return Ok(None) };
        let same = read_verified(&present.dir, LIMITS).is_ok_and(|(tree, _)| {
            tree.get(MANIFEST).is_some_and(|present| *present == json)
                && files_of(id, tree).is_ok_and(|present| present == *files)
        });
        if same {
            return Ok(Some(present));
        }
        Err(refused(id, "the store holds another snapshot of this name")
            .hint("compare them with `proxyshift snapshot diff`, or use another --store DIR"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

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
        assert!(!store.imported_dir().exists());
        error
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let error = import(16 << 20);
        assert!(error.cause.contains("unpacks to more"), "{error}");
        let error = import(60 * 1024);
        assert!(error.cause.contains("holds no manifest"), "{error}");
    }
}
