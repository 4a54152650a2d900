//! A snapshot's manifest, and its checksums.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{Tree, check_path, refused};
use crate::clock;
use crate::error::{Error, Result};
use crate::runtime::Netns;
use crate::state::{Backend, Files, RulesetId};

/// The manifest's name in a snapshot.
pub const MANIFEST: &str = "manifest.json";
/// The checksums' name in a snapshot, in the format of coreutils.
pub const SHA256SUMS: &str = "SHA256SUMS";
/// The script's name in a snapshot.
pub const RESTORE: &str = "restore.sh";

/// The version of the snapshot format.
///
/// Raised when an older proxyshift would misread a snapshot. A field or file that an older one may
/// ignore does not raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Format(u32);

impl Format {
    /// The version that this proxyshift writes.
    pub const CURRENT: Format = Format(1);

    /// Whether this proxyshift can read it: its own version, and every earlier one.
    pub fn is_readable(self) -> bool {
        (1..=Format::CURRENT.0).contains(&self.0)
    }
}

/// The connection limits of an ipvs real server; `ipvsadm --save` omits them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsThreshold {
    /// The virtual server, in the spelling of `ipvsadm --save`: `-t 10.96.0.1:443`.
    pub service: String,
    /// The real server: `192.168.66.5:6443`.
    pub server: String,
    /// The number of connections above which it gets no new ones; 0 is no limit.
    pub upper: u32,
    /// The number of connections below which it gets new ones again.
    pub lower: u32,
}

/// `manifest.json`: the origin, time and reason of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the format.
    pub format: Format,
    /// The version of the proxyshift that wrote it.
    pub proxyshift: String,
    /// The snapshot's identifier, its directory's name.
    pub id: String,
    /// The node's host name.
    pub node: String,
    /// `/etc/machine-id`; empty without one.
    pub machine_id: String,
    /// The kernel's identifier of the boot.
    pub boot_id: String,
    /// When it was captured: `2026-11-21T20:15:02Z`.
    pub time: String,
    /// The kernel's release.
    pub kernel: String,
    /// The backends with rules in it.
    pub backends: Vec<Backend>,
    /// The reason, in a few words.
    pub why: String,
    /// The inode of its network namespace.
    pub netns: u64,
    /// The connection limits of ipvs real servers.
    #[serde(default)]
    pub ipvs_thresholds: Vec<IpvsThreshold>,
}

impl Manifest {
    /// The manifest of a snapshot of this node, now. The caller and [`super::Store::create`] fill
    /// in the backends and the ipvs thresholds.
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

    /// Reads a manifest; `object` names it in errors.
    ///
    /// # Errors
    /// [`crate::error::Kind::SnapshotRefused`] for a later format, or anything but a manifest.
    pub fn parse(object: &str, json: &[u8]) -> Result<Manifest> {
        check_format(object, json)?;
        let manifest: Manifest = serde_json::from_slice(json).map_err(|e| refused(object, e))?;
        if !is_id(&manifest.id) {
            return Err(refused(object, format!("`{}` is no identifier", manifest.id)));
        }
        Ok(manifest)
    }

    /// The bytes of `manifest.json`.
    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec_pretty(self).map_err(|e| {
            Error::new(crate::error::Kind::Unexpected, MANIFEST, format!("cannot be written: {e}"))
        })?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Refuses a later format before the rest is parsed, which may look quite different.
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
    let ours = Format::CURRENT.0;
    Err(refused(
        object,
        format!("written by a newer proxyshift ({proxyshift}): format {theirs}, ours is {ours}"),
    )
    .hint("use the proxyshift that wrote it, or a later one"))
}

/// Whether `id` is a valid name of a snapshot's directory, and no word of the command line.
pub(super) fn is_id(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= 128
        && id != "latest"
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The backends that have a file among `files`.
pub fn backends_of(files: &Files) -> Vec<Backend> {
    let has = |backend: &Backend| {
        RulesetId::ALL.iter().any(|id| id.backend == *backend && files.contains_key(&id.file()))
    };
    [Backend::Legacy, Backend::Nft].into_iter().filter(has).collect()
}

/// The text of `SHA256SUMS` for `tree`.
pub(super) fn checksums<P: Display, B: AsRef<[u8]>>(tree: &BTreeMap<P, B>) -> String {
    let mut text = String::new();
    for (path, bytes) in tree {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {path}", sha256(bytes.as_ref()));
    }
    text
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Verifies that `SHA256SUMS` names exactly the other files of `tree`, with their checksums.
///
/// # Errors
/// [`crate::error::Kind::SnapshotRefused`] with the first file that differs.
pub(super) fn verify_checksums(dir: &str, tree: &Tree) -> Result<()> {
    let object = |path: &str| format!("{dir}/{path}");
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
        check_path(path).map_err(|why| damaged(format!("line {number}: {why}: {path}")))?;
        if listed.insert(path, sum).is_some() {
            return Err(damaged(format!("line {number}: {path} is named twice")));
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
