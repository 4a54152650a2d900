//! Finds the programs that proxyshift needs, once, on a trusted path.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::command::{Command, TRUSTED_PATH};
use super::subsystems;
use crate::error::{Error, Kind, Result};
use crate::state::{Backend, Family, RulesetId};

/// A program that proxyshift runs, or whose version it reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// `iptables`, of either backend.
    Iptables,
    /// `nft`.
    Nft,
    /// `ipset`.
    Ipset,
    /// `ipvsadm`.
    Ipvsadm,
    /// `conntrack`.
    Conntrack,
    /// `docker`.
    Docker,
    /// `ip`.
    Ip,
    /// `sysctl`.
    Sysctl,
    /// `modprobe`.
    Modprobe,
    /// `unshare`.
    Unshare,
    /// The program that prints the rules of one ruleset, such as `iptables-nft-save`.
    Save(RulesetId),
    /// The program that loads rules into one ruleset, such as `iptables-nft-restore`.
    Restore(RulesetId),
}

/// When a tool may be run to report its version.
enum VersionProbe {
    /// Whenever it is installed. The value is the flag that prints the version.
    Always(&'static str),
    /// Only when its kernel module is already loaded, because running the tool would load the
    /// module.
    WhenPresent(fn() -> bool),
    /// Never, because another tool of the same package reports the version.
    Never,
}

impl Tool {
    /// Every tool, in the order of `tools.txt`.
    pub fn all() -> impl Iterator<Item = Tool> {
        use Tool::*;
        [Iptables, Nft, Ipset, Ipvsadm, Conntrack, Docker, Ip, Sysctl, Modprobe, Unshare]
            .into_iter()
            .chain(RulesetId::ALL.into_iter().flat_map(|id| [Save(id), Restore(id)]))
    }

    /// The file name of the program.
    pub fn program(self) -> String {
        match self {
            Tool::Save(id) => format!("{id}-save"),
            Tool::Restore(id) => format!("{id}-restore"),
            Tool::Iptables => "iptables".into(),
            Tool::Nft => "nft".into(),
            Tool::Ipset => "ipset".into(),
            Tool::Ipvsadm => "ipvsadm".into(),
            Tool::Conntrack => "conntrack".into(),
            Tool::Docker => "docker".into(),
            Tool::Ip => "ip".into(),
            Tool::Sysctl => "sysctl".into(),
            Tool::Modprobe => "modprobe".into(),
            Tool::Unshare => "unshare".into(),
        }
    }

    /// The Debian package that has the program.
    fn package(self) -> &'static str {
        match self {
            Tool::Iptables | Tool::Save(_) | Tool::Restore(_) => "iptables",
            Tool::Nft => "nftables",
            Tool::Ipset => "ipset",
            Tool::Ipvsadm => "ipvsadm",
            Tool::Conntrack => "conntrack",
            Tool::Docker => "docker.io",
            Tool::Ip => "iproute2",
            Tool::Sysctl => "procps",
            Tool::Modprobe => "kmod",
            Tool::Unshare => "util-linux",
        }
    }

    fn version(self) -> VersionProbe {
        match self {
            Tool::Ipset => VersionProbe::WhenPresent(subsystems::ip_set),
            Tool::Ipvsadm => VersionProbe::WhenPresent(subsystems::ip_vs),
            Tool::Iptables | Tool::Nft | Tool::Conntrack => {
                VersionProbe::WhenPresent(subsystems::nfnetlink)
            }
            Tool::Ip => VersionProbe::Always("-V"),
            Tool::Save(_) | Tool::Restore(_) => VersionProbe::Never,
            _ => VersionProbe::Always("--version"),
        }
    }
}

/// Stands for every table. No table has this name.
const EVERY_TABLE: &str = "*";

/// The paths of the installed tools, searched once.
#[derive(Debug)]
pub struct Tools {
    found: BTreeMap<Tool, PathBuf>,
    /// The versions that tools reported; kept, because a program does not change while we run.
    versions: Mutex<BTreeMap<Tool, String>>,
    /// What nft could not list: tables, each by family and name.
    unlisted: Mutex<BTreeSet<String>>,
}

impl Tools {
    /// Searches [`TRUSTED_PATH`] for each tool. A missing tool is an error only when it is needed.
    pub fn find() -> Self {
        Self::find_in(TRUSTED_PATH)
    }

    fn find_in(path: &str) -> Self {
        let found = Tool::all()
            .filter_map(|tool| {
                which::which_in(tool.program(), Some(path), "/").ok().map(|at| (tool, at))
            })
            .collect();
        Tools { found, versions: Mutex::default(), unlisted: Mutex::default() }
    }

    /// The path of a tool. Fails with [`Kind::MissingTool`], whose hint names the package to
    /// install, if the tool is not installed.
    pub fn tool(&self, tool: Tool) -> Result<&Path> {
        self.found.get(&tool).map(PathBuf::as_path).ok_or_else(|| {
            Error::new(Kind::MissingTool, tool.program(), format!("not found in {TRUSTED_PATH}"))
                .hint(format!("install it (Debian: apt install {})", tool.package()))
        })
    }

    /// A run of a tool, without arguments yet. Fails as [`Tools::tool`] does.
    pub fn command(&self, tool: Tool) -> Result<Command> {
        Ok(Command::new(self.tool(tool)?))
    }

    /// The text of the capture's `tools.txt`: a line for the kernel, then a line
    /// `name path version` or `name missing` for each tool. The version is omitted if asking for it
    /// would load a kernel module.
    pub fn tools_txt(&self) -> String {
        let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut text = format!("kernel {kernel}\n");
        for tool in Tool::all() {
            text.push_str(&self.line(tool));
            text.push('\n');
        }
        text
    }

    /// Whether nft may be asked to list `table`: it is not asked again for what it could not list, so that
    /// a table is described in one way as long as we run.
    pub fn lists(&self, table: &str) -> bool {
        let unlisted = self.unlisted.lock().unwrap_or_else(PoisonError::into_inner);
        !unlisted.contains(table) && !unlisted.contains(EVERY_TABLE)
    }

    /// Remembers that nft could not list `table`. A `None` says that it hangs, and is asked for no table.
    pub fn set_unlisted(&self, table: Option<&str>) {
        let mut unlisted = self.unlisted.lock().unwrap_or_else(PoisonError::into_inner);
        unlisted.insert(table.unwrap_or(EVERY_TABLE).to_owned());
    }

    /// How a tool is called where it is blamed: its path, and its version as far as it tells it.
    pub fn described(&self, tool: Tool) -> String {
        let line = self.line(tool);
        line.split_once(' ').map_or(line.clone(), |(_, described)| described.to_owned())
    }

    fn line(&self, tool: Tool) -> String {
        let name = tool.program();
        let Some(path) = self.found.get(&tool) else { return format!("{name} missing") };
        let flag = match tool.version() {
            VersionProbe::Always(flag) => flag,
            VersionProbe::WhenPresent(present) if present() || is_legacy(path) => "--version",
            VersionProbe::WhenPresent(_) | VersionProbe::Never => {
                return format!("{name} {}", path.display());
            }
        };
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let version = versions.entry(tool).or_insert_with(|| {
            // A tool that fails to report its version is installed all the same. If it cannot run
            // at all, using it later reports the error.
            let text = Command::new(path).args([flag]).run().map(|out| out.stdout);
            text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
        });
        format!("{name} {} {version}", path.display()).trim_end().to_owned()
    }
}

/// True for a program of iptables-legacy, which opens no netlink socket and so loads no nf_tables.
fn is_legacy(path: &Path) -> bool {
    path.canonicalize().is_ok_and(|real| real.ends_with("xtables-legacy-multi"))
}

impl Tool {
    /// The tool that prints the rules of `family` in `backend`.
    pub fn save(family: Family, backend: Backend) -> Self {
        Tool::Save(RulesetId { family, backend })
    }

    /// The tool that loads rules into `family` in `backend`.
    pub fn restore(family: Family, backend: Backend) -> Self {
        Tool::Restore(RulesetId { family, backend })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(dir: &Path, name: &str, script: &str) {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn programs_are_named_after_family_and_backend() {
        assert_eq!(Tool::save(Family::Ipv6, Backend::Nft).program(), "ip6tables-nft-save");
        assert_eq!(
            Tool::restore(Family::Ipv4, Backend::Legacy).program(),
            "iptables-legacy-restore"
        );
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let tools = Tools::find_in("/nowhere");
        let e = tools.tool(Tool::Nft).unwrap_err();
        assert_eq!((e.kind, e.object.as_str()), (Kind::MissingTool, "nft"));
        assert!(e.hint.unwrap().contains("nftables"));
        let text = tools.tools_txt();
        assert_eq!(text.lines().count(), 1 + Tool::all().count());
        assert!(text.lines().skip(1).all(|l| l.ends_with(" missing")), "{text}");
    }

    #[test]
    fn a_tool_is_run_for_its_version_once() {
        let dir = tempfile::tempdir().unwrap();
        program(dir.path(), "nft", "echo 'nftables v1'; echo more");
        program(dir.path(), "conntrack", "exit 1");
        program(dir.path(), "iptables-nft-save", "echo never asked");
        let at = dir.path().to_str().unwrap();
        let text = Tools::find_in(at).tools_txt();
        let line = |name: &str| text.lines().find(|l| l.split(' ').next() == Some(name)).unwrap();
        assert_eq!(line("nft"), format!("nft {at}/nft nftables v1"));
        assert_eq!(line("conntrack"), format!("conntrack {at}/conntrack"));
        assert_eq!(line("iptables-nft-save"), format!("iptables-nft-save {at}/iptables-nft-save"));
        assert!(text.starts_with("kernel "));
    }
}
