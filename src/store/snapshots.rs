//! The snapshots in the store: create, read, find and prune.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::{self, LIMITS, SnapshotLimits, Tree, check_path, refused};
use super::manifest::{self, MANIFEST, Manifest, RESTORE, SHA256SUMS};
use super::{Store, entries, restore};
use crate::error::{Error, Kind, Result};
use crate::state::Files;

/// The files in a snapshot's directory that the store makes, and that are no captured files of the
/// node.
const OWN_FILES: [&str; 3] = [MANIFEST, SHA256SUMS, RESTORE];

/// The age from which a half-made directory counts as abandoned, and may be removed.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A function that parses the files of a node state to validate them. The store itself has no
/// parsers.
pub type Reparse<'a> = &'a dyn Fn(&Files) -> Result<()>;

/// The identifier and directory of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The identifier of the snapshot, which is the name of its directory.
    pub id: String,
    /// The path of the snapshot's directory.
    pub dir: PathBuf,
}

/// The content of a snapshot's directory.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The snapshot's manifest; none if the directory has only captured files.
    pub manifest: Option<Manifest>,
    /// The captured files of the node.
    pub files: Files,
}

/// One snapshot in the list of snapshots.
#[derive(Debug)]
pub struct ListedSnapshot {
    /// The identifier and directory of the listed snapshot.
    pub snapshot: Snapshot,
    /// The snapshot's manifest, or the error of reading it. The other files of the snapshot are not
    /// read.
    pub manifest: Result<Manifest>,
}

impl Snapshot {
    /// Reads all files of the directory `dir`, and checks the format and the checksums if it has a
    /// manifest. Without a manifest, the directory is a capture that no rollback can use.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] with the reason; [`Kind::NotFound`] if `dir` does not exist.
    pub fn load(dir: &Path) -> Result<Loaded> {
        let (tree, manifest) = read_verified(dir, LIMITS)?;
        let files = files_of(&dir.display().to_string(), tree)?;
        Ok(Loaded { manifest, files })
    }
}

impl Loaded {
    /// The snapshot's manifest, without which a rollback is refused.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] if the directory has no manifest.
    pub fn for_rollback(&self) -> Result<&Manifest> {
        self.manifest.as_ref().ok_or_else(|| {
            refused(MANIFEST, "missing: where and when this was captured is not known")
        })
    }
}

/// Reads a snapshot's directory and its manifest, and checks the limits, the format and the
/// checksums. Does not parse the captured files.
pub(super) fn read_verified(
    dir: &Path,
    limits: SnapshotLimits,
) -> Result<(Tree, Option<Manifest>)> {
    let name = dir.display().to_string();
    let tree = disk::read_tree(dir, limits)?;
    let Some(json) = tree.get(MANIFEST) else {
        if tree.contains_key(SHA256SUMS) {
            return Err(refused(format!("{name}/{MANIFEST}"), "missing"));
        }
        return Ok((tree, None));
    };
    let object = format!("{name}/{MANIFEST}");
    // The format is checked first, because a later format may have other checksums.
    manifest::check_format(&object, json)?;
    manifest::verify_checksums(&name, &tree)?;
    let manifest = Manifest::parse(&object, json)?;
    Ok((tree, Some(manifest)))
}

/// The captured files of a snapshot's directory as text, without the files that the store makes.
pub(super) fn files_of(dir: &str, tree: Tree) -> Result<Files> {
    tree.into_iter()
        .filter(|(path, _)| !OWN_FILES.contains(&path.as_str()))
        .map(|(path, bytes)| match String::from_utf8(bytes) {
            Ok(text) => Ok((path, text.into())),
            Err(_) => Err(refused(format!("{dir}/{path}"), "it is not UTF-8")),
        })
        .collect()
}

impl Store {
    /// Writes a snapshot of `files`, reads it back from the disk, validates it with `reparse`, and
    /// only then names the directory after the snapshot. So every snapshot in the list is valid.
    ///
    /// # Errors
    /// [`Kind::Store`] if the disk lacks the space; the error of `reparse`. Leaves nothing behind.
    pub fn create(
        &self,
        files: &Files,
        mut manifest: Manifest,
        reparse: Reparse,
    ) -> Result<Snapshot> {
        for path in files.keys() {
            let own = OWN_FILES.contains(&path.as_str()).then_some("a name of the store's own");
            if let Some(why) = check_path(path).err().or(own) {
                return Err(Error::new(Kind::Store, path, format!("cannot be kept: {why}")));
            }
        }
        let size: usize = files.values().map(|text| text.len()).sum();
        self.room_for(size as u64 + (1 << 20))?;

        manifest.backends = manifest::backends_of(files);
        let script = restore::render(&manifest);
        let json = manifest.to_json()?;
        // The tree borrows the files instead of copying them, because they may be large.
        let mut tree: BTreeMap<&str, &[u8]> =
            files.iter().map(|(path, text)| (path.as_str(), text.as_bytes())).collect();
        tree.insert(RESTORE, script.as_bytes());
        tree.insert(MANIFEST, &json);
        let sums = manifest::checksums(&tree);
        tree.insert(SHA256SUMS, sums.as_bytes());

        let temporary = self.temporary()?;
        write_tree(temporary.path(), &tree)?;
        for (path, bytes) in &tree {
            if !disk::holds(&temporary.path().join(path), bytes)? {
                let cause = format!("the disk gives back other bytes of {path} than were written");
                return Err(refused(&manifest.id, cause));
            }
        }
        reparse(files)?;
        self.keep(temporary, &manifest.id)
    }

    /// A private, hidden directory among the snapshots, which is never listed and is removed when
    /// dropped.
    pub(super) fn temporary(&self) -> Result<tempfile::TempDir> {
        disk::temporary_dir(&self.snapshots_dir())
    }

    /// Renames a finished temporary directory to the identifier of its snapshot.
    pub(super) fn keep(&self, temporary: tempfile::TempDir, id: &str) -> Result<Snapshot> {
        let dir = self.snapshots_dir().join(id);
        fs::rename(temporary.path(), &dir).map_err(|e| Error::io(&dir, &e))?;
        // The directory no longer has its temporary name, so there is nothing to remove on drop.
        let _ = temporary.keep();
        disk::sync_dir(&self.snapshots_dir())?;
        Ok(Snapshot { id: id.into(), dir })
    }

    /// All snapshots, sorted by identifier, which puts the oldest first. A broken snapshot is
    /// listed with its error.
    ///
    /// # Errors
    /// If the store's directory cannot be read.
    pub fn list(&self) -> Result<Vec<ListedSnapshot>> {
        let listed = self.snapshots()?.into_iter().map(|snapshot| {
            let manifest = read_manifest(&snapshot);
            ListedSnapshot { snapshot, manifest }
        });
        Ok(listed.collect())
    }

    /// The snapshot that `name` identifies: an identifier, a prefix that only one snapshot has,
    /// `latest`, or the path of a directory.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no snapshot matches; [`Kind::Usage`] if several snapshots have the
    /// prefix.
    pub fn find(&self, name: &str) -> Result<Snapshot> {
        if !name.contains('/') {
            let mut all = self.snapshots()?;
            if name == "latest" {
                return all.pop().ok_or_else(|| not_found(name, "the store holds no snapshot"));
            }
            if let Some(exact) = all.iter().position(|s| s.id == name) {
                return Ok(all.swap_remove(exact));
            }
            all.retain(|s| !name.is_empty() && s.id.starts_with(name));
            if all.len() > 1 {
                let ids: Vec<&str> = all.iter().map(|s| s.id.as_str()).collect();
                let cause = format!("several snapshots begin so: {}", ids.join(", "));
                return Err(Error::new(Kind::Usage, name, cause).hint("give more of its name"));
            }
            if let Some(only) = all.pop() {
                return Ok(only);
            }
        }
        let dir = PathBuf::from(name);
        if !dir.is_dir() {
            return Err(not_found(name, "no snapshot of this name, and no such directory"));
        }
        let id = dir.file_name().unwrap_or(dir.as_os_str()).display().to_string();
        Ok(Snapshot { id, dir })
    }

    /// Removes all but the newest `keep` snapshots, and half-made directories that were abandoned.
    /// Returns the identifiers of the removed snapshots. The snapshots in `needed` are kept even if
    /// they are older.
    ///
    /// # Errors
    /// If a directory cannot be removed.
    pub fn prune(&self, keep: usize, needed: &BTreeSet<String>) -> Result<Vec<String>> {
        let all = self.snapshots()?;
        let old = all.len().saturating_sub(keep);
        let mut removed = Vec::new();
        for snapshot in all.into_iter().take(old).filter(|s| !needed.contains(&s.id)) {
            // The directory is first renamed to a hidden name, which is not listed, because a
            // half-removed snapshot must never look valid.
            let hidden = self.snapshots_dir().join(format!(".old-{}", snapshot.id));
            fs::rename(&snapshot.dir, &hidden).map_err(|e| Error::io(&snapshot.dir, &e))?;
            fs::remove_dir_all(&hidden).map_err(|e| Error::io(&hidden, &e))?;
            removed.push(snapshot.id);
        }
        for dir in self.folders()?.iter().filter(|dir| is_hidden(dir) && is_abandoned(dir)) {
            fs::remove_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
        }
        Ok(removed)
    }

    fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let entries = self.folders()?.into_iter().filter(|dir| !is_hidden(dir));
        let mut all: Vec<Snapshot> = entries
            .map(|dir| Snapshot {
                id: dir.file_name().unwrap_or_default().display().to_string(),
                dir,
            })
            .collect();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(all)
    }

    fn folders(&self) -> Result<Vec<PathBuf>> {
        let mut all = entries(&self.snapshots_dir())?;
        all.retain(|path| path.is_dir());
        Ok(all)
    }
}

fn not_found(name: &str, cause: &str) -> Error {
    Error::new(Kind::NotFound, name, cause).hint("`proxyshift snapshot list` shows what there is")
}

fn is_hidden(dir: &Path) -> bool {
    dir.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn is_abandoned(dir: &Path) -> bool {
    let changed = fs::symlink_metadata(dir).and_then(|meta| meta.modified());
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED))
}

fn read_manifest(snapshot: &Snapshot) -> Result<Manifest> {
    let path = snapshot.dir.join(MANIFEST);
    let object = path.display().to_string();
    let json = disk::read_file(&path).map_err(|e| refused(&object, e))?;
    let manifest = Manifest::parse(&object, &json)?;
    if manifest.id != snapshot.id {
        let cause = format!("it is the manifest of {}: the directory was renamed", manifest.id);
        return Err(refused(object, cause));
    }
    Ok(manifest)
}

/// Writes and syncs the files of `tree` below `root`, the manifest last.
fn write_tree(root: &Path, tree: &BTreeMap<&str, &[u8]>) -> Result<()> {
    let mut files: Vec<(&str, &[u8])> = tree.iter().map(|(path, bytes)| (*path, *bytes)).collect();
    files.sort_by_key(|(path, _)| *path == MANIFEST);
    for (path, bytes) in files {
        let file = root.join(path);
        if let Some(parent) = file.parent() {
            disk::make_dirs(parent)?;
        }
        disk::write_new(&file, bytes)?;
    }
    disk::sync_dirs(root, tree.keys().copied())
}
