//! Finds the processes of this network namespace whose programs own rules.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::build_info;
use super::foreign::Root;
use super::reading::{MemoryAnswer, MemoryReader};
use super::secrets;
use super::trust::PinnedProcess;
use crate::error::{Error, Kind, Result};
use crate::owners::files::known_processes;
use crate::owners::liveness::kubelet;
use crate::runtime::parent;
use crate::state::kube_proxy::serves;
use crate::state::lookalikes::{Doubt, Lookalike};
use crate::state::multicall;
use crate::state::tools::Process;

/// The programs of Kubernetes, whose files tell their version.
const OF_KUBERNETES: &[&str] =
    &["kube-proxy", "kubelet", "k3s", "k3s-server", "k3s-agent", "kubelite"];

/// The processes that bear a name of the catalogue.
pub struct FoundProcesses {
    /// Those that count, sorted by PID.
    pub components: Vec<RunningComponent>,
    /// Those that do not, sorted by PID.
    pub lookalikes: Vec<Lookalike>,
}

/// A process that counts.
pub struct RunningComponent {
    /// The process, pinned so that its files are never those of another one.
    pub pinned: PinnedProcess,
    /// What is captured of it.
    pub process: Process,
}

impl FoundProcesses {
    /// What is captured of those that count.
    pub fn processes(&self) -> Vec<Process> {
        self.components.iter().map(|component| component.process.clone()).collect()
    }
}

/// The processes in our network namespace whose names are in the catalogue.
///
/// Fails when /proc cannot be read. Omits processes that end meanwhile, and those that this process
/// may not read.
pub fn find() -> Result<FoundProcesses> {
    let names = known_processes()?;
    let mut arguments = MemoryReader::new(PinnedProcess::arguments);
    let mut first = MemoryReader::new(PinnedProcess::first_argument);
    let (mut counting, mut lookalikes) = (Vec::new(), Vec::new());
    for process in ours()? {
        match process.doubt() {
            None => match named(process, names, &mut arguments) {
                Ok(named) => counting.extend(named),
                Err(silent) => lookalikes.push(silent),
            },
            Some(doubt) => lookalikes.extend(stranger(doubt, process, names, &mut first)),
        }
    }
    let components = without_forks(counting, parent).into_iter().map(component).collect();
    Ok(FoundProcesses { components, lookalikes })
}

/// Whether `found` are the node's processes. In a PID namespace of its own, such as a pod's, one sees
/// only what is in there: these are the node's if its kubelet is among them.
///
/// # Errors
/// When /proc cannot be read.
pub fn are_the_nodes(found: &[Process]) -> Result<bool> {
    let path = "/proc/self/ns/pid";
    let namespace = fs::metadata(path).map_err(|e| Error::io(path, &e))?.ino();
    Ok(namespace == FIRST || kubelet(found).is_some())
}

/// The inode of the kernel's first PID namespace: `PROC_PID_INIT_INO` in the kernel's
/// include/linux/proc_ns.h.
const FIRST: u64 = 0xEFFF_FFFC;

/// The PIDs of the processes that count and run `name`, a name in the catalogue. Unlike [`find`], it
/// looks at nobody else, learns no version, and omits a kube-proxy that was started with
/// `--cleanup`.
/// Fails as [`find`] does.
pub fn pids(name: &str) -> Result<Vec<u32>> {
    let named = running(name)?.into_iter();
    Ok(named.filter(|n| serves(&n.args)).map(|n| n.pinned.pid()).collect())
}

/// The arguments of the processes that count and run `name`, a name in the catalogue, sorted by PID.
/// They may hold secrets.
/// Fails as [`find`] does.
pub fn arguments(name: &str) -> Result<Vec<Vec<String>>> {
    Ok(running(name)?.into_iter().map(|named| named.args).collect())
}

fn running(name: &str) -> Result<Vec<Named>> {
    let names = known_processes()?;
    let mut arguments = MemoryReader::new(PinnedProcess::arguments);
    let counting = ours()?.filter(|process| process.doubt().is_none());
    let named = counting.filter_map(|process| named(process, names, &mut arguments).ok()?);
    Ok(without_forks(named.filter(|n| n.name == name).collect(), parent))
}

/// Every process in our network namespace, sorted by PID. Each is pinned only while it is looked
/// at, because a node may have more processes than a process may have descriptors.
fn ours() -> Result<impl Iterator<Item = PinnedProcess>> {
    let entries = fs::read_dir("/proc").map_err(|e| Error::io("/proc", &e))?;
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let us = PinnedProcess::open(std::process::id());
    let ours = us
        .and_then(|us| us.network())
        .ok_or_else(|| Error::new(Kind::Unexpected, "/proc/self/ns/net", "cannot be read"))?;
    let pinned = pids.into_iter().filter_map(PinnedProcess::open);
    Ok(pinned.filter(move |process| process.network() == Some(ours)))
}

/// A process that counts, with its name in the catalogue.
struct Named {
    pinned: PinnedProcess,
    name: &'static str,
    args: Vec<String>,
}

/// A process that counts, if it bears one of `names`. One that keeps its arguments is a lookalike:
/// of the name that it bears, or else of any.
fn named(
    process: PinnedProcess,
    names: &'static BTreeSet<String>,
    arguments: &mut MemoryReader<Vec<String>>,
) -> Result<Option<Named>, Lookalike> {
    // The program is read before its arguments. In the other order a process that starts a program
    // just then could have the program's name with the arguments of its parent.
    let Some(exe) = process.exe() else { return Ok(None) };
    let (pid, comm) = (process.pid(), process.comm());
    let by_program = known_name(names, Some(&exe), &comm, None);
    match arguments.ask(process) {
        (Some(pinned), MemoryAnswer::Read(Some(args))) => {
            let first = args.first().map(String::as_str);
            let name = by_program.or_else(|| known_name(names, None, "", first));
            let name = name.map(|name| multicall::name_of(name, &args));
            // As another of its parts, the program is no component.
            let name = name.filter(|name| multicall::parts(name).next().is_none());
            Ok(name.map(|name| Named { pinned, name, args }))
        }
        (_, MemoryAnswer::Read(_)) => Ok(None),
        (_, MemoryAnswer::Silence) => {
            let name = by_program.unwrap_or_default().to_owned();
            Err(Lookalike { pid, name, uid: 0, doubt: Doubt::Silent })
        }
    }
}

/// Removes each process whose parent in the list has the same name and arguments. For example,
/// between its fork and its exec a child that will run `iptables` looks like a second kube-proxy.
fn without_forks(found: Vec<Named>, parent: impl Fn(u32) -> Option<u32>) -> Vec<Named> {
    let lines: Vec<_> = found.iter().map(|n| (n.pinned.pid(), n.name, &n.args[..])).collect();
    let forks: Vec<bool> = lines.iter().map(|line| is_fork(line, &lines, &parent)).collect();
    found.into_iter().zip(forks).filter(|(_, is_fork)| !is_fork).map(|(found, _)| found).collect()
}

/// The PID, name and arguments of a process.
type Line<'a> = (u32, &'a str, &'a [String]);

fn is_fork(
    (pid, name, args): &Line<'_>,
    all: &[Line<'_>],
    parent: impl Fn(u32) -> Option<u32>,
) -> bool {
    let parent = parent(*pid);
    all.iter().any(|(p, n, a)| Some(*p) == parent && n == name && a == args)
}

fn component(Named { pinned, name, args }: Named) -> RunningComponent {
    let version = OF_KUBERNETES.contains(&name).then(|| version(&pinned)).flatten();
    let process = Process {
        pid: pinned.pid(),
        name: name.to_owned(),
        args: secrets::kept_arguments(name, &args),
        version_source: version.is_some().then(|| "its build information".to_owned()),
        version,
        cgroups: pinned.cgroups(),
    };
    RunningComponent { pinned, process }
}

/// The version of a process's program. The program is not run, whoever owns it.
fn version(pinned: &PinnedProcess) -> Option<String> {
    let program = Root::of(pinned).ok()?.program(pinned).ok()?;
    build_info::kubernetes_version(program)
}

/// A process that does not count, if it bears one of `names`, or if that cannot be known.
fn stranger(
    doubt: Doubt,
    process: PinnedProcess,
    names: &'static BTreeSet<String>,
    first: &mut MemoryReader<String>,
) -> Option<Lookalike> {
    // A thread of the kernel has no program.
    let exe = process.exe()?;
    let (pid, uid) = (process.pid(), process.uid());
    let lookalike = |name: &str, doubt| Lookalike { pid, name: name.to_owned(), uid, doubt };
    if let Some(name) = known_name(names, Some(&exe), &process.comm(), None) {
        return Some(lookalike(name, doubt));
    }
    match first.ask(process).1 {
        MemoryAnswer::Read(first) => {
            known_name(names, None, "", first.as_deref()).map(|name| lookalike(name, doubt))
        }
        MemoryAnswer::Silence => Some(lookalike("", Doubt::Silent)),
    }
}

/// The value of `flag` in the arguments, given as `--flag=VALUE` or `--flag VALUE`.
pub fn flag_value<'a>(args: &'a [String], flag: &str) -> Option<&'a str> {
    args.iter().enumerate().find_map(|(i, arg)| {
        let rest = arg.strip_prefix(flag)?;
        rest.strip_prefix('=')
            .or_else(|| (rest.is_empty()).then(|| args.get(i + 1))?.map(|v| v.as_str()))
    })
}

/// Which of `names` a program has. Its file name, its command name and its first argument are all
/// compared, because a single one is not enough: the file of a script is its interpreter, and the
/// kernel cuts a command name at 15 bytes.
fn known_name<'n>(
    names: &'n BTreeSet<String>,
    exe: Option<&Path>,
    comm: &str,
    first: Option<&str>,
) -> Option<&'n str> {
    let file = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let exe = exe.and_then(file).map(|n| n.trim_end_matches(" (deleted)").to_owned());
    let first = first.map(Path::new).and_then(file);
    let is_known = |name: &str| names.get(name).map(String::as_str);
    let cut = |name: &&str| name.get(..15).unwrap_or(name) == comm;
    let by_comm = || names.iter().map(String::as_str).find(cut);
    exe.and_then(|n| is_known(&n)).or_else(by_comm).or_else(|| is_known(&first?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(args: &[&str]) -> Vec<String> {
        args.iter().map(|&a| a.to_owned()).collect()
    }

    #[test]
    fn a_program_is_known_by_file_command_name_or_first_argument() {
        let names = known_processes().unwrap();
        let known_name = |exe, comm, first| known_name(names, exe, comm, first);
        let exe = |path| Some(Path::new(path));
        assert_eq!(known_name(exe("/x/bin/k3s"), "k3s-server", None), Some("k3s"));
        assert_eq!(known_name(exe("/opt/flanneld (deleted)"), "", None), Some("flanneld"));
        let python = known_name(exe("/usr/bin/python3.11"), "fail2ban-server", None);
        assert_eq!(python, Some("fail2ban-server"));
        assert_eq!(known_name(None, "neutron-l3-agen", None), Some("neutron-l3-agent"));
        assert_eq!(known_name(None, "main", Some("/bin/kube-vip")), Some("kube-vip"));
        assert_eq!(known_name(exe("/bin/sleep"), "sleep", Some("sleep")), None);
        assert_eq!(known_name(exe("/bin/not-kube-proxy"), "kube-proxy2", None), None);
    }

    #[test]
    fn a_child_before_its_exec_does_not_count() {
        let serves = strings(&["kube-proxy", "--v=2"]);
        let cleans = strings(&["kube-proxy", "--cleanup"]);
        let parent = |pid| Some(if pid == 12 || pid == 13 { 10 } else { 1 });
        let found: [Line<'_>; 4] = [
            (10, "kube-proxy", &serves),
            // A fork of process 10 that is about to run iptables-save.
            (12, "kube-proxy", &serves),
            // A child of process 10 with other arguments, and a child of a process that is not in
            // the list.
            (13, "kube-proxy", &cleans),
            (14, "kube-proxy", &serves),
        ];
        let forks = found.iter().filter(|line| is_fork(line, &found, parent));
        assert_eq!(forks.map(|line| line.0).collect::<Vec<_>>(), [12]);
        let me = std::process::id();
        assert!(parent(me).is_some_and(|p| p != me));
        // Each is this process, and so its own parent.
        let named = |args: &[String]| Named {
            pinned: PinnedProcess::open(me).unwrap(),
            name: "kube-proxy",
            args: args.to_vec(),
        };
        assert_eq!(without_forks(vec![named(&serves), named(&cleans)], |_| Some(me)).len(), 0);
        assert_eq!(without_forks(vec![named(&serves), named(&cleans)], |_| Some(1)).len(), 2);
    }

    #[test]
    fn a_flag_is_found_in_both_forms() {
        assert_eq!(flag_value(&strings(&["p", "--config=/a"]), "--config"), Some("/a"));
        assert_eq!(flag_value(&strings(&["p", "--config", "/b"]), "--config"), Some("/b"));
        assert_eq!(flag_value(&strings(&["p", "--configs=/a"]), "--config"), None);
    }
}
