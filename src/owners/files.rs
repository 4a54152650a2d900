//! The catalogue files of `playbooks/owners`, which are built into the program, and the process
//! names that these files list.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::yaml;

/// The name and text of every catalogue file, sorted by name. `build.rs` lists them.
pub(crate) static FILES: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/owners.rs"));

/// The part of a catalogue file that lists process names.
#[derive(Deserialize)]
struct ComponentFile {
    #[serde(default)]
    alive: ProcessNames,
}

#[derive(Default, Deserialize)]
struct ProcessNames {
    #[serde(default)]
    processes: Vec<String>,
}

/// The process names that show that some component is alive.
///
/// # Errors
/// [`crate::error::Kind::Parse`] for a catalogue file of another form. A test shows that the
/// built-in files give no error.
pub fn known_processes() -> Result<&'static BTreeSet<String>> {
    static NAMES: LazyLock<Result<BTreeSet<String>>> = LazyLock::new(|| {
        let mut names = BTreeSet::new();
        for (file, text) in FILES {
            let component: ComponentFile = yaml::parse(&format!("owners/{file}.yaml"), text)?;
            names.extend(component.alive.processes);
        }
        Ok(names)
    });
    NAMES.as_ref().map_err(Error::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_folder() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/playbooks/owners");
        let name = |e: std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
        let mut there: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| name(e.unwrap())).collect();
        let listed: Vec<String> = FILES.iter().map(|(n, _)| format!("{n}.yaml")).collect();
        there.sort();
        assert_eq!(there, listed);
    }

    #[test]
    fn processes_come_from_every_file() {
        let names = known_processes().unwrap();
        for name in ["kube-proxy", "k3s", "speaker", "calico-node", "ztunnel"] {
            assert!(names.contains(name), "{name}");
        }
        // The kernel cuts a command name to 15 bytes, so the first 15 bytes of each name must be
        // unique.
        let short: BTreeSet<&str> = names.iter().map(|n| n.get(..15).unwrap_or(n)).collect();
        assert_eq!(short.len(), names.len());
    }
}
