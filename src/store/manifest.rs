//! The manifest of a snapshot, and the checksums of its files.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{Tree, check_path, refused};
use crate::clock;
use crate::error::{Error, LONGEST_NAME, Result, shortened};
use crate::runtime::Netns;
use crate::state::{Backend, Files, RulesetId};

/// The file name of the manifest in a snapshot.
pub const MANIFEST: &str = "manifest.json";
/// The file name of the checksums in a snapshot. The file has the format of coreutils' `sha256sum`.
pub const SHA256SUMS: &str = "SHA256SUMS";
/// The file name of the script in a snapshot that restores it by hand.
pub const RESTORE: &str = "restore.sh";

/// The largest number of characters in one text of a manifest.
const LONGEST_TEXT: usize = 1000;

/// The version of the snapshot format.
///
/// This version is raised when an older proxyshift would misread a snapshot, and not for a new
/// field or file that an older proxyshift may ignore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Format(u32);

impl Format {
    /// The version that this proxyshift writes.
    pub const CURRENT: Format = Format(1);

    /// Whether this proxyshift can read a snapshot of this version, which is its own version or an
    /// earlier one.
    pub fn is_readable(self) -> bool {
        (1..=Format::CURRENT.0).contains(&self.0)
    }
}

/// The connection limits of an ipvs real server, which `ipvsadm --save` omits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsThreshold {
    /// The virtual server as `ipvsadm --save` writes it: `-t 10.96.0.1:443`.
    pub service: String,
    /// The address and port of the real server: `192.168.66.5:6443`.
    pub server: String,
    /// The number of connections above which the real server gets no new ones; 0 means no limit.
    pub upper: u32,
    /// The number of connections below which the real server gets new ones again.
    pub lower: u32,
}

/// `manifest.json`: where, when and why a snapshot was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the snapshot format.
    pub format: Format,
    /// The version of the proxyshift that wrote the snapshot.
    pub proxyshift: String,
    /// The identifier of the snapshot, which is also the name of its directory.
    pub id: String,
    /// The snapshot's number in the store that took it, from 1: see
    /// [`Run::seq`](super::run::Run::seq).
    #[serde(default)]
    pub seq: u64,
    /// The node's host name.
    pub node: String,
    /// The content of `/etc/machine-id`; empty if the node has no such file.
    pub machine_id: String,
    /// The kernel's identifier of the boot in which the node was captured.
    pub boot_id: String,
    /// When the node was captured: `2026-11-21T20:15:02Z`.
    pub time: String,
    /// The kernel's release: `6.1.0-40-amd64`.
    pub kernel: String,
    /// The backends whose rulesets are in the snapshot.
    pub backends: Vec<Backend>,
    /// Why the snapshot was taken, in a few words.
    pub why: String,
    /// The inode of the network namespace that was captured.
    pub netns: u64,
    /// The connection limits of the ipvs real servers that have limits.
    #[serde(default)]
    pub ipvs_thresholds: Vec<IpvsThreshold>,
}

impl Manifest {
    /// The manifest of a snapshot that is taken of this node now. The ipvs thresholds are empty,
    /// and filled in by the caller; the backends and the number are filled in by
    /// [`super::Store::create`].
    ///
    /// # Errors
    /// [`crate::error::Kind::Unexpected`] without /proc.
    pub fn for_this_node(why: &str) -> Result<Manifest> {
        let uname = rustix::system::uname();
        let machine_id = match std::fs::read_to_string("/etc/machine-id") {
            Ok(text) => text.trim().to_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("/etc/machine-id", &e)),
        };
        Ok(Manifest {
            format: Format::CURRENT,
            proxyshift: env!("CARGO_PKG_VERSION").into(),
            id: clock::new_id(),
            seq: 0,
            node: uname.nodename().to_string_lossy().into_owned(),
            machine_id,
            boot_id: clock::boot_id(),
            time: clock::now(),
            kernel: uname.release().to_string_lossy().into_owned(),
            backends: Vec::new(),
            why: why.into(),
            netns: Netns::current()?.inode,
            ipvs_thresholds: Vec::new(),
        })
    }

    /// Parses a manifest; errors call it `object`.
    ///
    /// # Errors
    /// [`crate::error::Kind::SnapshotRefused`] for a later format, or for anything but a manifest.
    pub fn parse(object: &str, json: &[u8]) -> Result<Manifest> {
        check_format(object, json)?;
        let manifest: Manifest = serde_json::from_slice(json).map_err(|e| refused(object, e))?;
        if !is_id(&manifest.id) {
            let id = shortened(&manifest.id, LONGEST_NAME);
            return Err(refused(object, format!("`{id}` is no identifier")));
        }
        Ok(manifest)
    }

    /// Verifies that the texts have the form in which proxyshift writes them, for a manifest from
    /// an archive. So no identifier can hide another, be a prefix of it, or be a word.
    ///
    /// # Errors
    /// [`crate::error::Kind::SnapshotRefused`], calling the manifest `object`.
    pub(super) fn check_form(&self, object: &str) -> Result<()> {
        let Manifest { proxyshift, id, node, machine_id, boot_id, time, kernel, why, .. } = self;
        if !clock::is_id(id) {
            let id = shortened(id, LONGEST_NAME);
            return Err(refused(object, format!("`{id}` is no identifier of a snapshot")));
        }
        if time.len() > 30 || time.parse::<jiff::Timestamp>().is_err() {
            let time = shortened(time, LONGEST_NAME);
            return Err(refused(object, format!("`{time}` is no time")));
        }
        for text in [proxyshift, node, machine_id, boot_id, kernel, why] {
            if text.chars().count() > LONGEST_TEXT {
                let text = shortened(text, LONGEST_NAME);
                return Err(refused(object, format!("a text that is too long: {text}")));
            }
        }
        Ok(())
    }

    /// The bytes to write as `manifest.json`.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| {
            Error::new(crate::error::Kind::Unexpected, MANIFEST, format!("cannot be written: {e}"))
        })?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Refuses a manifest of a later format before its other fields are parsed, because in a later
/// format those fields may be quite different.
pub(super) fn check_format(object: &str, json: &[u8]) -> Result<()> {
    #[derive(Deserialize)]
    struct ManifestHeader {
        format: Format,
        #[serde(default)]
        proxyshift: String,
    }
    let header: ManifestHeader = serde_json::from_slice(json)
        .map_err(|e| refused(object, format!("not a manifest: {e}")))?;
    if header.format.is_readable() {
        return Ok(());
    }
    let ManifestHeader { format: Format(theirs), proxyshift } = header;
    let proxyshift = shortened(&proxyshift, LONGEST_NAME);
    let ours = Format::CURRENT.0;
    Err(refused(
        object,
        format!("written by a newer proxyshift ({proxyshift}): format {theirs}, ours is {ours}"),
    )
    .hint("use the proxyshift that wrote it, or a later one"))
}

/// Whether `id` may name a snapshot's directory, and cannot be mistaken for `latest` or an option
/// on the command line.
pub(super) fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && id != "latest"
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The backends for which `files` has a ruleset.
pub fn backends_of(files: &Files) -> Vec<Backend> {
    let has = |backend: &Backend| {
        RulesetId::ALL.iter().any(|id| id.backend == *backend && files.contains_key(&id.file()))
    };
    [Backend::Legacy, Backend::Nft].into_iter().filter(has).collect()
}

/// The text of `SHA256SUMS` for the files in `tree`.
pub(super) fn checksums<P: Display, B: AsRef<[u8]>>(tree: &BTreeMap<P, B>) -> String {
    let mut text = String::new();
    for (path, bytes) in tree {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {path}", sha256(bytes.as_ref()));
    }
    text
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The bytes in hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Verifies that `SHA256SUMS` names every other file of `tree` and no more, with their checksums.
///
/// # Errors
/// [`crate::error::Kind::SnapshotRefused`] for the first file that differs.
pub(super) fn verify_checksums(dir: &str, tree: &Tree) -> Result<()> {
    let object = |path: &str| format!("{dir}/{}", shortened(path, LONGEST_NAME));
    let damaged = |cause: String| refused(object(SHA256SUMS), cause);
    let Some(sums) = tree.get(SHA256SUMS) else {
        return Err(damaged("missing".into()));
    };
    let sums = str::from_utf8(sums).map_err(|e| damaged(e.to_string()))?;
    if !sums.ends_with('\n') {
        return Err(damaged("its last line is cut off".into()));
    }
    let mut listed = BTreeMap::new();
    for (number, line) in (1..).zip(sums.lines()) {
        let Some((sum, path)) = line.split_once("  ") else {
            return Err(damaged(format!("line {number} is not `checksum  path`")));
        };
        let shown = || shortened(path, LONGEST_NAME);
        check_path(path).map_err(|why| damaged(format!("line {number}: {why}: {}", shown())))?;
        if listed.insert(path, sum).is_some() {
            return Err(damaged(format!("line {number}: {} is named twice", shown())));
        }
    }
    for (path, sum) in &listed {
        match tree.get(*path) {
            None => return Err(refused(object(path), "named in SHA256SUMS, but missing")),
            Some(bytes) if sha256(bytes) != *sum => {
                return Err(refused(object(path), "its checksum is not the one in SHA256SUMS"));
            }
            Some(_) => {}
        }
    }
    let extra = tree.keys().find(|p| *p != SHA256SUMS && !listed.contains_key(p.as_str()));
    extra.map_or(Ok(()), |path| Err(refused(object(path), "not named in SHA256SUMS")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest::for_this_node("test").unwrap()
    }

    #[test]
    fn a_manifest_reads_back_as_written() {
        let manifest = manifest();
        let json = manifest.to_json().unwrap();
        assert_eq!(Manifest::parse("m", &json).unwrap(), manifest);
        assert!(manifest.kernel.starts_with(|c: char| c.is_ascii_digit()));
        assert!(manifest.netns > 0);
    }

    #[test]
    fn a_later_format_is_refused_by_name_whatever_else_it_holds() {
        let error =
            Manifest::parse("m", br#"{"format": 2, "proxyshift": "9.0", "id": []}"#).unwrap_err();
        assert!(error.cause.contains("written by a newer proxyshift (9.0)"), "{error}");
        assert!(error.hint.unwrap().contains("later"));
        Manifest::parse("m", br#"{"format": 0}"#).unwrap_err();
    }

    #[test]
    fn an_identifier_cannot_be_a_path_or_a_word() {
        assert!(is_id(&clock::new_id()));
        for bad in ["", "latest", ".hidden", "../a", "a/b", "-x"] {
            assert!(!is_id(bad), "{bad}");
        }
        let bad = Manifest { id: "../../etc".into(), ..manifest() };
        Manifest::parse("m", &bad.to_json().unwrap()).unwrap_err();
    }

    #[test]
    fn a_manifest_of_an_archive_has_the_form_of_ours() {
        manifest().check_form("m").unwrap();
        let long = || "x".repeat(LONGEST_TEXT + 1);
        let new = || Manifest { id: clock::new_id(), ..manifest() };
        for bad in [
            Manifest { id: "z0-zz".into(), ..new() },
            Manifest { id: "imported.json".into(), ..new() },
            Manifest { id: "20261121".into(), ..new() },
            Manifest { id: "20261121T201502Z-ABCDEF".into(), ..new() },
            Manifest { time: "yesterday".into(), ..new() },
            Manifest { node: long(), ..new() },
            Manifest { why: long(), ..new() },
        ] {
            let error = bad.check_form("m").unwrap_err();
            assert!(error.to_string().len() < 300, "{error}");
        }
    }

    #[test]
    fn the_checksum_of_nothing_is_the_known_one() {
        let tree = Tree::from([("a b".to_owned(), Vec::new())]);
        assert_eq!(
            checksums(&tree),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a b\n"
        );
    }

    #[test]
    fn checksums_name_what_is_wrong() {
        let good = Tree::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let sums = checksums(&good);
        let cause = |sums: &str, change: &dyn Fn(&mut Tree)| {
            let mut tree = good.clone();
            tree.insert(SHA256SUMS.into(), sums.into());
            change(&mut tree);
            verify_checksums("s", &tree).map_or_else(|e| e.to_string(), |()| "fine".into())
        };
        assert_eq!(cause(&sums, &|_| {}), "fine");
        assert!(cause(&sums, &|t| drop(t.remove("a"))).starts_with("s/a: named in"));
        assert!(
            cause(&sums, &|t| t.get_mut("b").unwrap().push(0)).starts_with("s/b: its checksum")
        );
        assert!(
            cause(&sums, &|t| drop(t.insert("c".into(), vec![]))).starts_with("s/c: not named")
        );
        assert!(cause(&sums, &|t| drop(t.remove(SHA256SUMS))).ends_with("missing"));
        assert!(cause(sums.trim_end(), &|_| {}).contains("cut off"));
        assert!(cause(&format!("{sums}{sums}"), &|_| {}).contains("twice"));
        assert!(cause("x\n", &|_| {}).contains("line 1"));
        assert!(cause(&sums.replace("  a", "  ../a"), &|_| {}).contains("climbs out"));
        assert!(cause(&sums.replace("  a", "  /a"), &|_| {}).contains("absolute"));
    }
}
