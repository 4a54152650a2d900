//! Finds the processes of this network namespace whose programs own rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::build_info;
use super::foreign::Root;
use super::secrets;
use super::trust::PinnedProcess;
use crate::error::{Error, Kind, Result};
use crate::owners::files::known_processes;
use crate::state::kube_proxy::serves;
use crate::state::lookalikes::{Doubt, Lookalike};
use crate::state::tools::Process;

/// The programs of Kubernetes, whose files tell their version.
const OF_KUBERNETES: &[&str] = &["kube-proxy", "kubelet"];

/// How long the first arguments of strangers are waited for, all together.
const STRANGERS: Duration = Duration::from_secs(1);

/// The processes that bear a name of the catalogue.
#[derive(Default)]
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
    let (mut counting, mut strangers) = (Vec::new(), Strangers::default());
    for process in ours()? {
        match process.doubt() {
            None => counting.extend(named(process, names)),
            Some(doubt) => strangers.look_at(doubt, &process, names),
        }
    }
    let components = without_forks(counting, parent).into_iter().map(component).collect();
    Ok(FoundProcesses { components, lookalikes: strangers.lookalikes(names) })
}

/// The PIDs of the processes that count and run `name`, a name in the catalogue. Unlike [`find`], it
/// looks at nobody else, learns no version, and omits a kube-proxy that was started with
/// `--cleanup`.
/// Fails as [`find`] does.
pub fn pids(name: &str) -> Result<Vec<u32>> {
    let names = known_processes()?;
    let counting = ours()?.filter(|process| process.doubt().is_none());
    let named: Vec<Named> = counting.filter_map(|process| named(process, names)).collect();
    let named = without_forks(named, parent).into_iter();
    Ok(named.filter(|n| n.name == name && serves(&n.args)).map(|n| n.pinned.pid()).collect())
}

/// Every process in our network namespace, sorted by PID. Each is pinned only while it is looked
/// at, because a node may have more processes than a process may have descriptors.
fn ours() -> Result<impl Iterator<Item = PinnedProcess>> {
    let entries = fs::read_dir("/proc").map_err(|e| Error::io("/proc", &e))?;
    let mut pids: Vec<u32> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let us = PinnedProcess::open(std::process::id());
    if !us.is_some_and(|us| us.is_in_our_network()) {
        return Err(Error::new(Kind::Unexpected, "/proc/self/ns/net", "cannot be read"));
    }
    let pinned = pids.into_iter().filter_map(PinnedProcess::open);
    Ok(pinned.filter(PinnedProcess::is_in_our_network))
}

/// A process that counts, with its name in the catalogue.
struct Named {
    pinned: PinnedProcess,
    name: &'static str,
    args: Vec<String>,
}

/// `pinned`, if it counts and bears one of `names`.
fn named(pinned: PinnedProcess, names: &'static BTreeSet<String>) -> Option<Named> {
    // The program is read before its arguments. In the other order a process that starts a program
    // just then could have the program's name with the arguments of its parent.
    let exe = pinned.exe();
    let comm = pinned.comm();
    let args = pinned.arguments()?;
    let first = args.first().map(String::as_str);
    let name = known_name(names, exe.as_deref(), &comm, first)?;
    Some(Named { pinned, name, args })
}

/// Removes each process whose parent in the list has the same name and arguments. For example,
/// between its fork and its exec a child that will run `iptables` looks like a second kube-proxy.
fn without_forks(found: Vec<Named>, parent: impl Fn(u32) -> Option<u32>) -> Vec<Named> {
    let is_fork = |child: &Named| {
        let parent = parent(child.pinned.pid());
        found
            .iter()
            .any(|n| Some(n.pinned.pid()) == parent && n.name == child.name && n.args == child.args)
    };
    let forks: Vec<bool> = found.iter().map(is_fork).collect();
    found.into_iter().zip(forks).filter(|(_, is_fork)| !is_fork).map(|(found, _)| found).collect()
}

/// The PID of a process's parent: the second field of /proc/PID/stat after the name in parentheses.
/// The name may hold anything, even a parenthesis.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn component(Named { pinned, name, args }: Named) -> RunningComponent {
    let version = OF_KUBERNETES.contains(&name).then(|| version(&pinned)).flatten();
    let process = Process {
        pid: pinned.pid(),
        name: name.to_owned(),
        args: secrets::kept_arguments(name, &args),
        version_source: version.is_some().then(|| "its build information".to_owned()),
        version,
    };
    RunningComponent { pinned, process }
}

/// The version of a process's program. The program is not run, whoever owns it.
fn version(pinned: &PinnedProcess) -> Option<String> {
    let program = Root::of(pinned).ok()?.program(pinned).ok()?;
    build_info::kubernetes_version(program)
}

/// The processes that do not count.
#[derive(Default)]
struct Strangers {
    /// Those that bear a name of the catalogue.
    named: Vec<Lookalike>,
    /// Those of which only the first argument is not known yet.
    unnamed: Vec<u32>,
}

impl Strangers {
    fn look_at(&mut self, doubt: Doubt, process: &PinnedProcess, names: &'static BTreeSet<String>) {
        // A thread of the kernel has no program.
        let Some(exe) = process.exe() else { return };
        match known_name(names, Some(&exe), &process.comm(), None) {
            Some(name) => self.named.push(lookalike(doubt, process, name)),
            None => self.unnamed.push(process.pid()),
        }
    }

    /// All that bear one of `names`, sorted by PID.
    fn lookalikes(self, names: &'static BTreeSet<String>) -> Vec<Lookalike> {
        let mut found = self.named;
        found.extend(by_first_argument(self.unnamed, names));
        found.sort_by_key(|l| l.pid);
        found
    }
}

fn lookalike(doubt: Doubt, process: &PinnedProcess, name: &str) -> Lookalike {
    Lookalike { pid: process.pid(), name: name.to_owned(), uid: process.uid(), doubt }
}

/// Those that bear one of `names` as their first argument. A stranger can keep its arguments from
/// being read, so they are read in a thread that may be left behind; while one hangs, no other is
/// begun, and nobody is found.
fn by_first_argument(strangers: Vec<u32>, names: &'static BTreeSet<String>) -> Vec<Lookalike> {
    static READING: AtomicBool = AtomicBool::new(false);
    if strangers.is_empty() || READING.swap(true, Ordering::AcqRel) {
        return Vec::new();
    }
    let (found, results) = mpsc::channel();
    thread::spawn(move || {
        for process in strangers.into_iter().filter_map(PinnedProcess::open) {
            let Some(doubt) = process.doubt() else { continue };
            let first = process.first_argument();
            let name = known_name(names, None, "", first.as_deref());
            let sent = name.map(|name| found.send(lookalike(doubt, &process, name)));
            if sent.is_some_and(|sent| sent.is_err()) {
                break;
            }
        }
        READING.store(false, Ordering::Release);
    });
    let end = Instant::now() + STRANGERS;
    std::iter::from_fn(|| results.recv_timeout(end.saturating_duration_since(Instant::now())).ok())
        .collect()
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
        let named = |args: &[&str]| Named {
            pinned: PinnedProcess::open(std::process::id()).unwrap(),
            name: "kube-proxy",
            args: strings(args),
        };
        let me = std::process::id();
        // Each is this process, and so its own parent.
        let found = vec![named(&["kube-proxy", "--v=2"]), named(&["kube-proxy", "--cleanup"])];
        assert_eq!(without_forks(found, |_| Some(me)).len(), 0);
        let found = vec![named(&["kube-proxy", "--v=2"]), named(&["kube-proxy", "--cleanup"])];
        assert_eq!(without_forks(found, |_| Some(1)).len(), 2);
        assert!(super::parent(me).is_some_and(|p| p != me));
    }

    #[test]
    fn a_flag_is_found_in_both_forms() {
        assert_eq!(flag_value(&strings(&["p", "--config=/a"]), "--config"), Some("/a"));
        assert_eq!(flag_value(&strings(&["p", "--config", "/b"]), "--config"), Some("/b"));
        assert_eq!(flag_value(&strings(&["p", "--configs=/a"]), "--config"), None);
    }
}
