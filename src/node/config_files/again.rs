//! Masks a capture that may have been made otherwise than by a capture of ours, such as a directory that
//! somebody has put together by hand.

use super::{CONFIG_FLAGS, DIRECTORIES, FILES, FileForm};
use crate::error::Result;
use crate::node::processes::flag_value;
use crate::node::secrets::{kept_arguments, masked};
use crate::state::Files;
use crate::state::cluster_facts::{self, CLUSTER};
use crate::state::tools::{Process, parse_processes, render_processes};

/// The file of a capture with the processes.
const PROCESSES: &str = "processes.json";

/// The files of a capture with what [`super::read`] and a capture of processes would have masked, and a
/// sentence for each file of which nothing is kept. What a capture of ours holds stays as it is.
///
/// # Errors
/// When the processes, or what the API server says, cannot be parsed.
pub fn masked_capture(mut files: Files) -> Result<(Files, Vec<String>)> {
    let processes = match files.get(PROCESSES).map(|text| text.trim()) {
        None | Some("null") => Vec::new(),
        Some(text) => parse_processes(PROCESSES, text)?,
    };
    let kept: Vec<Process> = processes.iter().map(without_secrets).collect();
    if kept != processes {
        files.insert(PROCESSES.to_owned(), render_processes(&kept)?.into());
    }
    if let Some(text) = files.get(CLUSTER) {
        // What is no field of it goes.
        let kept = cluster_facts::render(&cluster_facts::parse(CLUSTER, text)?)?;
        files.insert(CLUSTER.to_owned(), kept.into());
    }
    let mut notes = Vec::new();
    for (name, text) in &mut files {
        let Some(path) = name.strip_prefix("files").filter(|_| !text.is_empty()) else { continue };
        let kept = match form(path, &kept) {
            Some(form) => form.kept(path, text),
            None => Err("what it may hold is not known".to_owned()),
        };
        match kept {
            Ok(kept) if kept == **text => {}
            Ok(kept) => *text = kept.into(),
            Err(why) => {
                notes.push(format!("{path}: its text is left out: {why}"));
                *text = "".into();
            }
        }
    }
    Ok((files, notes))
}

fn without_secrets(process: &Process) -> Process {
    let mut args = kept_arguments(&process.name, &process.args);
    // A program may have set its title, which then stands in the place of all arguments.
    if let Some(title) = args.first_mut() {
        *title = masked(title);
    }
    Process { args, ..process.clone() }
}

/// What the file at `path` should be; none for a file that no capture reads.
fn form(path: &str, processes: &[Process]) -> Option<FileForm> {
    let file = FILES.iter().find(|(file, _)| *file == path).map(|(_, form)| *form);
    let in_folder = || {
        let (folder, name) = path.rsplit_once('/')?;
        let of = |(directory, prefix, _): &&(&str, &str, FileForm)| {
            *directory == folder && name.starts_with(prefix)
        };
        DIRECTORIES.iter().find(of).map(|(.., form)| *form)
    };
    let named = || {
        let names = |process: &Process, flags: &[&str]| {
            flags.iter().any(|flag| flag_value(&process.args, flag) == Some(path))
        };
        let of = |(program, flags, _): &&(&str, &[&str], FileForm)| {
            processes.iter().any(|process| process.name == *program && names(process, flags))
        };
        CONFIG_FLAGS.iter().find(of).map(|(.., form)| *form)
    };
    file.or_else(in_folder).or_else(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> Files {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).into())).collect()
    }

    #[test]
    fn what_no_capture_of_ours_would_hold_is_masked() {
        let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                      authToken: s3cret\nmode: ipvs\n";
        let processes = r#"[{"pid": 1, "name": "kube-proxy", "args": ["kube-proxy", "--config=/k/c"]},
            {"pid": 2, "name": "k3s", "args": ["k3s", "server", "--token", "s3cret"]},
            {"pid": 3, "name": "flanneld", "args": ["flanneld --password s3cret"]}]"#;
        let (kept, notes) = masked_capture(files(&[
            ("processes.json", processes),
            ("files/k/c", config),
            ("cluster.json", r#"{"servers": [], "token": "s3cret"}"#),
            ("files/etc/docker/daemon.json", "{\"iptables\": false, \"PSK\": \"s3cret\"}"),
            ("files/etc/cni/net.d/k", "users: [{token: s3cret}]"),
            ("files/root/.kube/config", "token: s3cret"),
            ("files/sign", ""),
        ]))
        .unwrap();
        let all: String = kept.values().map(|text| text.to_string()).collect();
        assert!(!all.contains("s3cret"), "{all}");
        assert!(kept["files/k/c"].contains("mode: ipvs") && all.contains("\"iptables\":false"));
        assert!(kept.contains_key("files/root/.kube/config"), "that it is there is no secret");
        assert_eq!(notes.len(), 2, "{notes:?}");
        let (again, notes) = masked_capture(kept.clone()).unwrap();
        assert_eq!((again, notes.len()), (kept, 0), "what is masked stays as it is");
    }

    #[test]
    fn a_capture_whose_processes_are_not_known_stays() {
        let unknown = files(&[("processes.json", "null\n"), ("tools.txt", "kernel 6.1\n")]);
        assert_eq!(masked_capture(unknown.clone()).unwrap().0, unknown);
    }
}
