//! Reads the components' configuration files: text of limited size, and never a secret.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

use super::processes::flag_value;
use crate::state::Files;
use crate::state::tools::Process;

/// The size up to which a file is captured, in bytes.
const LIMIT: u64 = 1 << 20;

/// Paths of files that are captured if they exist.
const FILES: &[&str] = &[
    "/run/flannel/subnet.env",
    "/etc/docker/daemon.json",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/ip6tables",
    "/etc/nftables.conf",
    // The configuration of other programs that write rules.
    "/etc/firewalld/firewalld.conf",
    "/etc/ufw/ufw.conf",
    "/etc/ferm/ferm.conf",
    "/etc/shorewall/shorewall.conf",
    "/etc/resolv.conf",
];

/// Directories whose files are captured, each with the prefix that the file names must have.
const DIRECTORIES: &[(&str, &str)] = &[("/etc/cni/net.d", ""), ("/etc/iptables", "rules.")];

/// Programs, each with the flags that name its configuration file. The name is a path in the root
/// of the program's process.
const CONFIG_FLAGS: &[(&str, &[&str])] =
    &[("kube-proxy", &["--config"]), ("node-cache", &["-conf", "--conf"])];

/// How many symbolic links a path may have, as in the kernel.
const LINKS: usize = 40;

/// Reads the configuration of this node, of its kube-proxy and of its nodelocaldns. Returns the
/// files, and a note for each file that is not captured.
pub fn read(processes: &[Process]) -> (Files, Vec<String>) {
    let mut read = (Files::new(), Vec::new());
    let root = Path::new("/");
    for path in FILES {
        add(root, path, &mut read);
    }
    for (directory, prefix) in DIRECTORIES {
        for name in names(directory) {
            if name.starts_with(prefix) {
                add(root, &format!("{directory}/{name}"), &mut read);
            }
        }
    }
    for process in processes {
        let flags =
            CONFIG_FLAGS.iter().filter(|(name, _)| *name == process.name).flat_map(|(_, f)| *f);
        for path in flags.filter_map(|flag| flag_value(&process.args, flag)) {
            let root = PathBuf::from(format!("/proc/{}/root", process.pid));
            add(&root, path, &mut read);
        }
    }
    read
}

/// Adds the file at `path` below `root`, or a note why it is not captured. Adds nothing for a
/// missing file.
fn add(root: &Path, path: &str, (files, notes): &mut (Files, Vec<String>)) {
    match text(root, path) {
        Ok(Some(text)) => {
            files.entry(format!("files{path}")).or_insert_with(|| text.into());
        }
        Ok(None) => {}
        Err(why) => notes.push(format!("{path} is not captured: {why}")),
    }
}

/// The names of the files and links in a directory, sorted. Subdirectories are left out.
fn names(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| entry.file_type().is_ok_and(|t| !t.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// The text of a file; none if the file is missing; an error that says why the file must not be
/// captured.
fn text(root: &Path, path: &str) -> Result<Option<String>, String> {
    let absolute =
        path.starts_with('/') && !Path::new(path).components().any(|c| c == Component::ParentDir);
    if !absolute {
        return Err("its path is not absolute".into());
    }
    if path.contains("kubeconfig") || path.ends_with(".key") {
        return Err("it is a credential by its name".into());
    }
    let bytes = match resolve(root, path).and_then(|at| bytes(&at)) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(|e| e.to_string())?,
    };
    if bytes.len() as u64 > LIMIT {
        return Err(format!("it is larger than {LIMIT} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not text".to_owned())?;
    secret(&text).map_or(Ok(Some(text)), |what| Err(format!("it holds {what}")))
}

/// Reads a regular file, up to one byte more than [`LIMIT`], so that the caller sees when the file
/// is too large.
fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    // Reading a pipe would block, and reading a device might never end.
    if !fs::symlink_metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Resolves `path` below `root`, the root of a container. The kernel would follow an absolute
/// symbolic link into the host's root, but the link means a path in the container's root.
/// (`openat2` could resolve it, but exists only from Linux 5.6 on.)
pub(super) fn resolve(root: &Path, path: &str) -> io::Result<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> {
        path.components().map(|c| c.as_os_str().to_owned()).filter(|c| c != "/").collect()
    };
    let mut todo: VecDeque<OsString> = parts(Path::new(path)).into();
    let mut done = PathBuf::new();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = root.join(&done).join(&part);
        if !fs::symlink_metadata(&next)?.is_symlink() {
            done.push(part);
            continue;
        }
        links += 1;
        if links > LINKS {
            return Err(io::Error::other("too many symbolic links"));
        }
        let target = fs::read_link(&next)?;
        if target.is_absolute() {
            done.clear();
        }
        parts(&target).into_iter().rev().for_each(|part| todo.push_front(part));
    }
    Ok(root.join(done))
}

/// The kind of secret in a text, if any: a private key, a kubeconfig, or a value under a key such
/// as `password`.
fn secret(text: &str) -> Option<&'static str> {
    static KUBECONFIG: LazyLock<Regex> =
        LazyLock::new(|| constant(r#"(?m)["']?kind["']?\s*:\s*["']?Config["']?\s*(,|\}|#|$)"#));
    static VALUE: LazyLock<Regex> = LazyLock::new(|| {
        let name = "token|password|passwd|secret|client-key-data|secret-access-key";
        constant(&format!(r#"(?im)(^|[\s"'{{,_-])({name})["']?\s*[:=]\s*["']?[^\s"']"#))
    });
    if text.contains("PRIVATE KEY-----") {
        Some("a private key")
    } else if KUBECONFIG.is_match(text) {
        Some("a kubeconfig")
    } else if VALUE.is_match(text) {
        Some("a token or password")
    } else {
        None
    }
}

/// Compiles a pattern of this module.
fn constant(pattern: &str) -> Regex {
    // The tests below compile every pattern, so this cannot fail.
    Regex::new(pattern).expect("a valid pattern")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn read_below(root: &Path, path: &str) -> (Files, Vec<String>) {
        let mut read = (Files::new(), Vec::new());
        add(root, path, &mut read);
        read
    }

    #[test]
    fn the_file_that_a_programs_flag_names_is_captured() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, ". {\n    bind 169.254.20.10\n}\n").unwrap();
        let path = file.path().to_str().unwrap();
        for (name, flag, captured) in [
            ("node-cache", format!("-conf {path}"), true),
            ("node-cache", format!("--conf={path}"), true),
            ("kube-proxy", format!("--config={path}"), true),
            ("kubelet", format!("--config={path}"), false),
        ] {
            let args = format!("/{name} {flag}").split(' ').map(str::to_owned).collect();
            let pid = std::process::id();
            let version = None;
            let version_source = None;
            let process = Process { pid, name: name.into(), args, version, version_source };
            let (files, notes) = read(&[process]);
            assert_eq!(files.contains_key(&format!("files{path}")), captured, "{name} {notes:?}");
        }
    }

    #[test]
    fn secrets_are_recognised() {
        for text in [
            "-----BEGIN EC PRIVATE KEY-----\n",
            "-----BEGIN PRIVATE KEY-----\n",
            "apiVersion: v1\nkind: Config\nusers: []\n",
            "{\"apiVersion\":\"v1\",\"kind\":\"Config\",\"users\":[]}",
            "kind: \"Config\" # x\n",
            "    token: eyJhbGciOi\n",
            "{\"policy\": {\"k8s_auth_token\": \"abc\"}}",
            "{\"log-opts\": {\"splunk-token\": \"abc\"}}",
            "PASSWORD=abc\n",
            "users: [{user: {client-key-data: LS0t}}]\n",
        ] {
            assert!(secret(text).is_some(), "{text}");
        }
    }

    #[test]
    fn configuration_is_not_secret() {
        for text in [
            "kind: KubeProxyConfiguration\nclientConnection: {kubeconfig: /var/lib/x}\nmode: ipvs\n",
            "{\"kubernetes\": {\"kubeconfig\": \"/etc/cni/net.d/calico-kubeconfig\"}}",
            "FLANNEL_NETWORK=192.168.64.0/20\n",
            "{\"policy\": {\"k8s_auth_token\": \"\"}}",
            "-A INPUT -m comment --comment \"no token here\" -j ACCEPT\n",
            "kind: ConfigMap\n",
        ] {
            assert_eq!(secret(text), None, "{text}");
        }
    }

    #[test]
    fn files_of_every_captured_node_are_let_through() {
        fn check(directory: &Path, count: &mut usize) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    check(&path, count);
                } else if path.components().any(|c| c.as_os_str() == "files") {
                    assert_eq!(
                        secret(&fs::read_to_string(&path).unwrap()),
                        None,
                        "{}",
                        path.display()
                    );
                    *count += 1;
                }
            }
        }
        let mut count = 0;
        check(Path::new("snapshots"), &mut count);
        assert!(count > 10);
    }

    #[test]
    fn an_absolute_link_is_resolved_below_the_root() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("etc/..data")).unwrap();
        fs::write(at("etc/..data/passwd"), "of the container").unwrap();
        symlink("/etc/..data/passwd", at("etc/passwd")).unwrap();
        symlink("../../../../etc/passwd", at("etc/up")).unwrap();
        symlink("..data", at("etc/data")).unwrap();
        for path in ["/etc/passwd", "/etc/up", "/etc/data/passwd"] {
            let (files, notes) = read_below(root.path(), path);
            assert_eq!(files[&format!("files{path}")].as_ref(), "of the container", "{notes:?}");
        }
    }

    #[test]
    fn what_is_not_captured_is_named() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::write(at("large"), vec![b'a'; (1 << 20) + 1]).unwrap();
        fs::write(at("full"), vec![b'a'; 1 << 20]).unwrap();
        fs::write(at("binary"), [0xff]).unwrap();
        fs::write(at("calico-kubeconfig"), "anything").unwrap();
        fs::write(at("secret"), "token: abc\n").unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("loop", at("loop")).unwrap();
        for (path, why) in [
            ("/large", "larger"),
            ("/binary", "not text"),
            ("/calico-kubeconfig", "credential"),
            ("/secret", "token"),
            ("/directory", "regular"),
            ("/loop", "symbolic"),
            ("relative", "absolute"),
            ("/a/../b", "absolute"),
        ] {
            let (files, notes) = read_below(root.path(), path);
            assert!(files.is_empty(), "{path}");
            assert_eq!(notes.len(), 1, "{path}");
            assert!(notes[0].contains(path) && notes[0].contains(why), "{}", notes[0]);
            assert!(!notes[0].contains("abc"));
        }
        assert_eq!(read_below(root.path(), "/nowhere"), (Files::new(), Vec::new()));
        assert_eq!(read_below(root.path(), "/full").0.len(), 1);
    }
}
