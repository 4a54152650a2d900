//! Finds the units that systemd starts at boot, by the links that `systemctl enable` makes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The names of the links in every `*.wants` and `*.requires` directory below /etc/systemd/system;
/// none if that directory does not exist.
pub(super) fn enabled(root: &Path) -> Option<BTreeSet<String>> {
    let entries = fs::read_dir(root.join("etc/systemd/system")).ok()?;
    let wants = |name: &str| name.ends_with(".wants") || name.ends_with(".requires");
    let directories = entries.flatten().filter(|e| wants(&e.file_name().to_string_lossy()));
    let units = directories.flat_map(|d| fs::read_dir(d.path()).into_iter().flatten().flatten());
    Some(units.filter_map(|u| u.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_targets_are_enabled_units() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(enabled(root.path()), None);
        let wants = root.path().join("etc/systemd/system/multi-user.target.wants");
        fs::create_dir_all(&wants).unwrap();
        std::os::unix::fs::symlink("/nowhere", wants.join("ufw.service")).unwrap();
        fs::write(root.path().join("etc/systemd/system/ferm.service"), "").unwrap();
        assert_eq!(enabled(root.path()), Some(BTreeSet::from(["ufw.service".to_owned()])));
    }
}
