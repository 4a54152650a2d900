//! Finds the processes of this network namespace whose programs own rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::command::Command;
use crate::error::{Error, Kind, Result};
use crate::owners::files::known_processes;
use crate::state::kube_proxy::serves;
use crate::state::tools::Process;

/// The programs that are run with `--version`. To run them so is harmless, and they report their
/// Kubernetes version.
const REPORT_VERSION: &[&str] = &["kube-proxy", "kubelet"];

/// Words in the name of a flag that make its value a secret, unless the value is a path.
const SECRETS: &[&str] =
    &["token", "password", "passwd", "secret", "authkey", "auth-key", "api-key", "apikey"];

/// How long the kernel may take between giving a process its program and its arguments.
const ARGUMENTS_APPEAR: Duration = Duration::from_millis(100);

/// What a secret is replaced by.
const MASK: &str = "<masked>";

/// The processes in our network namespace whose names are in the catalogue, sorted by PID.
///
/// Fails when /proc cannot be read. Omits processes that end meanwhile, and those that this process
/// may not read.
pub fn find() -> Result<Vec<Process>> {
    Ok(named()?.into_iter().map(|(pid, name, args)| read_process(pid, name, args)).collect())
}

/// The PIDs of the processes in our network namespace that run `name`, a name in the catalogue.
/// Unlike [`find`], it runs no program with `--version`, and it omits a kube-proxy that was started
/// with `--cleanup`.
/// Fails as [`find`] does.
pub fn pids(name: &str) -> Result<Vec<u32>> {
    let named = named()?.into_iter().filter(|(_, known, args)| *known == name && serves(args));
    Ok(named.map(|(pid, ..)| pid).collect())
}

/// The PID, name and arguments of each process in our network namespace that the catalogue names,
/// sorted by PID.
fn named() -> Result<Vec<(u32, &'static str, Vec<String>)>> {
    let ours = link("/proc/self/ns/net")
        .ok_or_else(|| Error::new(Kind::Unexpected, "/proc/self/ns/net", "cannot be read"))?;
    let names = known_processes()?;
    let entries = fs::read_dir("/proc").map_err(|e| Error::io("/proc", &e))?;
    let mut found: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| known(pid, &ours, names))
        .collect();
    found.sort_by_key(|(pid, ..)| *pid);
    Ok(without_forks(found, parent))
}

/// Removes each process whose parent in the list has the same name and arguments. For example,
/// between its fork and its exec a child that will run `iptables` looks like a second kube-proxy.
fn without_forks<N: PartialEq>(
    found: Vec<(u32, N, Vec<String>)>,
    parent: impl Fn(u32) -> Option<u32>,
) -> Vec<(u32, N, Vec<String>)> {
    let is_fork = |(pid, name, args): &(u32, N, Vec<String>)| {
        let parent = parent(*pid);
        found.iter().any(|(p, n, a)| Some(*p) == parent && n == name && a == args)
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

/// The value of `flag` in the arguments, given as `--flag=VALUE` or `--flag VALUE`.
pub fn flag_value<'a>(args: &'a [String], flag: &str) -> Option<&'a str> {
    args.iter().enumerate().find_map(|(i, arg)| {
        let rest = arg.strip_prefix(flag)?;
        rest.strip_prefix('=')
            .or_else(|| (rest.is_empty()).then(|| args.get(i + 1))?.map(|v| v.as_str()))
    })
}

/// The PID, name and arguments of process `pid`, if it is in the network namespace `namespace` and
/// its program is one of `names`.
fn known(
    pid: u32,
    namespace: &Path,
    names: &'static BTreeSet<String>,
) -> Option<(u32, &'static str, Vec<String>)> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    if link(proc.join("ns/net"))? != namespace {
        return None;
    }
    // The program is read before its arguments. In the other order a process that starts a program
    // just then could have the program's name with the arguments of its parent.
    let exe = link(proc.join("exe"));
    let args = arguments(&cmdline(&proc)?);
    let comm = fs::read_to_string(proc.join("comm")).unwrap_or_default();
    let first = args.first().map(String::as_str);
    let name = known_name(names, exe.as_deref(), comm.trim_end(), first)?;
    Some((pid, name, args))
}

/// The bytes of a process's arguments. `None` for a thread of the kernel and once the process has
/// ended: neither has a program. A process that starts a program has it before its arguments, so
/// these are waited for.
fn cmdline(proc: &Path) -> Option<Vec<u8>> {
    let end = Instant::now() + ARGUMENTS_APPEAR;
    loop {
        let cmdline = fs::read(proc.join("cmdline")).ok()?;
        if !cmdline.is_empty() || Instant::now() > end {
            return Some(cmdline);
        }
        link(proc.join("exe"))?;
        thread::sleep(Duration::from_millis(1));
    }
}

fn read_process(pid: u32, name: &str, args: Vec<String>) -> Process {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let version = REPORT_VERSION.contains(&name).then(|| probe_version(&proc)).flatten();
    Process {
        pid,
        name: name.to_owned(),
        args: mask(args),
        version_source: version.is_some().then(|| format!("{name} --version")),
        version,
    }
}

fn link(path: impl AsRef<Path>) -> Option<PathBuf> {
    fs::read_link(path).ok()
}

fn arguments(cmdline: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(cmdline);
    text.strip_suffix('\0').unwrap_or(&text).split('\0').map(str::to_owned).collect()
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

/// Runs a process's program with `--version`, if that program is as trustworthy as our own tools:
/// in our own file system, owned by root, and writable by root alone. So a container's program is
/// never run.
fn probe_version(proc: &Path) -> Option<String> {
    let same =
        |file: &str| Some(link(proc.join(file))? == link(Path::new("/proc/self").join(file))?);
    if !(same("root")? && same("ns/mnt")?) {
        return None;
    }
    let exe = proc.join("exe");
    let meta = fs::metadata(&exe).ok()?;
    if meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        return None;
    }
    let file = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
    let mut cached = VERSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(version) = cached.get(&file) {
        return Some(version.clone());
    }
    let output =
        Command::new(exe).args(["--version"]).deadline(Duration::from_secs(2)).run().ok()?;
    let version = kubernetes_version(&output.stdout)?;
    cached.insert(file, version.clone());
    Some(version)
}

/// A cache of the versions that programs reported, keyed by device, inode and ctime (seconds,
/// nanoseconds), so that a program that answered is not run again.
static VERSIONS: Mutex<BTreeMap<(u64, u64, i64, i64), String>> = Mutex::new(BTreeMap::new());

/// Extracts `v1.30.5` from the output `Kubernetes v1.30.5`.
fn kubernetes_version(text: &str) -> Option<String> {
    let version = text.lines().next()?.trim().strip_prefix("Kubernetes ")?;
    version.strip_prefix('v')?.starts_with(|c: char| c.is_ascii_digit()).then(|| version.to_owned())
}

/// Masks the secrets in a line that contains command lines.
pub fn masked(line: &str) -> String {
    mask(line.split(' ').map(str::to_owned).collect()).join(" ")
}

/// Masks the secrets in arguments: the values of flags that take a secret, and passwords in
/// addresses.
fn mask(args: Vec<String>) -> Vec<String> {
    let mut value_is_secret = false;
    args.into_iter()
        .map(|arg| {
            let (flag, value) =
                arg.split_once('=').map_or((arg.as_str(), None), |(f, v)| (f, Some(v)));
            let secret = is_secret(flag);
            let is_value = std::mem::replace(
                &mut value_is_secret,
                secret && value.is_none() && flag.starts_with('-'),
            );
            match value {
                _ if is_value && !arg.starts_with('-') => MASK.to_owned(),
                Some(value) if secret && !value.is_empty() => format!("{flag}={MASK}"),
                _ => mask_address(&arg),
            }
        })
        .collect()
}

/// True for a flag or variable whose value is a secret, and not the path of a file with the secret.
fn is_secret(flag: &str) -> bool {
    let flag = flag.to_ascii_lowercase().replace('_', "-");
    let path = ["-file", "-path", "-dir"].iter().any(|end| flag.ends_with(end));
    !path && SECRETS.iter().any(|word| flag.contains(word))
}

/// Masks the password in an address like `scheme://user:password@host`.
fn mask_address(arg: &str) -> String {
    let masked = || {
        let (scheme, rest) = arg.split_once("://")?;
        let host = rest.find('/').unwrap_or(rest.len());
        let at = rest[..host].rfind('@')?;
        let colon = rest[..at].find(':')?;
        Some(format!("{scheme}://{}:{MASK}{}", &rest[..colon], &rest[at..]))
    };
    masked().unwrap_or_else(|| arg.to_owned())
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
        let proxy = |pid, args: &[&str]| (pid, "kube-proxy", strings(args));
        let parent = |pid| Some(if pid == 12 || pid == 13 { 10 } else { 1 });
        let found = vec![
            proxy(10, &["kube-proxy", "--v=2"]),
            // A fork of process 10 that is about to run iptables-save.
            proxy(12, &["kube-proxy", "--v=2"]),
            // A child of process 10 with other arguments, and a child of a process that is not in
            // the list.
            proxy(13, &["kube-proxy", "--cleanup"]),
            proxy(14, &["kube-proxy", "--v=2"]),
        ];
        let left: Vec<u32> = without_forks(found, parent).iter().map(|f| f.0).collect();
        assert_eq!(left, [10, 13, 14]);
        let me = std::process::id();
        assert!(super::parent(me).is_some_and(|p| p != me));
    }

    #[test]
    fn arguments_are_split_at_their_ends() {
        assert_eq!(arguments(b"a\0b c\0\0"), ["a", "b c", ""]);
        assert_eq!(arguments(b"rewritten title"), ["rewritten title"]);
    }

    #[test]
    fn secrets_are_masked_and_paths_are_not() {
        let args = strings(&[
            "x",
            "--token=abc",
            "--auth-key",
            "tskey",
            "-etcd-password=p",
            "K3S_TOKEN=t",
            "--token-auth-file=/a",
            "--kubeconfig=/k",
            "--etcd=https://u:p@h:1/x",
            "--secret",
            "--v=2",
        ]);
        let masked = strings(&[
            "x",
            "--token=<masked>",
            "--auth-key",
            "<masked>",
            "-etcd-password=<masked>",
            "K3S_TOKEN=<masked>",
            "--token-auth-file=/a",
            "--kubeconfig=/k",
            "--etcd=https://u:<masked>@h:1/x",
            "--secret",
            "--v=2",
        ]);
        assert_eq!(mask(args), masked);
    }

    #[test]
    fn a_flag_is_found_in_both_forms() {
        assert_eq!(flag_value(&strings(&["p", "--config=/a"]), "--config"), Some("/a"));
        assert_eq!(flag_value(&strings(&["p", "--config", "/b"]), "--config"), Some("/b"));
        assert_eq!(flag_value(&strings(&["p", "--configs=/a"]), "--config"), None);
    }

    #[test]
    fn only_a_version_of_kubernetes_is_one() {
        assert_eq!(kubernetes_version("Kubernetes v1.30.5\n").as_deref(), Some("v1.30.5"));
        assert_eq!(kubernetes_version("sleep (GNU coreutils) 9.1\n"), None);
        assert_eq!(kubernetes_version(""), None);
    }
}
