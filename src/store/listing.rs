//! The snapshots in the store in their order, and what is passed over.

use std::path::Path;

use super::disk::{self, is_hidden, refused};
use super::imported::Imported;
use super::manifest::{MANIFEST, Manifest};
use super::snapshots::Snapshot;
use super::strays::Stray;
use super::{Store, entries};
use crate::error::Result;

/// One snapshot in the list of snapshots.
#[derive(Debug)]
pub struct ListedSnapshot {
    /// The identifier and directory of the listed snapshot.
    pub snapshot: Snapshot,
    /// The snapshot's manifest, or the error of reading it. The other files of the snapshot are not
    /// read.
    pub manifest: Result<Manifest>,
    /// Where the snapshot came from; none if it was taken here.
    pub imported: Option<Imported>,
}

/// The entries of the folder of snapshots.
#[derive(Debug, Default)]
pub(super) struct ScannedSnapshots {
    /// The snapshots that were taken here, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// What is passed over.
    pub strays: Vec<Stray>,
}

impl Store {
    /// All snapshots: the imported ones, then the broken ones with their errors, then those that
    /// were taken here, oldest first.
    ///
    /// # Errors
    /// If the store's directory cannot be read.
    pub fn list(&self) -> Result<Vec<ListedSnapshot>> {
        let mut listed: Vec<ListedSnapshot> = [self.imports()?, self.snapshots()?]
            .concat()
            .into_iter()
            .map(|snapshot| {
                let (manifest, imported) = (read_manifest(&snapshot), snapshot.imported());
                ListedSnapshot { snapshot, manifest, imported }
            })
            .collect();
        // Stable, so that what has no number stays sorted by its identifier.
        listed.sort_by_key(|one| match (&one.imported, &one.manifest) {
            (Some(_), _) => (0, 0),
            (None, Err(_)) => (1, 0),
            (None, Ok(manifest)) => (2, manifest.seq),
        });
        Ok(listed)
    }

    /// The last snapshot that was taken here; none if there is none.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub fn latest(&self) -> Result<Option<Snapshot>> {
        Ok(self.scan_snapshots()?.snapshots.pop())
    }

    /// Whether `manifest` is that of a snapshot which was taken here, so that its number is one of
    /// this store's.
    pub fn took(&self, manifest: &Manifest) -> bool {
        let own = self.own(&manifest.id).ok().flatten();
        own.and_then(|own| read_manifest(&own).ok()).is_some_and(|own| own == *manifest)
    }

    /// The snapshots that were taken here, oldest first, and what is passed over.
    pub(super) fn scan_snapshots(&self) -> Result<ScannedSnapshots> {
        let mut scanned = ScannedSnapshots::default();
        let files = entries(&self.snapshots_dir())?;
        let files = files.into_iter().filter(|path| !is_hidden(path) && !path.is_dir());
        scanned.strays.extend(files.map(|path| Stray::new(&path, "it is no folder of a snapshot")));
        let mut numbered = Vec::new();
        for snapshot in self.snapshots()? {
            match read_manifest(&snapshot) {
                Ok(manifest) => numbered.push((manifest.seq, snapshot)),
                Err(e) => scanned.strays.push(Stray::new(Path::new(&e.object), e.cause)),
            }
        }
        // Stable, so that what has no number stays sorted by its identifier.
        numbered.sort_by_key(|(seq, _)| *seq);
        scanned.snapshots = numbered.into_iter().map(|(_, snapshot)| snapshot).collect();
        Ok(scanned)
    }
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
