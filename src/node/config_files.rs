//! Reads the components' configuration files: what they should be, and never a secret.

mod again;
mod form;

use std::io;
use std::path::Path;

pub use self::again::masked_capture;
pub use self::form::FileForm;
use super::foreign::{Allowance, Refusal, Root};
use super::processes::{RunningComponent, flag_value};
use crate::owners::files::known_signs;
use crate::owners::liveness::PODS;
use crate::state::Files;
use crate::state::cni::SUBNET_ENV;

/// The size up to which a file is captured, in bytes.
const LIMIT: u64 = 1 << 20;

/// How many files of one directory are captured.
const MOST: usize = 64;

/// Files that are captured if they exist, each with what it should be.
const FILES: &[(&str, FileForm)] = &[
    (SUBNET_ENV, FileForm::SubnetEnv),
    ("/etc/docker/daemon.json", FileForm::Docker),
    ("/etc/sysconfig/iptables", FileForm::Rules),
    ("/etc/sysconfig/ip6tables", FileForm::Rules),
    ("/etc/nftables.conf", FileForm::Nftables),
    // The configuration of other programs that write rules.
    ("/etc/firewalld/firewalld.conf", FileForm::Settings("FlushAllOnReload")),
    ("/etc/ufw/ufw.conf", FileForm::Settings("ENABLED")),
    ("/etc/shorewall/shorewall.conf", FileForm::Settings("STARTUP_ENABLED")),
    ("/etc/resolv.conf", FileForm::Resolver),
    // Which parts of k3s are switched off.
    ("/etc/rancher/k3s/config.yaml", FileForm::Flags),
];

/// Directories whose files are captured, each with the prefix that the file names must have, and
/// with what the files should be.
const DIRECTORIES: &[(&str, &str, FileForm)] = &[
    ("/etc/cni/net.d", "", FileForm::Cni),
    ("/etc/iptables", "rules.", FileForm::Rules),
    ("/etc/rancher/k3s/config.yaml.d", "", FileForm::Flags),
];

/// Programs, each with the flags that name its configuration file, and with what that should be.
/// The name is a path in the root of the program's process.
const CONFIG_FLAGS: &[(&str, &[&str], FileForm)] = &[
    ("kube-proxy", &["--config"], FileForm::KubeProxy),
    ("node-cache", &["-conf", "--conf"], FileForm::Corefile),
    ("k3s", &["--config", "-c"], FileForm::Flags),
];

/// What is read, and what is said of it.
struct ConfigReader {
    files: Files,
    notes: Vec<String>,
    allowance: Allowance,
}

/// Reads the configuration of this node, of its kube-proxy and of its nodelocaldns. Returns the
/// files, and a note for each file that is not kept. Such a file is in the result without a text, so
/// that a file whose presence means that its owner lives is not missed.
pub fn read(components: &[RunningComponent]) -> (Files, Vec<String>) {
    let allowance = Allowance::of_a_capture();
    let mut reading = ConfigReader { files: Files::new(), notes: Vec::new(), allowance };
    let root = Root::ours();
    match &root {
        Ok(root) => reading.of_the_node(root),
        Err(error) => reading.note("the node's configuration", &error.to_string()),
    }
    for component in components {
        reading.of(component);
    }
    if let Ok(root) = &root {
        // The last, because a folder that is a sign is a file of the capture, with nothing below it.
        reading.signs(root);
    }
    (reading.files, reading.notes)
}

impl ConfigReader {
    fn of_the_node(&mut self, root: &Root) {
        for (path, form) in FILES {
            self.add(root, path, path, *form);
        }
        for (directory, prefix, form) in DIRECTORIES {
            self.directory(root, directory, prefix, *form);
        }
    }

    /// The signs of life that are files, of which nothing but their presence is used, and the pods of
    /// components.
    fn signs(&mut self, root: &Root) {
        // A test shows that the built-in catalogue gives no error.
        let Ok(known) = known_signs() else { return };
        for path in &known.files {
            if !self.is_taken(path) && root.exists(path) {
                self.files.insert(format!("files{path}"), "".into());
            }
        }
        let pods = root.directories(PODS).unwrap_or_else(|why| {
            self.omit(PODS, &why.to_string());
            Vec::new()
        });
        for folder in pods {
            let name = folder.split('_').nth(1).unwrap_or_default();
            if known.pods.iter().any(|pattern| pattern.is_match(name)) {
                self.files.insert(format!("files{PODS}/{folder}"), "".into());
            }
        }
    }

    /// Whether something at `path`, above it or below it is taken: a snapshot has no file beside a
    /// folder of that name.
    fn is_taken(&self, path: &str) -> bool {
        let mut above = Path::new(path).ancestors().filter_map(Path::to_str);
        let below = format!("files{path}/");
        let mut after = self.files.range(below.clone()..);
        above.any(|path| self.files.contains_key(&format!("files{path}")))
            || after.next().is_some_and(|(name, _)| name.starts_with(&below))
    }

    fn directory(&mut self, root: &Root, directory: &str, prefix: &str, form: FileForm) {
        let names = root.names(directory).unwrap_or_else(|why| {
            self.omit(directory, &why.to_string());
            Vec::new()
        });
        let names: Vec<String> = names.into_iter().filter(|n| n.starts_with(prefix)).collect();
        if let Some(next) = names.get(MOST) {
            let more = names.len() - MOST;
            self.note(directory, &format!("of its files, {more} after the first {MOST}"));
            // Whether there are more is known from the first of them.
            self.files.insert(format!("files{directory}/{next}"), "".into());
        }
        let Ok(Some(inside)) = root.confined(directory) else { return };
        for name in names.iter().take(MOST) {
            let path = format!("{directory}/{name}");
            self.add(&inside, &format!("/{name}"), &path, form);
            if !self.files.contains_key(&format!("files{path}")) {
                self.omit(&path, "it is a link that leads nowhere");
            }
        }
    }

    /// The configuration files that the arguments of a process that counts name.
    fn of(&mut self, RunningComponent { pinned, process }: &RunningComponent) {
        let flags = CONFIG_FLAGS.iter().filter(|(name, ..)| *name == process.name);
        for (_, flags, form) in flags {
            let mut paths = flags.iter().filter_map(|flag| flag_value(&process.args, flag));
            let Some(path) = paths.next() else { continue };
            if is_the_nodes(path) {
                self.note(path, "a process calls it its own, and on the node it is another's");
                continue;
            }
            match Root::of(pinned) {
                Ok(root) => self.add(&root, path, path, *form),
                // The process has ended, and its files with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.note(path, &error.to_string()),
            }
        }
    }

    /// Adds what is kept of the file at `place` below `root`, by its `path` on the node. Adds nothing
    /// for a missing file.
    fn add(&mut self, root: &Root, place: &str, path: &str, form: FileForm) {
        let key = format!("files{path}");
        if self.files.contains_key(&key) {
            return;
        }
        if is_credential(path) {
            return self.omit(path, "it is a credential by its name");
        }
        match root.text(place, LIMIT, &mut self.allowance) {
            Ok(None) => {}
            Ok(Some(text)) => match form.kept(path, &text) {
                // Masks may be longer than what they are put in the place of.
                Ok(kept) if kept.len() as u64 <= LIMIT => {
                    self.files.insert(key, kept.into());
                }
                Ok(_) => self.omit(path, &Refusal::TooLarge(LIMIT).to_string()),
                Err(why) => self.omit(path, &why),
            },
            // A path that names no file of the node cannot be the name of a file of a snapshot.
            Err(why @ Refusal::NotAbsolute) => self.note(path, &why.to_string()),
            Err(why) => self.omit(path, &why.to_string()),
        }
    }

    /// Remembers a file that is there, without its text.
    fn omit(&mut self, path: &str, why: &str) {
        self.files.entry(format!("files{path}")).or_insert_with(|| "".into());
        self.note(path, why);
    }

    fn note(&mut self, path: &str, why: &str) {
        self.notes.push(format!("{path} is not captured: {why}"));
    }
}

/// Whether something else is read at that path of the node, or above or below it. In a process's root
/// there may be anything at that path.
fn is_the_nodes(path: &str) -> bool {
    let files = FILES.iter().map(|(path, form)| (*path, *form));
    let folders = DIRECTORIES.iter().map(|(path, _, form)| (*path, *form));
    let others = files.chain(folders).filter(|(_, form)| *form != FileForm::Flags);
    let mut others = others.map(|(path, _)| path).chain([PODS]);
    others.any(|own| is_within(path, own) || is_within(own, path))
        // A folder that is a sign may hold the settings of its owner.
        || known_signs().is_ok_and(|known| known.files.iter().any(|own| is_within(own, path)))
}

/// Whether `path` is `folder` or below it.
fn is_within(path: &str, folder: &str) -> bool {
    Path::new(path).starts_with(folder)
}

/// Whether the name of a file says that it holds nothing but a credential.
fn is_credential(path: &str) -> bool {
    let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
    name.contains("kubeconfig")
        || [".key", ".pem", ".crt", ".token"].iter().any(|e| name.ends_with(e))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::node::trust::PinnedProcess;
    use crate::state::tools::Process;

    const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n\
        kind: KubeProxyConfiguration\nmode: ipvs\n";

    fn component(name: &str, line: &str) -> RunningComponent {
        let args = line.split(' ').map(str::to_owned).collect();
        let pid = std::process::id();
        RunningComponent {
            pinned: PinnedProcess::open(pid).unwrap(),
            process: Process { pid, name: name.into(), args, ..Process::default() },
        }
    }

    #[test]
    fn the_file_that_a_programs_flag_names_is_captured() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("corefile"), ". {\n    bind 169.254.20.10\n}\n").unwrap();
        fs::write(at("config"), CONFIG).unwrap();
        for (name, flag, file, captured) in [
            ("node-cache", "-conf ", "corefile", true),
            ("node-cache", "--conf=", "corefile", true),
            ("kube-proxy", "--config=", "config", true),
            ("kubelet", "--config=", "config", false),
            // Nothing but what it should be.
            ("kube-proxy", "--config=", "corefile", false),
            ("node-cache", "-conf ", "config", false),
        ] {
            let path = at(file);
            let (files, notes) = read(&[component(name, &format!("/{name} {flag}{path}"))]);
            let text = files.get(&format!("files{path}")).map(|text| &**text);
            assert_eq!(text.is_some_and(|text| !text.is_empty()), captured, "{name} {notes:?}");
        }
    }

    fn read_directory(dir: &Path) -> (Files, Vec<String>) {
        let allowance = Allowance::of_a_capture();
        let mut reading = ConfigReader { files: Files::new(), notes: Vec::new(), allowance };
        let directory = dir.to_str().unwrap();
        reading.directory(&Root::ours().unwrap(), directory, "", FileForm::Cni);
        let files = reading.files.into_iter();
        let short = |name: String| name.rsplit('/').next().unwrap_or_default().to_owned();
        (files.map(|(name, text)| (short(name), text)).collect(), reading.notes)
    }

    #[test]
    fn what_is_not_kept_is_named_and_there() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let network = "{\"name\": \"n\", \"type\": \"bridge\", \"bridge\": \"b0\"}";
        fs::write(at("10-n.conf"), network).unwrap();
        fs::write(at("11-secret.conf"), "eyJhbGciOiJSUzI1NiJ9.e30.c2ln").unwrap();
        fs::write(at("calico-kubeconfig"), network).unwrap();
        symlink("/etc/shadow", at("12-shadow.conf")).unwrap();
        symlink("/proc/kmsg", at("13-kmsg.conf")).unwrap();
        symlink("10-n.conf", at("14-link.conf")).unwrap();
        let (files, notes) = read_directory(dir.path());
        let kept = |name: &str| !files[name].is_empty();
        assert!(kept("10-n.conf") && kept("14-link.conf"), "{files:?}");
        for (name, why) in [
            ("11-secret.conf", "expected"),
            ("calico-kubeconfig", "credential"),
            ("12-shadow.conf", "leads out"),
            ("13-kmsg.conf", "leads out"),
        ] {
            assert_eq!(&*files[name], "", "{name}");
            let note = notes.iter().find(|n| n.contains(name)).unwrap();
            assert!(note.contains(why) && !note.contains("eyJ"), "{note}");
        }
    }

    #[test]
    fn a_directory_of_a_thousand_files_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..1300 {
            fs::File::create(dir.path().join(format!("{n:04}.conf")))
                .unwrap()
                .set_len(1 << 20)
                .unwrap();
        }
        let (files, notes) = read_directory(dir.path());
        assert_eq!(files.len(), MOST + 1, "and the next");
        assert!(files.values().all(|text| text.is_empty()), "zeros are no network");
        assert!(notes.iter().any(|n| n.contains("1236 after the first 64")), "{}", notes[0]);
        assert!(notes.iter().any(|n| n.contains("enough has been read")));
    }
}
