//! The manifest of a static pod that runs kube-proxy: the container's mounts and arguments.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::config_edit::ConfigEdit;
use super::line::{indent, is_content, put, quoted_like, refused, unquoted, value};
use crate::error::{Error, Kind, LONGEST_NAME, Result, shortened};
use crate::state::kube_proxy::CommandLine;
use crate::yaml;

#[derive(Deserialize)]
struct Pod {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    containers: Vec<Container>,
    #[serde(default)]
    volumes: Option<Vec<Volume>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    #[serde(default)]
    command: Option<Vec<String>>,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    volume_mounts: Option<Vec<Mount>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    name: String,
    mount_path: PathBuf,
    #[serde(default)]
    sub_path: Option<String>,
    #[serde(default)]
    sub_path_expr: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    name: String,
    #[serde(default)]
    host_path: Option<HostPath>,
}

#[derive(Deserialize)]
struct HostPath {
    path: PathBuf,
}

impl Container {
    /// The container's command line: the program, which is absent if the image chooses it, then the
    /// arguments.
    fn words(&self) -> Vec<String> {
        self.command.iter().chain(&self.args).flatten().cloned().collect()
    }

    fn is_kube_proxy(&self) -> bool {
        self.name == "kube-proxy" || self.words().iter().any(|word| is_program(word))
    }
}

fn is_program(word: &str) -> bool {
    Path::new(word).file_name().is_some_and(|file| file == "kube-proxy")
}

/// Whether the text is the manifest of a pod that runs kube-proxy.
pub fn runs_kube_proxy(text: &str) -> bool {
    // Most manifests are of other components, and are not parsed.
    text.contains("kube-proxy")
        && yaml::parse::<Pod>("", text)
            .is_ok_and(|pod| pod.spec.containers.iter().any(Container::is_kube_proxy))
}

/// The index of the only container that runs kube-proxy.
fn container(file: &str, pod: &Pod) -> Result<usize> {
    let containers = &pod.spec.containers;
    let mut of_kube_proxy = (0..containers.len()).filter(|at| containers[*at].is_kube_proxy());
    match (of_kube_proxy.next(), of_kube_proxy.next()) {
        (Some(at), None) => Ok(at),
        (None, _) => Err(Error::new(Kind::Parse, file, "none of its containers runs kube-proxy")),
        (Some(_), Some(_)) => Err(Error::new(Kind::Parse, file, "two containers run kube-proxy")),
    }
}

/// The command line of kube-proxy's container.
///
/// # Errors
/// [`Kind::Parse`] for a manifest that does not run kube-proxy in one container.
pub fn command_line(file: &str, text: &str) -> Result<Vec<String>> {
    let pod: Pod = yaml::parse(file, text)?;
    Ok(pod.spec.containers[container(file, &pod)?].words())
}

/// The path on the host of `inside`, a path in kube-proxy's container.
///
/// # Errors
/// [`Kind::Parse`] if no folder or file of the host is mounted at `inside`.
pub fn host_path(file: &str, text: &str, inside: &str) -> Result<PathBuf> {
    let pod: Pod = yaml::parse(file, text)?;
    let container = &pod.spec.containers[container(file, &pod)?];
    let inside = Path::new(inside);
    let refused = |cause: &str| {
        let inside = shortened(&inside.display().to_string(), LONGEST_NAME);
        let cause = format!("{cause} {inside} of the container");
        Error::new(Kind::Parse, file, cause)
            .hint("mount the folder of kube-proxy's configuration as a hostPath")
    };
    if inside.components().any(|c| c == Component::ParentDir) {
        return Err(refused("nobody knows where `..` leads in"));
    }
    let mounts = container.volume_mounts.iter().flatten();
    // Of nested mounts, the innermost one holds the file.
    let mount = mounts
        .filter(|mount| inside.starts_with(&mount.mount_path))
        .max_by_key(|mount| mount.mount_path.components().count())
        .ok_or_else(|| refused("nothing of the host is mounted at"))?;
    if mount.sub_path.is_some() || mount.sub_path_expr.is_some() {
        return Err(refused("a subPath is mounted at"));
    }
    let volume = pod.spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
    let host = volume
        .and_then(|volume| volume.host_path.as_ref())
        .ok_or_else(|| refused("something else than a hostPath is mounted at"))?;
    let rest = inside.strip_prefix(&mount.mount_path).unwrap_or(Path::new(""));
    // Joining an empty path would add a slash at the end.
    if rest.as_os_str().is_empty() {
        return Ok(host.path.clone());
    }
    Ok(host.path.join(rest))
}

/// The manifest after the edit of kube-proxy's arguments, each of which must be on a single line.
///
/// # Errors
/// [`Kind::Parse`], with file and line, for YAML in an unsupported form.
pub(super) fn edit(file: &str, text: &str, change: &ConfigEdit) -> Result<String> {
    let pod: Pod = yaml::parse(file, text)?;
    let number = container(file, &pod)?;
    let mut words = pod.spec.containers[number].words();
    let mut command_line = words.clone();
    match words.first().map(String::as_str) {
        Some(program) if is_program(program) => {}
        Some(program) if !program.starts_with('-') => {
            let at = text.split('\n').position(|line| line.contains(program)).unwrap_or(0);
            let cause = format!("kube-proxy is started by {program}, and not itself");
            return Err(refused(file, at, cause));
        }
        _ => command_line.insert(0, "kube-proxy".into()),
    }
    let before = CommandLine::parse(&command_line)?;
    if before.config.is_some() {
        let cause = "kube-proxy has a configuration file, and heeds no arguments beside it";
        return Err(Error::new(Kind::Parse, file, cause));
    }
    let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
    let mut edits = Vec::new();
    if before.flags.mode != Some(change.mode) {
        edits.push(("proxy-mode", change.mode.name().to_owned()));
    }
    let missing = change.missing(&before.flags.ipvs.exclude_cidrs);
    if !missing.is_empty() {
        let all = before.flags.ipvs.exclude_cidrs.iter().chain(&missing);
        let list: Vec<String> = all.map(ToString::to_string).collect();
        edits.push(("ipvs-exclude-cidrs", list.join(",")));
    }
    let mut expected: Value = yaml::parse(file, text)?;
    let mut at = 0;
    for (flag, new) in edits {
        at = set(file, &mut lines, &mut words, flag, &new)?;
    }
    let edited = lines.join("\n");
    put_words(&mut expected, number, &pod.spec.containers[number], &words);
    if yaml::parse::<Value>(file, &edited).ok() != Some(expected) {
        return Err(refused(file, at, "changed here, the manifest would not mean what was asked"));
    }
    Ok(edited)
}

/// Sets one flag, both in the manifest's lines and in the parsed arguments `words`. Returns the
/// index of the changed line.
fn set(
    file: &str,
    lines: &mut Vec<String>,
    words: &mut Vec<String>,
    flag: &str,
    new: &str,
) -> Result<usize> {
    let is_flag = |word: &String| {
        let name = word.strip_prefix("--").map(|w| w.split('=').next().unwrap_or(w));
        name.is_some_and(|name| name.replace('_', "-") == flag)
    };
    let given: Vec<usize> = (0..words.len()).filter(|i| is_flag(&words[*i])).collect();
    let new = format!("--{flag}={new}");
    match given[..] {
        [] => {
            let last = words.last().cloned();
            let (at, range) = item(file, lines, &last.unwrap_or_default(), flag)?;
            let before = lines[at][..range.start].to_owned();
            lines.insert(at + 1, format!("{before}{new}"));
            words.push(new);
            Ok(at + 1)
        }
        [given] if words[given].contains('=') => {
            let (at, range) = item(file, lines, &words[given], flag)?;
            let line = quoted_like(&lines[at][range.clone()], &new);
            put(&mut lines[at], range, &line);
            words[given] = new;
            Ok(at)
        }
        _ => {
            let at = lines.iter().position(|line| line.contains(&words[given[0]]));
            let cause = format!("the flag --{flag} is not given once, as --{flag}=VALUE");
            Err(refused(file, at.unwrap_or(0), cause))
        }
    }
}

/// The index of the only line with the list item `text`, and the item's range in that line.
fn item(
    file: &str,
    lines: &[String],
    text: &str,
    flag: &str,
) -> Result<(usize, std::ops::Range<usize>)> {
    let mut found = lines.iter().enumerate().filter_map(|(at, line)| {
        let dash = indent(line);
        if !is_content(line) || text.is_empty() || !line[dash..].starts_with("- ") {
            return None;
        }
        let range = value(line, dash + 1)?;
        (unquoted(&line[range.clone()]) == text).then_some((at, range))
    });
    match (found.next(), found.next()) {
        (Some(item), None) => Ok(item),
        _ => {
            let word = if text.is_empty() { "kube-proxy" } else { text };
            let at = lines.iter().position(|line| line.contains(word)).unwrap_or(0);
            let cause = format!("--{flag} cannot be set: the arguments are not one on a line each");
            Err(refused(file, at, cause))
        }
    }
}

/// Writes the edited arguments `words` back into `command` and `args` of the parsed manifest; new
/// arguments go to the end of `args`, or of `command` if there are no `args`.
fn put_words(pod: &mut Value, number: usize, old: &Container, words: &[String]) {
    let Some(container) = pod.pointer_mut(&format!("/spec/containers/{number}")) else { return };
    let command = old.command.as_ref().map_or(0, Vec::len);
    let has_args = old.args.as_ref().is_some_and(|args| !args.is_empty());
    let (first, second) = words.split_at(if has_args { command } else { words.len() });
    if !first.is_empty() {
        container["command"] = first.into();
    }
    if has_args {
        container["args"] = second.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::kube_proxy::Mode;

    const HEAD: &str = "# static\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n";

    fn change(networks: &[&str]) -> ConfigEdit {
        let exclude = networks.iter().map(|n| n.parse().unwrap()).collect();
        ConfigEdit { mode: Mode::Ipvs, exclude }
    }

    #[test]
    fn arguments_change_in_their_own_lines() {
        let cases = [
            (
                "  - name: kube-proxy\n    command:\n    - /usr/bin/kube-proxy\n    \
                 - \"--proxy-mode=iptables\" # old\n    - --v=2\n",
                "  - name: kube-proxy\n    command:\n    - /usr/bin/kube-proxy\n    \
                 - \"--proxy-mode=ipvs\" # old\n    - --v=2\n    \
                 - --ipvs-exclude-cidrs=10.9.0.0/24\n",
            ),
            (
                "  - name: p\n    command: [kube-proxy]\n    args:\n      \
                 - --ipvs_exclude_cidrs=10.1.0.0/16\n    image: x\n",
                "  - name: p\n    command: [kube-proxy]\n    args:\n      \
                 - --ipvs-exclude-cidrs=10.1.0.0/16,10.9.0.0/24\n      \
                 - --proxy-mode=ipvs\n    image: x\n",
            ),
        ];
        for (old, new) in cases {
            let edited = edit("m", &format!("{HEAD}{old}"), &change(&["10.9.0.0/24"]));
            assert_eq!(edited.unwrap(), format!("{HEAD}{new}"));
        }
    }

    #[test]
    fn a_manifest_without_arguments_or_with_a_shell_is_refused() {
        for (spec, expected) in [
            (
                "  - name: kube-proxy\n    command: [kube-proxy, --proxy-mode=iptables]\n",
                "m:7: --proxy-mode cannot",
            ),
            (
                "  - name: kube-proxy\n    command:\n    - sh\n    - -c\n    \
                 - kube-proxy --proxy-mode=iptables 2>&1\n",
                "m:8: kube-proxy is started by sh",
            ),
            ("  - name: kube-proxy\n    image: x\n", "m:6: --proxy-mode cannot"),
            (
                "  - name: kube-proxy\n    args:\n    - --proxy-mode\n    - iptables\n",
                "m:8: the flag --proxy-mode",
            ),
            (
                "  - name: kube-proxy\n    args:\n    - --config=/c\n",
                "m: kube-proxy has a configuration",
            ),
            ("  - name: a\n", "m: none of its containers"),
            ("  - name: kube-proxy\n  - name: b\n    command: [kube-proxy]\n", "m: two containers"),
        ] {
            let result = edit("m", &format!("{HEAD}{spec}"), &change(&[]));
            let error = result.expect_err(spec);
            assert!(error.to_string().starts_with(expected), "{error}");
            assert_eq!(error.kind.exit_code(), 3);
        }
    }

    #[test]
    fn files_of_the_container_are_found_on_the_host() {
        let text = format!(
            "{HEAD}  - name: kube-proxy\n    volumeMounts:\n    \
             - {{name: lib, mountPath: /var/lib}}\n    \
             - {{name: own, mountPath: /var/lib/kube-proxy}}\n    \
             - {{name: one, mountPath: /c}}\n    - {{name: map, mountPath: /map}}\n    \
             - {{name: own, mountPath: /sub, subPath: x}}\n  volumes:\n  \
             - {{name: lib, hostPath: {{path: /srv/lib}}}}\n  \
             - {{name: own, hostPath: {{path: /etc/kp}}}}\n  \
             - {{name: one, hostPath: {{path: /etc/kp/one.conf}}}}\n  \
             - {{name: map, configMap: {{name: x}}}}\n"
        );
        assert!(runs_kube_proxy(&text) && !runs_kube_proxy("# kube-proxy\nkind: Pod\n"));
        let at = |inside| host_path("m", &text, inside).map(|p| p.display().to_string());
        assert_eq!(at("/var/lib/kube-proxy/config.conf").unwrap(), "/etc/kp/config.conf");
        assert_eq!(at("/var/lib/x").unwrap(), "/srv/lib/x");
        assert_eq!(at("/c").unwrap(), "/etc/kp/one.conf");
        for path in ["/map/config.conf", "/sub/config.conf", "/etc/config.conf", "/c/../d"] {
            assert_eq!(at(path).unwrap_err().kind, Kind::Parse, "{path}");
        }
    }
}
