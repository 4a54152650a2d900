//! Archives of strangers, journals, and the build information of strangers' programs.
#![no_main]

use std::fs::{self, File};
use std::io::{Cursor, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::{Corpus, fuzz_target};
use proxyshift::node::build_info::kubernetes_version;
use proxyshift::run::stored::{parse_snapshot, reparses};
use proxyshift::store::Store;
use proxyshift::store::archive::export;
use proxyshift::store::journal;
use proxyshift::store::run_folder::RunFolder;
use proxyshift::store::snapshots::Snapshot;
use proxyshift_fuzz::{Input, bounded, parsed};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some(Input { kind, bytes }) = Input::of(input) else { return Corpus::Reject };
    let parts = || bytes.split(|byte| *byte == 0xff).collect::<Vec<_>>();
    match kind {
        b'z' => import(bytes),
        b't' => import(&packed(bytes)),
        b'e' => import(&packed(&entries(&parts()))),
        b's' => import(&packed(&entries(&snapshot(&parts())))),
        b'b' => program(bytes),
        b'j' => journal_of(bytes),
        _ => return Corpus::Reject,
    }
    Corpus::Keep
});

fn packed(tar: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(tar).and_then(|()| packed.finish()).expect("memory")
}

/// A tar archive of entries, each of two parts: its kind (a byte of the header) and name, and its
/// content. Its headers are whole, because nearly all others are refused for their checksum.
fn entries<P: AsRef<[u8]>>(parts: &[P]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in parts.chunks(2) {
        let [name, content @ ..] = entry else { continue };
        let Some((kind, name)) = name.as_ref().split_first() else { continue };
        let content = content.first().map_or(&[][..], AsRef::as_ref);
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_entry_type(EntryType::new(*kind));
        let field = &mut header.as_old_mut().name;
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name[..length]);
        header.set_cksum();
        builder.append(&header, content).expect("memory");
    }
    builder.into_inner().expect("memory")
}

/// The entries of a snapshot: a manifest, then pairs of path and content, all with the right
/// checksums.
fn snapshot(parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let [manifest, files @ ..] = parts else { return Vec::new() };
    let mut all = vec![(&b"manifest.json"[..], *manifest)];
    all.extend(files.chunks_exact(2).map(|file| (file[0], file[1])));
    let mut sums = Vec::new();
    for (path, content) in &all {
        for byte in Sha256::digest(content) {
            sums.extend(format!("{byte:02x}").bytes());
        }
        sums.extend([b"  ", *path, b"\n"].concat());
    }
    all.push((b"SHA256SUMS", &sums));
    all.iter().flat_map(|(path, content)| [[b"0s/", *path].concat(), content.to_vec()]).collect()
}

/// What is imported can be loaded, exported and imported elsewhere, and is the same there. Nothing is
/// written elsewhere, and nothing is left of what is refused.
fn import(archive: &[u8]) {
    let tmp = tempfile::tempdir().expect("a folder");
    let at = |name: &str| tmp.path().join(name);
    fs::write(at("a.tar.gz"), archive).expect("room");
    let store = Store::open(Some(&at("store"))).expect("a store");
    let result = store.import(&at("a.tar.gz"), &reparses);
    assert_eq!(names(tmp.path()), ["a.tar.gz", "store"]);
    let Some(imported) = parsed(result, &"x".repeat(archive.len())) else {
        assert!(!store.imported_dir().exists() || names(&store.imported_dir()).is_empty());
        assert!(names(&store.snapshots_dir()).is_empty());
        return;
    };
    assert_eq!(names(&store.imported_dir()), [imported.id.as_str()]);
    assert!(imported.imported().is_some());
    let loaded = Snapshot::load(&imported.dir).expect("what was imported");
    parse_snapshot(loaded.files.clone()).expect("what was imported");
    let again = store.import(&at("a.tar.gz"), &reparses).expect("again");
    assert_eq!(again, imported);
    export(&imported.dir, &at("b.tar.gz")).expect("what was imported");
    let other = Store::open(Some(&at("other"))).expect("a store");
    let there = other.import(&at("b.tar.gz"), &reparses).expect("what was exported");
    let there = Snapshot::load(&there.dir).expect("what was imported");
    assert_eq!((there.files, there.manifest), (loaded.files, loaded.manifest));
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn program(bytes: &[u8]) {
    if let Some(version) = kubernetes_version(Cursor::new(bytes)) {
        assert!(version.starts_with('v') && version.is_ascii());
        bounded(version.len(), bytes.len());
    }
}

fn journal_of(bytes: &[u8]) {
    let tmp = tempfile::tempdir().expect("a folder");
    let mut file = File::create(tmp.path().join("journal.jsonl")).expect("a file");
    file.write_all(bytes).expect("room");
    let folder = RunFolder::new(tmp.path().to_owned(), None);
    let read = journal::read::<serde_json::Value>(&folder);
    parsed(read, &"x".repeat(bytes.len()));
}
