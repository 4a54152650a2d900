//! The script `restore.sh` in each snapshot: the last resort, which works without proxyshift.

use super::manifest::{Manifest, sha256};
use crate::visible::is_hidden;

/// The part of the script that is the same in every snapshot. In front of this part, [`render`]
/// writes the variables that the part uses.
const BODY: &str = include_str!("restore.sh");

/// The SHA-256 of every [`BODY`] that a proxyshift wrote, the present one last. A snapshot of an
/// earlier version keeps the script of that version, which is as good.
const BODIES: [&str; 1] = ["255d68d19bef447f89fd3d666f01a199516f72d1c8debb1e988aff72a7d77c43"];

/// The script that restores the snapshot of `manifest`. The script needs only POSIX sh and the
/// usual tools. If a tool is missing, the script's error names the tool.
pub fn render(manifest: &Manifest) -> String {
    head(manifest) + BODY
}

/// Whether `script` is what some version of proxyshift wrote for the snapshot of `manifest`. Root
/// may run the script of a snapshot, so checksums that somebody else made do not vouch for it.
pub(super) fn is_rendering(script: &[u8], manifest: &Manifest) -> bool {
    let body = script.strip_prefix(head(manifest).as_bytes());
    body.is_some_and(|body| BODIES.contains(&sha256(body).as_str()))
}

/// The beginning of the script: what it is, and the variables.
fn head(manifest: &Manifest) -> String {
    let Manifest { id, node, machine_id, boot_id, netns, time, why, .. } = manifest;
    let netns = netns.to_string();
    let mut script = String::from(
        "#!/bin/sh\n\
         # Puts the rules of this snapshot back, by hand, when nothing else is left.\n\
         # `sh restore.sh --help` says how.\n\n",
    );
    let variables = [
        ("id", id),
        ("node", node),
        ("machine_id", machine_id),
        ("boot_id", boot_id),
        ("netns", &netns),
        ("taken", time),
        ("why", why),
    ];
    for (name, value) in variables {
        script.push_str(&format!("{name}={}\n", quote(value)));
    }
    script
}

/// `text` in quotes, as one word of a shell command. Hidden characters become spaces.
fn quote(text: &str) -> String {
    let plain: String = text.chars().map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    format!("'{}'", plain.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_can_read_it_with_any_manifest() {
        let mut manifest = Manifest::for_this_node("it's `this` $(that)\n\"and\" more").unwrap();
        manifest.node = "'; exit 7; '".into();
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("restore.sh");
        std::fs::write(&path, render(&manifest)).unwrap();
        for shell in ["sh", "dash", "bash"].into_iter().filter(|s| which::which(s).is_ok()) {
            let sh = |args: &[&str]| {
                std::process::Command::new(shell).args(args).arg(&path).arg("--help").output()
            };
            assert!(sh(&["-n"]).unwrap().status.success(), "{shell}");
            let help = sh(&[]).unwrap();
            assert!(help.status.success(), "{shell}: {help:?}");
            assert!(String::from_utf8_lossy(&help.stdout).contains(&manifest.id));
        }
    }

    #[test]
    fn only_our_own_script_for_this_manifest_is_a_rendering() {
        let manifest = Manifest::for_this_node("test").unwrap();
        let script = render(&manifest);
        assert!(is_rendering(script.as_bytes(), &manifest), "add the new body to BODIES");
        assert_eq!(BODIES.last(), Some(&sha256(BODY.as_bytes()).as_str()), "the present one last");
        let other = Manifest { machine_id: "x".into(), ..manifest.clone() };
        assert!(!is_rendering(script.as_bytes(), &other));
        for bad in ["", "id >PWNED\n", &format!("{script}id\n"), &format!("id\n{script}")] {
            assert!(!is_rendering(bad.as_bytes(), &manifest), "{bad}");
        }
    }

    #[test]
    fn values_are_one_word() {
        assert_eq!(quote("it's\nso"), r"'it'\''s so'");
        assert_eq!(quote("a\u{1b}[2J\u{9b}\u{202e}\u{200b}z"), "'a [2J   z'");
    }
}
