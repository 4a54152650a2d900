//! The snapshots in the store: create, read, find and prune.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::bundle::{self, BUNDLE};
use super::disk::{self, LIMITS, SnapshotLimits, Tree, check_path, is_hidden, refused};
use super::imported::{CONTENT, Imported};
use super::manifest::{self, MANIFEST, Manifest, RESTORE, SHA256SUMS};
use super::unpack::unpack_file;
use super::{Store, entries, restore};
use crate::error::{Error, Kind, LONGEST_NAME, Result, shortened};
use crate::state::{Files, RulesetId};

/// The files in a snapshot's directory that the store makes, and that are no captured files of the
/// node.
const OWN_FILES: [&str; 3] = [MANIFEST, SHA256SUMS, RESTORE];

/// The captured files of a node that are neither rulesets nor below [`CONFIGURATION`].
const CAPTURED: [&str; 18] = [
    "addr.json",
    "cluster.json",
    "cttimeout.save",
    "ipset.save",
    "ipvs.list",
    "ipvs.save",
    "ipvs.stats",
    "lookalikes.json",
    "modules.txt",
    "nf_conntrack.stat",
    "nfacct.save",
    "nft.json",
    "nft.messages",
    "processes.json",
    "route.json",
    "rule.json",
    "sysctl.txt",
    "tools.txt",
];

/// The folder of captured configuration files, by their absolute paths.
const CONFIGURATION: &str = "files/";

/// Whether a capture makes files of this path.
pub fn is_captured(path: &str) -> bool {
    path.starts_with(CONFIGURATION)
        || CAPTURED.contains(&path)
        || RulesetId::ALL.iter().any(|id| id.file() == path)
}

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

/// The content of a snapshot's directory, or of an archive.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The snapshot's manifest; none if there are only captured files.
    pub manifest: Option<Manifest>,
    /// The captured files of the node.
    pub files: Files,
    /// Why `files` is only a part of the node, if so. Only a bundle may hold a part.
    pub unread: Option<Error>,
    /// Whether this came from an archive, which nothing is rolled back to.
    archived: bool,
}

/// The files that the store itself makes for a snapshot.
pub(super) struct OwnFiles {
    pub manifest: Vec<u8>,
    pub script: String,
}

impl OwnFiles {
    pub(super) fn of(manifest: &Manifest) -> Result<OwnFiles> {
        Ok(OwnFiles { manifest: manifest.to_json()?, script: restore::render(manifest) })
    }
}

impl Snapshot {
    /// The snapshot in the directory with the path `path`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is nothing.
    pub fn at(path: &str) -> Result<Snapshot> {
        let dir = PathBuf::from(path);
        if fs::metadata(&dir).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Err(not_found(path, "no such directory or archive"));
        }
        let id = dir.file_name().unwrap_or(dir.as_os_str()).display().to_string();
        Ok(Snapshot { id, dir })
    }

    /// Reads all files of the directory or archive `path`, and checks the format, the checksums and
    /// `restore.sh` if it has a manifest. Without a manifest, it is a capture that no rollback can use.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] with the reason; [`Kind::NotFound`] if `path` does not exist; the reason
    /// why it is only a part of a node.
    pub fn load(path: &Path) -> Result<Loaded> {
        let mut loaded = Self::load_partly(path)?;
        loaded.unread.take().map_or(Ok(loaded), Err)
    }

    /// As [`Self::load`], but also of a bundle for which a part of the node could not be captured.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_partly(path: &Path) -> Result<Loaded> {
        let name = path.display().to_string();
        let archived = path.is_file();
        let (mut tree, manifest) = if archived {
            let tree = unpack_file(path, LIMITS)?;
            let manifest = verified(&name, &tree)?;
            (tree, manifest)
        } else {
            read_verified(path, LIMITS)?
        };
        let mut unread = None;
        if manifest.is_none() && bundle::is_bundle(&tree) {
            tree = bundle::captured(&name, tree)?;
        }
        if manifest.is_none() {
            unread = bundle::take_unread(&name, &mut tree)?;
        }
        Ok(Loaded { manifest, files: files_of(&name, tree)?, unread, archived })
    }

    /// Whether the captured files lie in the directory of the snapshot itself.
    pub fn is_plain(&self) -> bool {
        !self.dir.is_file() && !self.dir.join(BUNDLE).exists()
    }

    /// Where this snapshot came from, if it lies where imported snapshots lie.
    pub fn imported(&self) -> Option<Imported> {
        Imported::of(&self.dir)
    }
}

impl Loaded {
    /// The snapshot's manifest, without which a rollback is refused.
    ///
    /// # Errors
    /// [`Kind::SnapshotRefused`] if there is no manifest, or for an archive.
    pub fn for_rollback(&self) -> Result<&Manifest> {
        if self.archived {
            return Err(refused("the archive", "an archive is for reading")
                .hint("`proxyshift snapshot import` keeps an exported snapshot in the store"));
        }
        self.manifest.as_ref().ok_or_else(|| {
            refused(MANIFEST, "missing: where and when this was captured is not known")
        })
    }
}

/// Reads a snapshot's directory and its manifest, and checks the limits, and as [`verified`]; the
/// script must be one of ours. Does not parse the captured files.
pub(super) fn read_verified(
    dir: &Path,
    limits: SnapshotLimits,
) -> Result<(Tree, Option<Manifest>)> {
    let tree = disk::read_tree(dir, limits)?;
    let manifest = verified(&dir.display().to_string(), &tree)?;
    if let (Some(manifest), Some(script)) = (&manifest, tree.get(RESTORE))
        && !restore::is_rendering(script, manifest)
    {
        let object = dir.join(RESTORE).display().to_string();
        return Err(refused(object, "it is not the script that proxyshift writes").hint(
            "do not run it; an archive of this snapshot can be imported, which writes the script \
             anew; a script of a newer proxyshift needs that one",
        ));
    }
    Ok((tree, manifest))
}

/// The manifest of the files `tree`, whose format and checksums are right. None
/// without a manifest. Errors call the snapshot `name`.
pub(super) fn verified(name: &str, tree: &Tree) -> Result<Option<Manifest>> {
    let Some(json) = tree.get(MANIFEST) else {
        if tree.contains_key(SHA256SUMS) {
            return Err(refused(format!("{name}/{MANIFEST}"), "missing"));
        }
        return Ok(None);
    };
    let object = format!("{name}/{MANIFEST}");
    // The format is checked first, because a later format may have other checksums.
    manifest::check_format(&object, json)?;
    manifest::verify_checksums(name, tree)?;
    Manifest::parse(&object, json).map(Some)
}

/// The captured files of a snapshot's directory as text, without the files that the store makes.
pub(super) fn files_of(dir: &str, tree: Tree) -> Result<Files> {
    tree.into_iter()
        .filter(|(path, _)| !OWN_FILES.contains(&path.as_str()))
        .map(|(path, bytes)| match String::from_utf8(bytes) {
            Ok(text) => Ok((path, text.into())),
            Err(_) => {
                let path = shortened(&path, LONGEST_NAME);
                Err(refused(format!("{dir}/{path}"), "it is not UTF-8"))
            }
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
        // The lock is held until the snapshot is in its place.
        let lock = self.lock_numbers()?;
        manifest.seq = self.next_number(&lock)?;
        // Hidden, so that it is never listed.
        let temporary = disk::temporary_dir(&self.snapshots_dir())?;
        write_verified(temporary.path(), &manifest.id, files, &OwnFiles::of(&manifest)?)?;
        reparse(files)?;
        self.keep(temporary, &manifest.id)
    }

    /// Renames a finished temporary directory to the identifier of its snapshot.
    fn keep(&self, temporary: tempfile::TempDir, id: &str) -> Result<Snapshot> {
        let dir = disk::rename(temporary, &self.snapshots_dir(), id)?;
        Ok(Snapshot { id: id.into(), dir })
    }

    /// As [`Store::keep`], for a directory with a mark and a snapshot that was imported.
    pub(super) fn keep_imported(&self, temporary: tempfile::TempDir, id: &str) -> Result<Snapshot> {
        disk::sync_dir(temporary.path())?;
        let dir = disk::rename(temporary, &self.imported_dir(), id)?.join(CONTENT);
        disk::sync_dir(self.dir())?;
        Ok(Snapshot { id: id.into(), dir })
    }

    /// The snapshot `id` that was taken here; none if the store does not have it.
    ///
    /// # Errors
    /// If the folder of snapshots cannot be read.
    pub(super) fn own(&self, id: &str) -> Result<Option<Snapshot>> {
        Ok(self.snapshots()?.into_iter().find(|snapshot| snapshot.id == id))
    }

    /// The snapshot `id` that a run of this store took. An imported snapshot of the same name is
    /// not it.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it is gone.
    pub fn of_run(&self, id: &str) -> Result<Snapshot> {
        self.own(id)?.ok_or_else(|| not_found(id, "the run's snapshot is not in the store"))
    }

    /// The snapshot that `name` identifies: an identifier, a prefix that only one snapshot has,
    /// `latest`, or, if it has a `/`, the path of a directory. `latest` is never an imported one.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no snapshot matches; [`Kind::Usage`] if several snapshots have the
    /// prefix.
    pub fn find(&self, name: &str) -> Result<Snapshot> {
        if name.contains('/') {
            return Snapshot::at(name);
        }
        if name == "latest" {
            let none = "the store holds no snapshot that was taken here";
            return self.latest()?.ok_or_else(|| not_found(name, none));
        }
        let mut all = [self.snapshots()?, self.imports()?].concat();
        if let Some(exact) = all.iter().position(|s| s.id == name) {
            return Ok(all.swap_remove(exact));
        }
        all.retain(|s| !name.is_empty() && s.id.starts_with(name));
        if all.len() > 1 {
            let ids: Vec<&str> = all.iter().map(|s| s.id.as_str()).collect();
            let cause = format!("several snapshots begin so: {}", ids.join(", "));
            return Err(Error::new(Kind::Usage, name, cause).hint("give more of its name"));
        }
        all.pop().ok_or_else(|| not_found(name, "no snapshot of this name"))
    }

    /// Removes all but the newest `keep` snapshots, and half-made directories that were abandoned.
    /// Returns the identifiers of the removed snapshots. The snapshots in `needed` are kept even if
    /// they are older. Imported snapshots and stray entries neither count nor go.
    ///
    /// # Errors
    /// If a directory cannot be removed.
    pub fn prune(&self, keep: usize, needed: &BTreeSet<String>) -> Result<Vec<String>> {
        let all = self.scan_snapshots()?.snapshots;
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
        let all = [folders(&self.snapshots_dir())?, folders(&self.imported_dir())?].concat();
        for dir in all.iter().filter(|dir| is_hidden(dir) && is_abandoned(dir)) {
            fs::remove_dir_all(dir).map_err(|e| Error::io(dir, &e))?;
        }
        Ok(removed)
    }

    /// The folders of snapshots that were taken here, readable or not, sorted by identifier.
    pub(super) fn snapshots(&self) -> Result<Vec<Snapshot>> {
        named(&self.snapshots_dir(), |dir| dir)
    }

    /// The imported snapshots, sorted by identifier.
    pub(super) fn imports(&self) -> Result<Vec<Snapshot>> {
        named(&self.imported_dir(), |folder| folder.join(CONTENT))
    }
}

/// A snapshot for each folder in `dir` that is not hidden, sorted by identifier. `content` is where
/// the snapshot lies in its folder.
fn named(dir: &Path, content: impl Fn(PathBuf) -> PathBuf) -> Result<Vec<Snapshot>> {
    let folders = folders(dir)?.into_iter().filter(|folder| !is_hidden(folder));
    let mut all: Vec<Snapshot> = folders
        .map(|folder| Snapshot { id: disk::name_of(&folder), dir: content(folder) })
        .collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(all)
}

/// The directories in `dir`, hidden ones too.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut all = entries(dir)?;
    all.retain(|path| path.is_dir());
    Ok(all)
}

/// The error for a snapshot that is not there. A directory of this name in the working directory is
/// never taken for one, because anybody may have put it there.
fn not_found(name: &str, cause: &str) -> Error {
    let error = Error::new(Kind::NotFound, name, cause);
    let what = if Path::new(name).is_dir() { "directory" } else { "file" };
    if !name.is_empty() && !name.contains('/') && Path::new(name).exists() {
        return error.hint(format!("for the {what} of this name here, say `./{name}`"));
    }
    error.hint("`proxyshift snapshot list` shows what there is")
}

fn is_abandoned(dir: &Path) -> bool {
    let changed = fs::symlink_metadata(dir).and_then(|meta| meta.modified());
    changed.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED))
}

/// Writes a snapshot of `files` below `root`, with its checksums, and reads it back from the disk.
/// Errors call the snapshot `id`.
pub(super) fn write_verified(root: &Path, id: &str, files: &Files, own: &OwnFiles) -> Result<()> {
    // The tree borrows the files instead of copying them, because they may be large.
    let mut tree: BTreeMap<&str, &[u8]> =
        files.iter().map(|(path, text)| (path.as_str(), text.as_bytes())).collect();
    tree.insert(RESTORE, own.script.as_bytes());
    tree.insert(MANIFEST, &own.manifest);
    let sums = manifest::checksums(&tree);
    tree.insert(SHA256SUMS, sums.as_bytes());
    write_tree(root, &tree)?;
    for (path, bytes) in &tree {
        if !disk::holds(&root.join(path), bytes)? {
            let cause = format!("the disk gives back other bytes of {path} than were written");
            return Err(refused(id, cause));
        }
    }
    Ok(())
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
