//! A journal with a copy in memory: whatever becomes of one of the two files, all lines that were
//! written are read back.

use std::fs;
use std::path::{Path, PathBuf};

use proxyshift::error::Kind;
use proxyshift::store::journal::{self, JOURNAL, Journal};
use proxyshift::store::run_folder::RunFolder;
use serde_json::Value;

use super::record;

/// A run's folder with a copy.
struct Folders {
    _tmp: tempfile::TempDir,
    disk: PathBuf,
    memory: PathBuf,
    folder: RunFolder,
}

fn folders() -> Folders {
    let tmp = tempfile::tempdir().unwrap();
    let [disk, memory] = ["disk/run", "memory/run"].map(|name| tmp.path().join(name));
    for dir in [&disk, &memory] {
        fs::create_dir_all(dir).unwrap();
    }
    let folder = RunFolder::new(disk.clone(), Some(memory.clone()));
    Folders { _tmp: tmp, disk, memory, folder }
}

fn written(folder: &RunFolder, lines: u32) -> Journal {
    let mut journal = Journal::create(folder, 64 * 1024).unwrap();
    for step in 0..lines {
        journal.append(record(step)).unwrap();
    }
    journal
}

fn steps(folder: &RunFolder) -> Vec<u32> {
    journal::read::<Value>(folder).unwrap().iter().map(|line| line.step).collect()
}

fn text(dir: &Path) -> Vec<u8> {
    fs::read(dir.join(JOURNAL)).unwrap()
}

/// The first `lines` lines.
fn first(journal: &[u8], lines: usize) -> Vec<u8> {
    journal.split_inclusive(|byte| *byte == b'\n').take(lines).collect::<Vec<_>>().concat()
}

#[test]
fn both_files_get_each_line_and_one_is_enough() {
    let Folders { disk, memory, folder, .. } = &folders();
    written(folder, 3);
    let whole = text(disk);
    assert_eq!(text(memory), whole);
    for (lost, kept) in [(disk, memory), (memory, disk)] {
        for damaged in [&b""[..], &whole[..whole.len() / 2], &[b'x'; 9000]] {
            fs::write(lost.join(JOURNAL), damaged).unwrap();
            assert_eq!(steps(folder), [0, 1, 2]);
            // Who goes on with the journal mends the other file.
            let (mut journal, _) = Journal::open::<Value>(folder).unwrap();
            journal.append(record(3)).unwrap();
            assert_eq!(steps(folder), [0, 1, 2, 3]);
            assert_eq!(text(lost), text(kept));
            for dir in [lost, kept] {
                fs::write(dir.join(JOURNAL), &whole).unwrap();
            }
        }
        fs::remove_file(lost.join(JOURNAL)).unwrap();
        assert_eq!(steps(folder), [0, 1, 2]);
        fs::write(lost.join(JOURNAL), &whole).unwrap();
    }
}

#[test]
fn the_file_with_more_lines_counts_and_the_other_catches_up() {
    let Folders { disk, memory, folder, .. } = &folders();
    written(folder, 4);
    let whole = text(disk);
    for behind in [disk, memory] {
        for lines in 0..4 {
            // The next line was torn.
            let torn = [first(&whole, lines), b"{\"v\":1,".to_vec()].concat();
            for begun in [first(&whole, lines), torn] {
                fs::write(behind.join(JOURNAL), begun).unwrap();
                assert_eq!(steps(folder), [0, 1, 2, 3], "{lines}");
                let (mut journal, _) = Journal::open::<Value>(folder).unwrap();
                journal.append(record(4)).unwrap();
                for dir in [disk, memory] {
                    let alone = RunFolder::new(dir.clone(), None);
                    assert_eq!(steps(&alone), [0, 1, 2, 3, 4], "{lines}");
                }
                for dir in [disk, memory] {
                    fs::write(dir.join(JOURNAL), &whole).unwrap();
                }
            }
        }
    }
}

#[test]
fn a_disk_that_fails_stops_a_run_and_not_its_undo() {
    let Folders { disk, memory, folder, .. } = &folders();
    drop(written(folder, 2));
    fs::remove_file(disk.join(JOURNAL)).unwrap();
    let (mut journal, lines) = Journal::open::<Value>(folder).unwrap();
    assert_eq!(lines.len(), 2);
    assert_eq!(journal.append(record(2)).unwrap_err().kind, Kind::NotFound);
    assert_eq!(steps(folder), [0, 1]);
    journal.undoes();
    journal.append(record(3)).unwrap();
    assert!(journal.failure().is_some());
    assert_eq!(steps(folder), [0, 1, 3]);
    // Without any file the undo goes on as well: it finds out from the kernel what is left to do.
    drop(journal);
    let (mut journal, _) = Journal::open::<Value>(folder).unwrap();
    journal.undoes();
    fs::remove_dir_all(memory).unwrap();
    for step in 4..6 {
        journal.append(record(step)).unwrap();
    }
}

#[test]
fn two_files_that_both_lost_lines_prove_nothing() {
    let Folders { disk, memory, folder, .. } = &folders();
    written(folder, 3);
    let whole = text(disk);
    let mut other = whole.clone();
    other[30] ^= 1;
    for dir in [disk, memory] {
        fs::write(dir.join(JOURNAL), &other).unwrap();
    }
    assert_eq!(journal::read::<Value>(folder).unwrap_err().kind, Kind::Store);
    assert_eq!(Journal::open::<Value>(folder).unwrap_err().kind, Kind::Store);
}
