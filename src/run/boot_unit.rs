//! The unit that undoes a run after a reboot. It is there from the moment a run is armed until it is
//! resolved.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::here::Netns;

const UNIT: &str = "proxyshift-rollback.service";
const UNITS: &str = "/etc/systemd/system";
const WANTS: &str = "multi-user.target.wants";

/// Whether systemd runs this node, so that a unit is of use.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir() && Netns::current().is_ok_and(|n| n.of_init)
}

/// Writes the unit, which starts `program` (the copy in the run's folder) with `store`.
///
/// # Errors
/// When a file cannot be written.
pub fn write(program: &Path, store: &Path) -> Result<()> {
    write_in(Path::new(UNITS), program, store)
}

/// Takes the unit away again, if it is there.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove() -> Result<()> {
    remove_in(Path::new(UNITS))
}

fn paths(units: &Path) -> [PathBuf; 2] {
    [units.join(WANTS).join(UNIT), units.join(UNIT)]
}

fn write_in(units: &Path, program: &Path, store: &Path) -> Result<()> {
    let [wanted, unit] = paths(units);
    let text = format!(
        "# Written by proxyshift for a run that is not confirmed yet; it goes with the run.\n\
         [Unit]\n\
         Description=Undo what an unconfirmed proxyshift run changed before a reboot\n\
         After=local-fs.target network.target\n\
         Before=kubelet.service\n\n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart=\"{}\" --progress plain --store \"{}\" rollback\n\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        program.display(),
        store.display(),
    );
    let folder = units.join(WANTS);
    fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, &e))?;
    fs::write(&unit, text).map_err(|e| Error::io(&unit, &e))?;
    match std::os::unix::fs::symlink(&unit, &wanted) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io(&wanted, &e)),
        _ => {}
    }
    for dir in [&folder, units] {
        let synced = fs::File::open(dir).and_then(|d| d.sync_all());
        synced.map_err(|e| Error::io(dir, &e))?;
    }
    let synced = fs::File::open(&unit).and_then(|f| f.sync_all());
    synced.map_err(|e| Error::io(&unit, &e))
}

fn remove_in(units: &Path) -> Result<()> {
    for path in paths(units) {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::io(&path, &e)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_wanted_at_boot_until_it_is_removed() {
        let tmp = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            write_in(tmp.path(), Path::new("/s/runs/1/proxyshift"), Path::new("/s")).unwrap();
        }
        let [wanted, unit] = paths(tmp.path());
        assert_eq!(fs::canonicalize(wanted).unwrap(), unit.canonicalize().unwrap());
        let text = fs::read_to_string(&unit).unwrap();
        assert!(text.contains(
            "ExecStart=\"/s/runs/1/proxyshift\" --progress plain --store \"/s\" rollback\n"
        ));
        for _ in 0..2 {
            remove_in(tmp.path()).unwrap();
        }
        assert!(!unit.exists() && !tmp.path().join(WANTS).join(UNIT).is_symlink());
    }
}
