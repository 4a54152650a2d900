//! The snapshots in the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::disk::{self, LIMITS, SnapshotLimits, Tree, check_path, refused};
use super::manifest::{self, MANIFEST, Manifest, RESTORE, SHA256SUMS};
use super::{Store, entries, restore};
use crate::error::{Error, Kind, Result};
use crate::state::Files;

/// The files of a snapshot's directory that are not of the node.
const OWN_FILES: [&str; 3] = [MANIFEST, SHA256SUMS, RESTORE];

/// The age from which a half-made directory is abandoned.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Parses the files of a node state, to validate them; the store itself parses none.
pub type Reparse<'a> = &'a dyn Fn(&Files) -> Result<()>;

/// A snapshot's identifier and directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identifier, the name of its directory.
    pub id: String,
    /// Its directory.
    pub dir: PathBuf,
}

/// The content of a snapshot's directory.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Missing for a bare directory of captured files.
    pub manifest: Option<Manifest>,
    /// The node's files.
    pub files: Files,
}

/// A line of the list of snapshots.
#[derive(Debug)]
pub struct ListedSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Its manifest, or its error. Its files were not read.
    pub manifest: Result<Manifest>,
}

impl Snapshot {
    /// Reads all of the directory `dir`. With a manifest every check is made; without one, it is a
    /// capture that can only be read.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] with the reason; [`Kind::NotFound`] for a missing directory.
    pub fn load(dir: &Path) -> Result<Loaded> {
        let (tree, manifest) = read_verified(dir, LIMITS)?;
        let files = files_of(&dir.display().to_string(), tree)?;
        Ok(Loaded { manifest, files })
    }
}

impl Loaded {
    /// Its manifest, which a rollback requires.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] for a bare directory.
    pub fn for_rollback(&self) -> Result<&Manifest> {
        self.manifest.as_ref().ok_or_else(|| {
            refused(MANIFEST, "missing: where and when this was captured is not known")
        })
    }
}

/// The bytes of a snapshot's directory, after every check that needs no parser.
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
    // First, since the checksums of a later format may differ.
    manifest::check_format(&object, json)?;
    manifest::verify_checksums(&name, &tree)?;
    let manifest = Manifest::parse(&object, json)?;
    Ok((tree, Some(manifest)))
}

/// The node's files of a directory: its text, without the snapshot's own files.
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
    /// only then names it. So every listed snapshot is valid.
    ///
    /// # Errors
    /// [`Kind::Store`] without space; the error of `reparse`. Leaves nothing behind.
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
        // The files may be large: they are not copied.
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

    /// A private directory in the store that is removed when dropped, and never listed.
    pub(super) fn temporary(&self) -> Result<tempfile::TempDir> {
        disk::temporary_dir(&self.snapshots_dir())
    }

    /// Gives a finished directory its name.
    pub(super) fn keep(&self, temporary: tempfile::TempDir, id: &str) -> Result<Snapshot> {
        let dir = self.snapshots_dir().join(id);
        fs::rename(temporary.path(), &dir).map_err(|e| Error::io(&dir, &e))?;
        // The old name is gone, so nothing must be removed.
        let _ = temporary.keep();
        disk::sync_dir(&self.snapshots_dir())?;
        Ok(Snapshot { id: id.into(), dir })
    }

    /// All snapshots by identifier, oldest first; a broken one with its error.
    ///
    /// # Errors
    /// When the store's directory cannot be read.
    pub fn list(&self) -> Result<Vec<ListedSnapshot>> {
        let listed = self.snapshots()?.into_iter().map(|snapshot| {
            let manifest = read_manifest(&snapshot);
            ListedSnapshot { snapshot, manifest }
        });
        Ok(listed.collect())
    }

    /// The snapshot that `name` identifies: an identifier or its unique prefix, `latest`, or a
    /// directory.
    ///
    /// # Errors
    /// [`Kind::NotFound`]; [`Kind::Usage`] for an ambiguous prefix.
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

    /// Removes all but the newest `keep` snapshots, and abandoned half-made ones. Keeps those in
    /// `needed`. Returns the removed identifiers.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, keep: usize, needed: &BTreeSet<String>) -> Result<Vec<String>> {
        let all = self.snapshots()?;
        let old = all.len().saturating_sub(keep);
        let mut removed = Vec::new();
        for snapshot in all.into_iter().take(old).filter(|s| !needed.contains(&s.id)) {
            // Renamed first, to a name that is not listed: a half-removed snapshot must never look
            // valid.
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

/// Writes and syncs `tree`, the manifest last.
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
