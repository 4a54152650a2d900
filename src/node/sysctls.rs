//! Reads from /proc/sys the sysctls that matter for services and for address translation.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Kind, Result};

const ROOT: &str = "/proc/sys";

/// Directories of which every sysctl is captured.
const TREES: &[&str] = &["net/bridge", "net/ipv4/vs", "net/netfilter"];

/// Single sysctls that are captured.
const VALUES: &[&str] = &["net/ipv6/conf/all/forwarding", "net/nf_conntrack_max"];

/// Sysctls that are captured for each link, and for `all` and `default`.
const PER_LINK: &[&str] = &["arp_announce", "arp_ignore", "route_localnet", "rp_filter"];

/// The text of the capture's `sysctl.txt`: lines of `name = value`, as `sysctl` prints them, sorted
/// by name.
pub fn read() -> Result<String> {
    let mut paths = Vec::new();
    for tree in TREES {
        walk(tree, &mut paths)?;
    }
    paths.extend(VALUES.iter().map(|&v| v.to_owned()));
    // ip_forward itself, and those whose names begin with it, such as ip_forward_use_pmtu.
    let ipv4 = names("net/ipv4")?.into_iter().filter(|(n, _)| n.starts_with("ip_forward"));
    paths.extend(ipv4.map(|(n, _)| format!("net/ipv4/{n}")));
    for (link, _) in names("net/ipv4/conf")? {
        paths.extend(PER_LINK.iter().map(|value| format!("net/ipv4/conf/{link}/{value}")));
    }
    let mut lines = Vec::new();
    for path in paths {
        let Some(value) = value(&path)? else { continue };
        let name = name(&path);
        lines.extend(value.lines().map(|line| format!("{name} = {line}\n")));
    }
    lines.sort();
    Ok(lines.concat())
}

/// Turns the path of a sysctl into its name, or a name into a path, by swapping `/` and `.`. A dot
/// in the name of a link, such as `eth0.7`, is a `/` in the name of the sysctl.
fn name(path: &str) -> String {
    path.chars()
        .map(|c| match c {
            '/' => '.',
            '.' => '/',
            c => c,
        })
        .collect()
}

/// Appends the files below `directory` to `paths`, relative to /proc/sys.
fn walk(directory: &str, paths: &mut Vec<String>) -> Result<()> {
    for (name, is_directory) in names(directory)? {
        let path = format!("{directory}/{name}");
        if is_directory {
            walk(&path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// The names of the entries of a directory, each with whether the entry is a directory; empty for a
/// missing directory.
fn names(directory: &str) -> Result<Vec<(String, bool)>> {
    let path = Path::new(ROOT).join(directory);
    let entries = match fs::read_dir(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| Error::io(&path, &e))?,
    };
    entries
        .map(|entry| {
            let entry = entry?;
            let is_directory = entry.file_type()?.is_dir();
            Ok((entry.file_name().to_string_lossy().into_owned(), is_directory))
        })
        .collect::<std::io::Result<_>>()
        .map_err(|e| Error::io(&path, &e))
}

/// The value of the sysctl with this path; none if it is write-only, or disappeared together with
/// its link.
fn value(path: &str) -> Result<Option<String>> {
    let path = Path::new(ROOT).join(path);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(None),
        Err(e) => Err(Error::io(&path, &e)),
    }
}

/// The value of the sysctl with this name (`net.ipv4.vs.conntrack`; a dot in the name of a link is
/// written `/`). None if neither the kernel nor a module that is loaded now has the sysctl.
///
/// # Errors
/// [`Kind::Usage`] if `name` is not the name of a sysctl, otherwise the system's error.
pub fn value_of(name: &str) -> Result<Option<String>> {
    let path = path(name)?;
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&path, &e)),
    }
}

/// The file in /proc/sys of the sysctl with this name.
///
/// # Errors
/// [`Kind::Usage`] if `name` is not the name of a sysctl.
pub(crate) fn path(name: &str) -> Result<PathBuf> {
    let below = PathBuf::from(self::name(name));
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.is_empty() {
        return Err(Error::new(Kind::Usage, name, "not the name of a sysctl"));
    }
    Ok(Path::new(ROOT).join(below))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::tools::{Tool, Tools};

    #[test]
    fn dots_in_a_link_name_become_slashes() {
        assert_eq!(name("net/ipv4/conf/eth0.7/rp_filter"), "net.ipv4.conf.eth0/7.rp_filter");
    }

    #[test]
    fn only_names_below_proc_sys_are_names() {
        let at = |name| path(name).map(|p| p.display().to_string());
        assert_eq!(at("net.ipv4.vs.conntrack").unwrap(), "/proc/sys/net/ipv4/vs/conntrack");
        assert_eq!(
            at("net.ipv4.conf.eth0/7.rp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.7/rp_filter"
        );
        for name in ["", ".etc.passwd", "net.//.//.x", "//.x"] {
            assert_eq!(at(name).unwrap_err().kind, Kind::Usage, "{name}");
        }
    }

    #[test]
    fn reads_what_sysctl_prints() {
        let text = read().unwrap();
        let out = Tools::find().command(Tool::Sysctl).unwrap().args(["-a"]).run();
        let all = out.unwrap().stdout;
        for line in text.lines().filter(|l| !l.contains("_count")) {
            assert!(all.lines().any(|l| l == line), "{line}");
        }
        assert!(text.lines().any(|l| l.starts_with("net.ipv4.ip_forward = ")), "{text}");
        assert!(text.lines().any(|l| l.starts_with("net.ipv4.conf.lo.route_localnet = ")));
        assert!(text.lines().is_sorted());
    }

    #[test]
    fn has_every_name_of_a_captured_node_of_this_kernel() {
        let text = read().unwrap();
        let captured =
            std::fs::read_to_string("snapshots/docker-iptables-1.30/sysctl.txt").unwrap();
        let name = |l: &str| l.split(" = ").next().unwrap_or_default().to_owned();
        let ours: Vec<_> = text.lines().map(name).collect();
        let kernel_dependent =
            |n: &str| ["net.bridge", "net.netfilter", "net.nf_"].iter().any(|p| n.starts_with(p));
        for wanted in captured.lines().map(name) {
            if !kernel_dependent(&wanted) && !wanted.contains(".docker0.") {
                assert!(ours.contains(&wanted), "{wanted}");
            }
        }
    }
}
