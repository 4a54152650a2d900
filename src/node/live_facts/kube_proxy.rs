//! Finds the tools in the root of the kube-proxy process, and the complaints in kube-proxy's log.

use std::path::Path;

use crate::node::command::TRUSTED_PATH;
use crate::node::foreign::{Allowance, Root};
use crate::node::reading::{MemoryAnswer, MemoryReader};
use crate::node::trust::PinnedProcess;
use crate::state::NodeState;
use crate::state::kube_proxy::Instances;
use crate::state::kube_proxy::log::fatal_line;
use crate::state::tools::{InstalledTool, ToolList};

/// The programs that kube-proxy runs.
const PROGRAMS: [&str; 5] = ["iptables", "nft", "ipset", "conntrack", "modprobe"];

/// Phrases with which kube-proxy's log reports a missing tool or kernel module.
const COMPLAINTS: [&str; 6] = [
    "executable file not found in $PATH",
    "required kernel modules are not loaded",
    "Can't use the IPVS proxier",
    "can't use the IPVS proxier",
    "IPVS proxier will not be used",
    "can't use ipset",
];

/// How many bytes at the end of a log file are read.
const LOG: u64 = 256 << 10;

/// How many characters of a line are kept.
const LINE: usize = 300;

/// How many bytes of a package list are read. Debian's of a whole system has some 4 MiB.
const PACKAGES: u64 = 8 << 20;

/// How many directories of a PATH are searched.
const DIRECTORIES: usize = 32;

/// Where the logs of pods are.
const POD_LOGS: &str = "/var/log/pods";

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
    // The process may have ended, and its PID may be a stranger's by now.
    let Some(pinned) = PinnedProcess::open(process.pid).filter(|pinned| pinned.doubt().is_none())
    else {
        return ProxyRoot::default();
    };
    let Ok(root) = Root::of(&pinned) else { return ProxyRoot::default() };
    if Root::ours().is_ok_and(|ours| ours.is(&root)) {
        return ProxyRoot { tools: Some(tools.clone()), root: None };
    }
    let path = match MemoryReader::new(PinnedProcess::search_path).ask(pinned).1 {
        MemoryAnswer::Read(Some(path)) => path,
        MemoryAnswer::Read(None) | MemoryAnswer::Silence => TRUSTED_PATH.to_owned(),
    };
    let tools = below(&root, &path, &tools.kernel);
    ProxyRoot { tools: Some(tools), root: Some(format!("/proc/{}/root", process.pid)) }
}

/// The programs in the directories of `path` below `root`, each with the version from that root's
/// package lists. None of them is run.
fn below(root: &Root, path: &str, kernel: &str) -> ToolList {
    let allowance = Allowance::of_a_capture();
    let mut lists = PackageLists { root, allowance, dpkg: None, apk: None };
    let mut tool = |name: &str| {
        let paths =
            path.split(':').take(DIRECTORIES).map(|directory| format!("{directory}/{name}"));
        match { paths }.find(|path| root.is_program(path)) {
            Some(path) => {
                let version = lists.version(name).unwrap_or_default();
                InstalledTool::found(name, &path, &version)
            }
            None => InstalledTool::missing(name),
        }
    };
    let tools = PROGRAMS.into_iter().map(&mut tool).collect();
    ToolList { kernel: kernel.to_owned(), tools }
}

/// The package lists of an image, each read at most once.
struct PackageLists<'a> {
    root: &'a Root,
    allowance: Allowance,
    dpkg: Option<Option<String>>,
    apk: Option<Option<String>>,
}

impl PackageLists<'_> {
    /// The version of the package that has `program`: dpkg's (in images without a package manager,
    /// one file per package) or apk's. rpm's list is a database, which is not read.
    fn version(&mut self, program: &str) -> Option<String> {
        let PackageLists { root, allowance, dpkg, apk } = self;
        let mut text = |path: &str| root.text(path, PACKAGES, allowance).ok().flatten();
        let debian = if program == "nft" { "nftables" } else { program };
        let own = text(&format!("/var/lib/dpkg/status.d/{debian}"));
        let in_own = own.and_then(|text| package_version(&text, debian));
        let version = in_own.or_else(|| {
            let all = dpkg.get_or_insert_with(|| text("/var/lib/dpkg/status"));
            package_version(all.as_deref()?, debian)
        });
        if let Some(version) = version {
            return Some(format!("package {debian} {version}"));
        }
        let alpine = if program == "conntrack" { "conntrack-tools" } else { debian };
        let all = apk.get_or_insert_with(|| text("/lib/apk/db/installed"));
        let version = apk_version(all.as_deref()?, alpine)?;
        Some(format!("package {alpine} {version}"))
    }
}

/// The version of `package` in apk's list of installed packages.
pub fn apk_version(installed: &str, package: &str) -> Option<String> {
    let mut paragraphs = installed.split("\n\n");
    let of = |p: &&str| p.lines().any(|l| l.strip_prefix("P:") == Some(package));
    plain(paragraphs.find(of)?.lines().find_map(|l| l.strip_prefix("V:"))?)
}

/// The version of `package` in dpkg's list of installed packages.
pub fn package_version(status: &str, package: &str) -> Option<String> {
    let mut paragraphs = status.split("\n\n");
    let of = |p: &&str| p.lines().any(|l| l.strip_prefix("Package: ") == Some(package));
    let version = paragraphs.find(of)?.lines().find_map(|l| l.strip_prefix("Version: "))?;
    // The version without its epoch (`1:`), which is not part of the program's version.
    plain(version.split_once(':').map_or(version, |(_, v)| v))
}

/// A version of a package, which consists of few characters (deb-version(7)).
fn plain(version: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || ".+~-_".contains(c);
    (version.len() <= 100 && version.chars().all(is_plain)).then(|| version.to_owned())
}

/// What kube-proxy's logs say of what went wrong.
#[derive(Debug, Default)]
pub(super) struct LogLines {
    /// For each log file, the last line with each phrase about a missing tool or kernel module.
    pub(super) complaints: Vec<String>,
    /// The last line that says why kube-proxy ended, of the newest file that has one.
    pub(super) end: Option<String>,
}

/// Reads kube-proxy's logs.
pub(super) fn read_logs() -> LogLines {
    let Ok(root) = Root::ours() else { return LogLines::default() };
    let mut allowance = Allowance::of_a_capture();
    let mut lines = LogLines::default();
    for path in logs(&root) {
        let Some(text) = root.tail(&path, LOG, &mut allowance).ok().flatten() else { continue };
        lines.complaints.extend(complaints_of(&path, &text));
        let end = || fatal_line(&text).map(|line| format!("{path}: {}", short(line)));
        lines.end = lines.end.take().or_else(end);
    }
    lines
}

fn short(line: &str) -> String {
    line.chars().take(LINE).collect()
}

/// The last line of a log with each of those phrases, after the log's path.
pub fn complaints_of(path: &str, text: &str) -> Vec<String> {
    let last = |what: &&str| text.lines().rfind(|l| l.contains(what));
    let lines = COMPLAINTS.iter().filter_map(last);
    lines.map(|line| format!("{path}: {}", short(line))).collect()
}

/// The files that may hold kube-proxy's log: /var/log/kube-proxy.log of a service, and the newest
/// two log files of each kube-proxy pod, the newer first: the last may be of a kube-proxy that has
/// just been started again.
fn logs(root: &Root) -> Vec<String> {
    let mut logs = vec!["/var/log/kube-proxy.log".to_owned()];
    let pods = root.directories(POD_LOGS).unwrap_or_default();
    for pod in pods.iter().filter(|pod| pod.starts_with("kube-system_kube-proxy-")) {
        let folder = format!("{POD_LOGS}/{pod}/kube-proxy");
        let number = |name: &String| Path::new(name).file_stem()?.to_str()?.parse::<u32>().ok();
        let files = root.names(&folder).unwrap_or_default().into_iter();
        let mut files: Vec<String> = files.filter(|name| number(name).is_some()).collect();
        files.sort_by_key(|name| std::cmp::Reverse(number(name)));
        logs.extend(files.iter().take(2).map(|name| format!("{folder}/{name}")));
    }
    logs
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

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
        let tools = below(&Root::at(root.path()).unwrap(), TRUSTED_PATH, "6.1.0");
        let path = |name: &str| tools.get(name).unwrap().path.clone();
        assert_eq!(path("iptables").as_deref(), Some("/usr/sbin/iptables"));
        let version = tools.get("iptables").unwrap().version().unwrap();
        assert_eq!(version.to_string(), "1.8.9");
        assert_eq!((path("ipset"), path("nft"), path("conntrack")), (None, None, None));

        fs::create_dir_all(at("opt/bin")).unwrap();
        program("opt/bin/ipset", 0o755);
        let own = Root::at(root.path()).unwrap();
        let tools = below(&own, "/opt/bin:/usr/sbin", "6.1.0");
        assert_eq!(tools.get("ipset").unwrap().path.as_deref(), Some("/opt/bin/ipset"));
        // A package list that never answers, or never ends, tells no version.
        fs::remove_file(at("var/lib/dpkg/status.d/iptables")).unwrap();
        let pipe = at("var/lib/dpkg/status.d/iptables");
        rustix::fs::mkfifoat(rustix::fs::CWD, pipe, rustix::fs::Mode::RWXU).unwrap();
        fs::File::create(at("var/lib/dpkg/status")).unwrap().set_len(4 << 30).unwrap();
        let tools = below(&own, TRUSTED_PATH, "6.1.0");
        assert_eq!(tools.get("iptables").unwrap().version(), None);
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
        let unknown = below(&Root::at(root.path()).unwrap(), TRUSTED_PATH, "6.1.0");
        assert_eq!((of(&unknown, "iptables"), of(&unknown, "nft")), (None, None));

        let installed = "C:Q1x=\nP:iptables-doc\nV:0.1-r0\nF:sbin\n\nC:Q1y=\nP:iptables\n\
            V:1.8.10-r3\nA:x86_64\n\nP:nftables\nV:1.0.9-r2\n\nP:conntrack-tools\nV:1.4.8-r0\n\n";
        fs::write(at("lib/apk/db/installed"), installed).unwrap();
        let tools = below(&Root::at(root.path()).unwrap(), TRUSTED_PATH, "6.1.0");
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
        let found = complaints_of("/l", text);
        assert_eq!(found, ["/l: b: executable file not found in $PATH"]);
    }

    #[test]
    fn without_kube_proxy_nothing_is_found() {
        let found = observe_root(&NodeState::default());
        assert!(found.tools.is_none() && found.root.is_none());
    }
}
