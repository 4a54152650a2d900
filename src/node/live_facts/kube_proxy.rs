//! Finds the tools in the root of the kube-proxy process, and the complaints in kube-proxy's log.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::node::command::TRUSTED_PATH;
use crate::node::config_files::resolve;
use crate::state::NodeState;
use crate::state::kube_proxy::Instances;
use crate::state::tools::{InstalledTool, ToolList};

/// The programs that kube-proxy runs.
const PROGRAMS: [&str; 5] = ["iptables", "nft", "ipset", "conntrack", "modprobe"];

/// Phrases with which kube-proxy's log reports a missing tool or kernel module.
const COMPLAINTS: [&str; 5] = [
    "executable file not found in $PATH",
    "required kernel modules are not loaded",
    "Can't use the IPVS proxier",
    "IPVS proxier will not be used",
    "can't use ipset",
];

/// How many bytes at the end of a log file are read.
const LOG: u64 = 256 << 10;

/// What the file system root of the kube-proxy process holds.
#[derive(Debug, Default)]
pub(super) struct ProxyRoot {
    pub(super) tools: Option<ToolList>,
    pub(super) root: Option<String>,
}

/// Finds the tools in the root of the only kube-proxy process; empty if there is no single process
/// or its root cannot be read.
pub(super) fn observe_root(state: &NodeState) -> ProxyRoot {
    let instances = Instances::of(state.processes.as_deref().unwrap_or_default());
    let (Some(process), Some(tools)) = (instances.one(), &state.tools) else {
        return ProxyRoot::default();
    };
    let root = format!("/proc/{}/root", process.pid);
    // The path ends with a slash, so that the link `root` is followed.
    let file = |path: &str| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
    match (file(&format!("{root}/")), file("/")) {
        (Some(theirs), Some(ours)) if theirs == ours => {
            ProxyRoot { tools: Some(tools.clone()), root: None }
        }
        (Some(_), _) => {
            let path =
                path_of(&fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default());
            let tools = below(Path::new(&root), &path, &tools.kernel);
            ProxyRoot { tools: Some(tools), root: Some(root) }
        }
        (None, _) => ProxyRoot::default(),
    }
}

/// The value of `PATH` in the text of /proc/PID/environ; [`TRUSTED_PATH`] if it is not set.
fn path_of(environ: &[u8]) -> String {
    let environ = String::from_utf8_lossy(environ);
    let path = environ.split('\0').find_map(|variable| variable.strip_prefix("PATH="));
    path.unwrap_or(TRUSTED_PATH).to_owned()
}

/// The programs in the directories of `path` below `root`, each with the version from that root's
/// package lists.
fn below(root: &Path, path: &str, kernel: &str) -> ToolList {
    let tool = |name: &str| {
        let paths = path.split(':').map(|directory| format!("{directory}/{name}"));
        let runs = |path: &String| {
            resolve(root, path)
                .and_then(fs::metadata)
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        };
        match { paths }.find(runs) {
            Some(path) => {
                InstalledTool::found(name, &path, &version(root, name).unwrap_or_default())
            }
            None => InstalledTool::missing(name),
        }
    };
    ToolList { kernel: kernel.to_owned(), tools: PROGRAMS.into_iter().map(tool).collect() }
}

/// The version of the package that has `program`, from the package list in the image below `root`:
/// dpkg's (in images without a package manager, one file per package) or apk's. rpm's list is a
/// database, which is not read.
fn version(root: &Path, program: &str) -> Option<String> {
    let text = |path: &str| fs::read_to_string(resolve(root, path).ok()?).ok();
    let debian = if program == "nft" { "nftables" } else { program };
    let lists = [&format!("/var/lib/dpkg/status.d/{debian}"), "/var/lib/dpkg/status"];
    let mut of_dpkg = lists.into_iter().filter_map(text);
    if let Some(version) = of_dpkg.find_map(|text| package_version(&text, debian)) {
        return Some(format!("package {debian} {version}"));
    }
    let alpine = if program == "conntrack" { "conntrack-tools" } else { debian };
    let version = apk_version(&text("/lib/apk/db/installed")?, alpine)?;
    Some(format!("package {alpine} {version}"))
}

/// The version of `package` in apk's list of installed packages.
fn apk_version(installed: &str, package: &str) -> Option<String> {
    let mut paragraphs = installed.split("\n\n");
    let of = |p: &&str| p.lines().any(|l| l.strip_prefix("P:") == Some(package));
    paragraphs.find(of)?.lines().find_map(|l| l.strip_prefix("V:")).map(str::to_owned)
}

/// The version of `package` in dpkg's list of installed packages.
fn package_version(status: &str, package: &str) -> Option<String> {
    let mut paragraphs = status.split("\n\n");
    let of = |p: &&str| p.lines().any(|l| l.strip_prefix("Package: ") == Some(package));
    let version = paragraphs.find(of)?.lines().find_map(|l| l.strip_prefix("Version: "))?;
    // The version without its epoch (`1:`), which is not part of the program's version.
    Some(version.split_once(':').map_or(version, |(_, v)| v).to_owned())
}

/// For each of kube-proxy's log files, the last line with each phrase about a missing tool or
/// kernel module.
pub(super) fn complaints() -> Vec<String> {
    logs().iter().flat_map(|path| complaints_of(path, &tail(path))).collect()
}

fn complaints_of(path: &Path, text: &str) -> Vec<String> {
    let last = |what: &&str| text.lines().rfind(|l| l.contains(what));
    let lines = COMPLAINTS.iter().filter_map(last);
    lines.map(|line| format!("{}: {line}", path.display())).collect()
}

/// The files that may hold kube-proxy's log: /var/log/kube-proxy.log of a service, and the newest
/// log file of each kube-proxy pod.
fn logs() -> Vec<PathBuf> {
    let mut logs = vec![PathBuf::from("/var/log/kube-proxy.log")];
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    for pod in entries(Path::new("/var/log/pods")) {
        if pod.file_name().to_string_lossy().starts_with("kube-system_kube-proxy-") {
            let number = |p: &PathBuf| p.file_stem()?.to_str()?.parse::<u32>().ok();
            let files = entries(&pod.path().join("kube-proxy")).map(|e| e.path());
            logs.extend(files.filter(|p| number(p).is_some()).max_by_key(number));
        }
    }
    logs
}

/// The last [`LOG`] bytes of a file as text; empty if the file cannot be read.
fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG)))?;
        let mut bytes = Vec::new();
        file.take(LOG).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn programs_of_another_root_are_found_through_its_own_links_and_not_run() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in ["usr/sbin", "etc/alternatives", "var/lib/dpkg/status.d"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        let program = |path: &str, mode| {
            fs::write(at(path), "#!/bin/sh\ntouch /tmp/never\n").unwrap();
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        program("usr/sbin/xtables-nft-multi", 0o755);
        program("usr/sbin/ipset", 0o644);
        symlink("/etc/alternatives/iptables", at("usr/sbin/iptables")).unwrap();
        symlink("/usr/sbin/xtables-nft-multi", at("etc/alternatives/iptables")).unwrap();
        // The link's target exists on this host, but not below the test's root.
        symlink("/usr/bin/env", at("usr/sbin/nft")).unwrap();
        let status = "Package: iptables\nVersion: 1:1.8.9-2\n";
        fs::write(at("var/lib/dpkg/status.d/iptables"), status).unwrap();
        let tools = below(root.path(), TRUSTED_PATH, "6.1.0");
        let path = |name: &str| tools.get(name).unwrap().path.clone();
        assert_eq!(path("iptables").as_deref(), Some("/usr/sbin/iptables"));
        let version = tools.get("iptables").unwrap().version().unwrap();
        assert_eq!(version.to_string(), "1.8.9");
        assert_eq!((path("ipset"), path("nft"), path("conntrack")), (None, None, None));

        let own = path_of(b"HOME=/root\0PATH=/opt/bin:/usr/sbin\0");
        fs::create_dir_all(at("opt/bin")).unwrap();
        program("opt/bin/ipset", 0o755);
        let tools = below(root.path(), &own, "6.1.0");
        assert_eq!(tools.get("ipset").unwrap().path.as_deref(), Some("/opt/bin/ipset"));
        assert_eq!(path_of(b"HOME=/root\0"), TRUSTED_PATH);
    }

    #[test]
    fn alpine_versions_are_read_and_rpm_ones_are_not() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        for directory in ["sbin", "lib/apk/db", "var/lib/rpm"] {
            fs::create_dir_all(at(directory)).unwrap();
        }
        for name in ["iptables", "nft", "ipset", "conntrack"] {
            fs::write(at(&format!("sbin/{name}")), "").unwrap();
            let runs = fs::Permissions::from_mode(0o755);
            fs::set_permissions(at(&format!("sbin/{name}")), runs).unwrap();
        }
        fs::write(at("var/lib/rpm/rpmdb.sqlite"), "SQLite format 3\0").unwrap();
        let of = |tools: &ToolList, name: &str| {
            tools.get(name).unwrap().version().map(|v| v.to_string())
        };
        let unknown = below(root.path(), TRUSTED_PATH, "6.1.0");
        assert_eq!((of(&unknown, "iptables"), of(&unknown, "nft")), (None, None));

        let installed = "C:Q1x=\nP:iptables-doc\nV:0.1-r0\nF:sbin\n\nC:Q1y=\nP:iptables\n\
            V:1.8.10-r3\nA:x86_64\n\nP:nftables\nV:1.0.9-r2\n\nP:conntrack-tools\nV:1.4.8-r0\n\n";
        fs::write(at("lib/apk/db/installed"), installed).unwrap();
        let tools = below(root.path(), TRUSTED_PATH, "6.1.0");
        assert_eq!(of(&tools, "iptables").as_deref(), Some("1.8.10"));
        assert_eq!(of(&tools, "nft").as_deref(), Some("1.0.9"));
        assert_eq!(of(&tools, "conntrack").as_deref(), Some("1.4.8"));
        assert_eq!(of(&tools, "ipset"), None, "no package has it");
    }

    #[test]
    fn a_version_is_of_its_own_paragraph() {
        let status = "Package: ip\nVersion: 1\n\nPackage: ipset\nVersion: 7.17-1\n\nPackage: x\n";
        assert_eq!(package_version(status, "ipset").as_deref(), Some("7.17-1"));
        assert_eq!(package_version(status, "x"), None);
    }

    #[test]
    fn the_last_complaint_of_each_kind_is_found() {
        let text = "a: executable file not found in $PATH\nfine\n\
                    b: executable file not found in $PATH\n";
        let found = complaints_of(Path::new("/l"), text);
        assert_eq!(found, ["/l: b: executable file not found in $PATH"]);
    }

    #[test]
    fn without_kube_proxy_nothing_is_found() {
        let found = observe_root(&NodeState::default());
        assert!(found.tools.is_none() && found.root.is_none());
    }
}
