//! The signs of life of a component, as its catalogue file lists them under `alive`. There is no
//! other list: a capture takes these signs, and [`super::liveness`] judges them.

use serde::Deserialize;

use crate::state::tools::Process;
use crate::state::{NodeState, multicall};
use crate::yaml;

/// Why a program whose arguments are hidden or masked tells nothing.
const HIDDEN: &str = "its arguments are not in this state";

/// The flags that name a program's settings.
const CONFIG: [&str; 2] = ["config", "c"];

/// What shows that a component is alive. One sign is enough.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alive {
    /// The programs that are the component, or that hold it.
    #[serde(default)]
    pub processes: Vec<ProcessSign>,
    /// Paths of files, sockets and folders that are there as long as the component is.
    #[serde(default)]
    pub files: Vec<String>,
    /// Name patterns of links that are there as long as the component is.
    #[serde(default)]
    pub links: Vec<String>,
    /// Types of the component's CNI plugins. One is a sign if new pods get their network from it.
    #[serde(default)]
    pub plugins: Vec<String>,
    /// Name patterns of the component's pods. One that the kubelet keeps on this node is a sign, also
    /// between two starts of its containers.
    #[serde(default)]
    pub pods: Vec<String>,
    /// What stays on the node when the component has gone.
    #[serde(default)]
    pub outlived_by: Traces,
}

/// What a component leaves on a node when it goes. Alone it shows nothing, and permits nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// Paths of files, sockets and folders.
    #[serde(default)]
    pub files: Vec<String>,
    /// Name patterns of links.
    #[serde(default)]
    pub links: Vec<String>,
}

/// A program that is the component, or that holds it among other parts. In a catalogue file it is a
/// name, or a mapping of these fields.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "RawProcessSign")]
pub struct ProcessSign {
    /// The names that a process of the program may have.
    pub names: Vec<String>,
    /// The words of which one is in the arguments, or in the name of the process, if the program is
    /// to hold the component. If the list is empty, the arguments do not matter.
    pub words: Vec<String>,
    /// The flags, without dashes, with which the program runs without the component:
    /// `disable-network-policy`, or with a value `flannel-backend=none`.
    pub off: Vec<String>,
    /// The YAML file that has flags too. Those of the command line come after them.
    pub settings: Option<String>,
    /// The word with which another node decides about the component.
    pub decided_elsewhere: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawProcessSign {
    Name(String),
    Program(ProgramFields),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgramFields {
    names: Vec<String>,
    #[serde(default)]
    words: Vec<String>,
    #[serde(default)]
    off: Vec<String>,
    settings: Option<String>,
    decided_elsewhere: Option<String>,
}

impl From<RawProcessSign> for ProcessSign {
    fn from(raw: RawProcessSign) -> ProcessSign {
        let program = match raw {
            RawProcessSign::Program(program) => program,
            RawProcessSign::Name(name) => ProgramFields {
                names: vec![name],
                words: Vec::new(),
                off: Vec::new(),
                settings: None,
                decided_elsewhere: None,
            },
        };
        let ProgramFields { names, words, off, settings, decided_elsewhere } = program;
        ProcessSign { names, words, off, settings, decided_elsewhere }
    }
}

/// Whether a program that runs holds a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Embedding {
    /// It does.
    Runs,
    /// It does not. The string is the flag that says so.
    Off(String),
    /// Its arguments do not tell. The string says why.
    Unclear(&'static str),
}

impl Alive {
    /// Whether a process of that name may be the component's.
    pub fn names_process(&self, name: &str) -> bool {
        self.processes.iter().any(|sign| sign.names.iter().any(|n| n == name))
    }

    /// Whether `process` holds the component; `None` if it is another program, or this one as
    /// something else.
    pub fn part(&self, process: &Process, state: &NodeState) -> Option<Embedding> {
        let may_be = || multicall::parts(&process.name).any(|part| self.names_process(part));
        let part = self.processes.iter().find_map(|sign| sign.part(process, state));
        // A program that is several in one, of which the arguments would tell.
        part.or_else(|| {
            (process.hides_arguments() && may_be()).then_some(Embedding::Unclear(HIDDEN))
        })
    }
}

impl ProcessSign {
    /// Whether this sign looks at the flag of that name, without its dashes.
    pub fn uses_flag(&self, name: &str) -> bool {
        let is = |off: &String| off.split('=').next() == Some(name);
        self.off.iter().any(is) || self.names_settings(name)
    }

    /// Whether the flag of that name, without its dashes, names the program's settings.
    pub fn names_settings(&self, name: &str) -> bool {
        self.settings.is_some() && CONFIG.contains(&name)
    }

    /// Whether this sign looks for that word in the arguments.
    pub fn uses_word(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word) || self.decided_elsewhere.as_deref() == Some(word)
    }

    fn part(&self, process: &Process, state: &NodeState) -> Option<Embedding> {
        if !self.names.contains(&process.name) {
            return None;
        }
        let words = words(process);
        let hidden = process.hides_arguments();
        let has = |word: &String| words.contains(&word.as_str());
        if !self.words.is_empty() && !self.words.iter().any(has) {
            return hidden.then_some(Embedding::Unclear(HIDDEN));
        }
        if self.off.is_empty() {
            return Some(Embedding::Runs);
        }
        let settings = self.settings_files(process, state);
        let mut flags: Vec<String> = settings.iter().flat_map(|(n, t)| settings_in(n, t)).collect();
        flags.extend(process.args.iter().skip(1).cloned());
        let elsewhere = self.decided_elsewhere.as_deref();
        // What is not seen may say the opposite, and would count if it comes last.
        Some(if elsewhere.is_some_and(|word| words.contains(&word)) {
            Embedding::Unclear("another node tells it that")
        } else if hidden {
            Embedding::Unclear(HIDDEN)
        } else if settings.iter().any(|(_, text)| text.is_empty()) {
            Embedding::Unclear("its settings are not in this state")
        } else if let Some(off) = self.off.iter().find(|off| is_set(&flags, off)) {
            Embedding::Off(format!("--{off}"))
        } else {
            Embedding::Runs
        })
    }

    /// The files of the program's settings: the one that its arguments name or its own, then those of
    /// the folder beside it, in their order. One that could not be read has no text.
    fn settings_files<'a>(
        &self,
        process: &Process,
        state: &'a NodeState,
    ) -> Vec<(&'a str, &'a str)> {
        let Some(own) = &self.settings else { return Vec::new() };
        let named = CONFIG.iter().find_map(|flag| value(&process.args, flag));
        let path = named.unwrap_or_else(|| own.clone());
        let (first, folder) = (format!("files{path}"), format!("files{path}.d"));
        let beside = state.files.range(folder.clone()..);
        let beside = beside.take_while(|(name, _)| name.starts_with(&folder));
        // k3s reads no others. The folder itself stands for what could not be listed.
        let is_read =
            |name: &str| name == folder || [".yaml", ".yml"].iter().any(|end| name.ends_with(end));
        let beside = beside.filter(|(name, _)| is_read(name));
        let files = state.files.get_key_value(&first).into_iter().chain(beside);
        files.map(|(name, text)| (name.as_str(), &**text)).collect()
    }
}

/// The settings in the text of a YAML file as arguments. A file of another form has none.
fn settings_in(name: &str, text: &str) -> Vec<String> {
    let Ok(yaml::Value::Mapping(fields)) = yaml::parse(name, text) else { return Vec::new() };
    let word = |(key, value): (&yaml::Value, &yaml::Value)| {
        let key = key.as_str()?.trim_end_matches('+');
        match value {
            yaml::Value::Bool(value) => Some(format!("--{key}={value}")),
            yaml::Value::String(value) => Some(format!("--{key}={value}")),
            _ => None,
        }
    };
    fields.iter().filter_map(word).collect()
}

/// The parts of a process's name, its program's file name, and its other arguments. A program that
/// has set its title has all of them in the first.
fn words(process: &Process) -> Vec<&str> {
    let mut args = process.args.iter().flat_map(|arg| arg.split_whitespace());
    let program = args.next().map(|path| path.rsplit('/').next().unwrap_or(path));
    process.name.split('-').chain(program).chain(args).collect()
}

/// Whether the last flag of that name in `args` has the value that `wanted` gives, or is true if it
/// gives none.
fn is_set(args: &[String], wanted: &str) -> bool {
    const TRUE: [&str; 6] = ["true", "True", "TRUE", "t", "T", "1"];
    match wanted.split_once('=') {
        Some((name, wanted)) => value(args, name).is_some_and(|value| value == wanted),
        None => {
            let mut given = args.iter().filter_map(|arg| flag(arg)).filter(|(n, _)| *n == wanted);
            given.next_back().is_some_and(|(_, value)| value.is_none_or(|v| TRUE.contains(&v)))
        }
    }
}

/// The value of the last flag of that name, given as `--name=VALUE` or `--name VALUE`.
fn value(args: &[String], name: &str) -> Option<String> {
    let at = args.iter().rposition(|arg| flag(arg).is_some_and(|(found, _)| found == name))?;
    match flag(&args[at])?.1 {
        Some(value) => Some(value.to_owned()),
        None => args.get(at + 1).cloned(),
    }
}

/// The name of the flag that an argument is, without its dashes, and its value.
fn flag(arg: &str) -> Option<(&str, Option<&str>)> {
    let bare = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-'))?;
    Some(bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(value))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, line: &str) -> Process {
        let args: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let process = serde_json::json!({"pid": 7, "name": name, "args": args});
        serde_json::from_value(process).unwrap()
    }

    fn sign(text: &str) -> ProcessSign {
        yaml::parse("sign", text).unwrap()
    }

    #[test]
    fn a_program_of_many_parts_is_known_by_its_arguments() {
        let felix: Alive = yaml::parse("alive", "{processes: [calico-felix]}").unwrap();
        let none = NodeState::default();
        for (name, line, part) in [
            ("calico-felix", "calico <masked> <masked>", Some(Embedding::Runs)),
            ("calico", "/usr/bin/calico component confd", None),
            ("calico", "/opt/cni/bin/calico", None),
            ("calico", "/usr/bin/calico <masked> <masked>", Some(Embedding::Unclear(HIDDEN))),
            ("calico", "", Some(Embedding::Unclear(HIDDEN))),
            ("hyperkube", "", None),
        ] {
            assert_eq!(felix.part(&process(name, line), &none), part, "{line}");
        }
    }

    #[test]
    fn a_part_that_is_switched_off_does_not_run() {
        let flannel = "{names: [k3s, k3s-agent], words: [server, agent], off: [flannel-backend=none], \
                       settings: /s.yaml, decided_elsewhere: agent}";
        let policy =
            "{names: [k3s], words: [server], off: [disable-network-policy], settings: /s.yaml}";
        let state = |files: &[(&str, &str)]| {
            let files = files.iter().map(|(name, text)| (format!("files{name}"), (*text).into()));
            NodeState { files: files.collect(), ..NodeState::default() }
        };
        let off = |flag: &str| Some(Embedding::Off(flag.into()));
        let (none, backend) = (state(&[]), off("--flannel-backend=none"));
        let unclear = |why| Some(Embedding::Unclear(why));
        for (text, name, line, part) in [
            (flannel, "k3s", "k3s server", Some(Embedding::Runs)),
            (flannel, "k3s", "k3s kubectl get pods", None),
            (flannel, "k3s", "k3s server --flannel-backend=none", backend.clone()),
            (flannel, "k3s", "k3s server --flannel-backend none", backend.clone()),
            (
                flannel,
                "k3s",
                "k3s server --flannel-backend=none --flannel-backend=vxlan",
                Some(Embedding::Runs),
            ),
            (flannel, "k3s", "k3s server --flannel-backend=host-gw", Some(Embedding::Runs)),
            (flannel, "k3s", "k3s agent", unclear("another node tells it that")),
            (flannel, "k3s-agent", "k3s", unclear("another node tells it that")),
            (flannel, "k3s", "k3s <masked>", unclear(HIDDEN)),
            (flannel, "k3s", "k3s server <masked>", Some(Embedding::Runs)),
            (policy, "k3s", "k3s server --disable-network-policy", off("--disable-network-policy")),
            (
                policy,
                "k3s",
                "k3s server -disable-network-policy=1",
                off("--disable-network-policy"),
            ),
            (policy, "k3s", "k3s server --disable-network-policy=false", Some(Embedding::Runs)),
            (policy, "k3s", "k3s server --disable-network-policy-x", Some(Embedding::Runs)),
        ] {
            assert_eq!(sign(text).part(&process(name, line), &none), part, "{line}");
        }
        for (files, line, is_off) in [
            (&[("/s.yaml", "disable-network-policy: true\n")][..], "k3s server", true),
            (&[("/s.yaml", "disable-network-policy: \"true\"\n")], "k3s server", true),
            (
                &[("/s.yaml", "disable-network-policy: true\n")],
                "k3s server --disable-network-policy=false",
                false,
            ),
            (&[("/s.yaml", "disable-network-policy: true\n")], "k3s server -c /t.yaml", false),
            (&[("/t.yaml", "disable-network-policy: true\n")], "k3s server --config=/t.yaml", true),
            (&[("/s.yaml.d/a.yaml", "disable-network-policy: true\n")], "k3s server", true),
            (
                &[
                    ("/s.yaml", "disable-network-policy: true\n"),
                    ("/s.yaml.d/a.yaml", "disable-network-policy: false\n"),
                ],
                "k3s server",
                false,
            ),
            (&[("/s.yaml.d/a.yaml.bak", "disable-network-policy: true\n")], "k3s server", false),
            (&[("/s.yaml", "{}")], "k3s server", false),
            (&[("/s.yaml", "- disable-network-policy\n")], "k3s server", false),
        ] {
            let part = sign(policy).part(&process("k3s", line), &state(files));
            assert_eq!(matches!(part, Some(Embedding::Off(_))), is_off, "{files:?} {line}");
        }
        for unread in [&[("/s.yaml", "")][..], &[("/s.yaml.d", "")], &[("/s.yaml.d/z.yaml", "")]] {
            let part = sign(policy).part(&process("k3s", "k3s server"), &state(unread));
            assert_eq!(part, unclear("its settings are not in this state"), "{unread:?}");
        }
        // k3s sets its title, and only its settings tell.
        let mut titled = process("k3s", "x");
        titled.args = vec!["/usr/local/bin/k3s server".into()];
        assert_eq!(sign(policy).part(&titled, &none), unclear(HIDDEN));
        let settings = state(&[("/s.yaml", "disable-network-policy: true\n")]);
        assert_eq!(sign(policy).part(&titled, &settings), unclear(HIDDEN));
        let part = sign(flannel).part(
            &process("k3s-agent", "k3s agent --x=y"),
            &state(&[("/s.yaml", "flannel-backend: none\n")]),
        );
        assert_eq!(part, unclear("another node tells it that"));
    }

    #[test]
    fn a_name_alone_is_a_sign() {
        let sign = sign("flanneld");
        assert_eq!((sign.names, sign.words.len() + sign.off.len()), (vec!["flanneld".into()], 0));
        assert!(yaml::parse::<ProcessSign>("s", "{names: [a], word: [b]}").is_err());
    }
}
