//! Reads an untrusted archive into memory, within the limits of a snapshot. Nothing is written.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use tar::{Archive, Entry, EntryType, PaxExtensions};

use super::disk::{SnapshotLimits, Tree, check_path, open_archive, refused};
use crate::error::{Error, LONGEST_NAME, Result, shortened};

/// The largest size in bytes of an entry that holds only the name or attributes of the next one.
const MAX_EXTENSION: u64 = 64 << 10;

/// The files of the `.tar.gz` archive at `path`, as [`unpack`].
///
/// # Errors
/// As [`unpack`], and for what is no regular file.
pub(super) fn unpack_file(path: &Path, limits: SnapshotLimits) -> Result<Tree> {
    let stream = GzDecoder::new(BufReader::new(open_archive(path)?));
    unpack(&path.display().to_string(), stream, limits)
}

/// The files of the tar archive in `stream`, without the one directory that they are all in. Errors
/// call the archive `archive`.
///
/// # Errors
/// [`crate::error::Kind::SnapshotRefused`] for whatever is not an archive of one directory of plain
/// files, each with a path that every Linux can make.
fn unpack(archive: &str, stream: impl Read, limits: SnapshotLimits) -> Result<Tree> {
    let mut unpack = Unpack {
        archive,
        limits,
        name: None,
        top: None,
        directories: BTreeSet::new(),
        tree: Tree::new(),
    };
    // Limits how many bytes are unpacked, whatever sizes the archive claims: all files, and for
    // each a header, a partial block, and as much again for a long name.
    let most = limits.bytes + 4096 * (limits.entries as u64 + 1);
    let mut tar = Archive::new(Capped { inner: stream, left: most });
    // Raw, because otherwise the long name of an entry is read whole before it is seen here.
    let entries = tar.entries().map_err(|e| unpack.damaged(&e))?.raw(true);
    for entry in entries {
        unpack.entry(entry.map_err(|e| unpack.damaged(&e))?)?;
    }
    match unpack.name {
        Some(_) => Err(refused(archive, "its last name is without a file")),
        None => Ok(unpack.tree),
    }
}

struct Unpack<'a> {
    archive: &'a str,
    /// The bytes that may still be read, and the largest number of files and directories.
    limits: SnapshotLimits,
    /// The long name of the next entry, if it has one.
    name: Option<Vec<u8>>,
    /// The top directory of the first entry; every other entry must be in the same top directory.
    top: Option<String>,
    directories: BTreeSet<String>,
    tree: Tree,
}

impl Unpack<'_> {
    fn refused(&self, name: &str, cause: impl std::fmt::Display) -> Error {
        refused(format!("{}: {}", self.archive, shortened(name, LONGEST_NAME)), cause)
    }

    fn damaged(&self, error: &io::Error) -> Error {
        refused(self.archive, format!("cannot be read: {error}"))
    }

    fn entry(&mut self, mut entry: Entry<impl Read>) -> Result<()> {
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut name = self.extension(&mut entry)?;
                while name.last() == Some(&0) {
                    name.pop();
                }
                self.names_next(name)
            }
            // Only links have such a name, and no link is accepted.
            EntryType::GNULongLink => self.extension(&mut entry).map(drop),
            EntryType::XHeader => self.attributes(&mut entry),
            kind => {
                let name = self.name.take();
                let name = name.unwrap_or_else(|| entry.path_bytes().into_owned());
                let Ok(name) = String::from_utf8(name) else {
                    return Err(self.refused("an entry", "its name is not UTF-8"));
                };
                self.file_or_directory(kind, &name, &mut entry)
            }
        }
    }

    /// The content of an entry that describes the next one.
    fn extension(&self, entry: &mut Entry<impl Read>) -> Result<Vec<u8>> {
        let size = entry.size();
        if size > MAX_EXTENSION {
            return Err(self.refused("an entry", format!("its name takes {size} bytes")));
        }
        self.read(entry, size)
    }

    fn names_next(&mut self, name: Vec<u8>) -> Result<()> {
        match self.name.replace(name) {
            Some(_) => Err(refused(self.archive, "an entry with two names")),
            None => Ok(()),
        }
    }

    /// Reads the attributes of the next entry in the form of pax. The name counts; a size or holes
    /// would make the file another than its own header says, so they are refused.
    fn attributes(&mut self, entry: &mut Entry<impl Read>) -> Result<()> {
        let text = self.extension(entry)?;
        for attribute in PaxExtensions::new(&text) {
            let attribute = attribute.map_err(|e| self.damaged(&e))?;
            match attribute.key_bytes() {
                b"path" => self.names_next(attribute.value_bytes().to_vec())?,
                key if key == b"size" || key.starts_with(b"GNU.sparse.") => {
                    let key = String::from_utf8_lossy(key);
                    return Err(self.refused(&key, "an attribute that no snapshot has"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file_or_directory(
        &mut self,
        kind: EntryType,
        name: &str,
        entry: &mut Entry<impl Read>,
    ) -> Result<()> {
        let is_directory = match kind {
            EntryType::Regular => false,
            EntryType::Directory => true,
            other => {
                return Err(self.refused(name, format!("neither file nor directory: {other:?}")));
            }
        };
        let path = if is_directory { name.strip_suffix('/').unwrap_or(name) } else { name };
        check_path(path).map_err(|why| self.refused(name, why))?;
        let (top, rest) = path.split_once('/').unwrap_or((path, ""));
        if self.top.get_or_insert_with(|| top.to_owned()) != top {
            return Err(self.refused(name, "not in the directory of the first entry"));
        }
        self.claim(name, rest, is_directory)?;
        if is_directory {
            return Ok(());
        }
        if rest.is_empty() {
            return Err(self.refused(name, "a file outside of any directory"));
        }
        let size = entry.size();
        let Some(left) = self.limits.bytes.checked_sub(size) else {
            return Err(refused(self.archive, "it unpacks to more than a snapshot may hold"));
        };
        self.limits.bytes = left;
        let bytes = self.read(entry, size)?;
        self.tree.insert(rest.to_owned(), bytes);
        Ok(())
    }

    /// Notes that `path` is a file or a directory, and that what it is in are directories. Refuses
    /// what cannot be both, and more of them than a snapshot has.
    fn claim(&mut self, name: &str, path: &str, is_directory: bool) -> Result<()> {
        let above = path.match_indices('/').map(|(end, _)| &path[..end]);
        for directory in above.chain(is_directory.then_some(path)) {
            if self.tree.contains_key(directory) {
                return Err(self.refused(name, "a file and a directory of the same name"));
            }
            if !self.directories.contains(directory) {
                self.directories.insert(directory.to_owned());
            }
        }
        if !is_directory && self.directories.contains(path) && !path.is_empty() {
            return Err(self.refused(name, "a file and a directory of the same name"));
        }
        if !is_directory && self.tree.contains_key(path) {
            return Err(self.refused(name, "it is in the archive twice"));
        }
        let most = self.limits.entries;
        if self.directories.len() + self.tree.len() + usize::from(!is_directory) > most {
            return Err(refused(self.archive, format!("it holds more than {most} files")));
        }
        Ok(())
    }

    fn read(&self, entry: &mut Entry<impl Read>, size: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| self.damaged(&e))?;
        if bytes.len() as u64 != size {
            return Err(refused(self.archive, "cannot be read: it is cut off"));
        }
        Ok(bytes)
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
    use crate::error::Kind;
    use tar::{Builder, Header};

    const SMALL: SnapshotLimits = SnapshotLimits { entries: 4, bytes: 64 * 1024 };

    fn add(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, bytes: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_entry_type(kind);
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    }

    /// The files of an archive of these entries, or the error without its archive.
    fn unpacked(entries: &[(EntryType, &str, &[u8])]) -> Result<Vec<String>, String> {
        let mut builder = Builder::new(Vec::new());
        for (kind, name, bytes) in entries {
            add(&mut builder, *kind, name, bytes);
        }
        let bytes = builder.into_inner().unwrap();
        let tree = unpack("a", bytes.as_slice(), SMALL).map_err(|e| {
            assert_eq!(e.kind, Kind::SnapshotRefused, "{e}");
            e.to_string()
        })?;
        Ok(tree.into_keys().collect())
    }

    /// One attribute in the form of pax.
    fn pax(key: &str, value: &str) -> Vec<u8> {
        let rest = format!(" {key}={value}\n");
        let digits = |n: usize| n.to_string().len();
        let mut length = rest.len() + digits(rest.len());
        if digits(length) + rest.len() > length {
            length += 1;
        }
        format!("{length}{rest}").into_bytes()
    }

    #[test]
    fn long_names_are_read_up_to_a_limit() {
        use EntryType::{GNULongLink, GNULongName, Regular, XGlobalHeader, XHeader};
        let long = format!("s/{}/{}", "d".repeat(200), "n".repeat(200));
        let gnu = [long.as_bytes(), b"\0"].concat();
        let path = pax("path", &long);
        for named in [(GNULongName, "x", gnu.as_slice()), (XHeader, "x", &path)] {
            assert_eq!(unpacked(&[named, (Regular, "s/n", b"")]).unwrap(), [&long[2..]]);
            let twice = unpacked(&[named, named, (Regular, "s/n", b"")]).unwrap_err();
            assert!(twice.contains("two names"), "{twice}");
            let error = unpacked(&[named]).unwrap_err();
            assert!(error.contains("without a file"), "{error}");
        }
        let much = vec![b'n'; MAX_EXTENSION as usize + 1];
        for kind in [GNULongName, GNULongLink, XHeader, XGlobalHeader] {
            let error = unpacked(&[(kind, "x", &much), (Regular, "s/n", b"")]).unwrap_err();
            assert!(error.len() < 300, "{error}");
        }
        for key in ["size", "GNU.sparse.major", "GNU.sparse.name"] {
            let error = unpacked(&[(XHeader, "x", &pax(key, "1")), (Regular, "s/n", b"")]);
            assert!(error.unwrap_err().contains("no snapshot has"), "{key}");
        }
    }

    #[test]
    fn a_long_name_is_cut_in_its_error() {
        let long = format!("s/{}\0", "../".repeat(20_000));
        let error = unpacked(&[
            (EntryType::GNULongName, "x", long.as_bytes()),
            (EntryType::Regular, "s/n", b""),
        ]);
        let error = error.unwrap_err();
        assert!(error.starts_with("a: s/../") && error.len() < 300, "{error}");
    }

    #[test]
    fn what_no_directory_can_hold_is_refused() {
        use EntryType::{Directory, Regular};
        for entries in [
            [(Regular, "s/a"), (Regular, "s/a/b")],
            [(Regular, "s/a/b"), (Regular, "s/a")],
            [(Regular, "s/a"), (Directory, "s/a/")],
            [(Directory, "s/a/"), (Regular, "s/a")],
            [(Regular, "s/a/b"), (Regular, "s/a/b/c/d")],
        ] {
            let entries = entries.map(|(kind, name)| (kind, name, &b""[..]));
            let error = unpacked(&entries).unwrap_err();
            assert!(error.contains("a file and a directory"), "{error}");
        }
        let error = unpacked(&[(Regular, "s/a", b""), (Regular, "s/a", b"")]).unwrap_err();
        assert!(error.contains("twice"), "{error}");
        for name in ["s/a//b", "s//", "s/./a", "/s/a", "s/../a", "s/a\nb", "s/a/", "s"] {
            unpacked(&[(Regular, name, b"")]).unwrap_err();
        }
        let directories = ["s/a/", "s/a/", "s/a/b/"].map(|name| (Directory, name, &b""[..]));
        assert_eq!(unpacked(&directories).unwrap(), [""; 0]);
    }

    #[test]
    fn directories_count_too() {
        let deep = unpacked(&[(EntryType::Regular, "s/a/b/c/d/e", b"")]).unwrap_err();
        assert!(deep.contains("more than 4 files"), "{deep}");
    }

    #[test]
    fn nothing_is_read_past_the_cap() {
        let mut capped = Capped { inner: io::repeat(0), left: 1000 };
        let mut unpacked = Vec::new();
        capped.read_to_end(&mut unpacked).unwrap_err();
        assert!(unpacked.len() <= 1000, "{}", unpacked.len());
    }
}
