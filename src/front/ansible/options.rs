//! The options of an Ansible task, parsed into types that admit only valid values.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::front::cli::args;
use crate::guard::Exception;
use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;

/// The prefix of the names of Ansible's own options.
pub(super) const ANSIBLE: &str = "_ansible_";

/// How many seconds to wait for locks by default, as on the command line.
const LOCK_WAIT: u64 = 10;

/// The state that the task asks for, with the options of that state.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    /// The checks ran, and no finding blocks a migration.
    Checked { to: Option<Mode>, snapshot: Option<String>, ignore: Vec<String> },
    /// A snapshot of the node's current state exists.
    Snapshotted,
    /// The node has no leftovers.
    Cleaned { owners: Vec<String>, confirm_within: Option<Duration> },
    /// kube-proxy serves in the mode `to`.
    Migrated {
        to: Mode,
        playbook: Option<PathBuf>,
        confirm_within: Option<Duration>,
        ignore: Vec<String>,
    },
    /// The run that waited to be confirmed is confirmed.
    Confirmed,
    /// The last run is undone; or, with `to`, all runs since the snapshot `to`.
    RolledBack { to: Option<String> },
    /// The rules of each exception exist, in front of the rules that drop INVALID packets.
    Guarded { exceptions: Vec<Exception> },
}

/// A task: the state that it asks for, and options that apply to every state.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModuleTask {
    pub(super) state: State,
    pub(super) store: Option<PathBuf>,
    pub(super) lock_wait: Duration,
    /// Whether to preview only, as Ansible's check mode asks.
    pub(super) check: bool,
    /// Whether to show the changes, as Ansible's diff mode asks.
    pub(super) diff: bool,
    /// Whether to log every step in the result.
    pub(super) verbose: bool,
}

impl ModuleTask {
    /// Reads the options of a task.
    ///
    /// # Errors
    /// [`Kind::Usage`], naming the option that is unknown, missing, not used by the state, or
    /// invalid.
    pub(super) fn parse(options: &Map<String, Value>) -> Result<ModuleTask> {
        let mut given = UnreadOptions::of(options);
        let name = given.text("state")?.ok_or_else(|| missing("state", STATES))?;
        let state = match name.as_str() {
            "checked" => State::Checked {
                to: given.target("to")?,
                snapshot: given.text("snapshot")?,
                ignore: given.list("ignore")?,
            },
            "snapshotted" => State::Snapshotted,
            "cleaned" => State::Cleaned {
                owners: given.list("owners")?,
                confirm_within: given.time("confirm_within")?,
            },
            "migrated" => State::Migrated {
                to: given.target("to")?.ok_or_else(|| missing("to", "name the mode to go to"))?,
                playbook: given.text("playbook")?.map(PathBuf::from),
                confirm_within: given.time("confirm_within")?,
                ignore: given.list("ignore")?,
            },
            "confirmed" => State::Confirmed,
            "rolled_back" => State::RolledBack { to: given.text("snapshot")? },
            "guarded" => State::Guarded { exceptions: exceptions(&mut given)? },
            other => return Err(usage("state", format!("there is no state `{other}`"), STATES)),
        };
        let task = ModuleTask {
            state,
            store: given.text("store")?.map(PathBuf::from),
            lock_wait: Duration::from_secs(given.number("lock_wait")?.unwrap_or(LOCK_WAIT)),
            check: flag(options, "check_mode")?,
            diff: flag(options, "diff")?,
            verbose: options.get("_ansible_verbosity").and_then(Value::as_u64).unwrap_or(0) > 0,
        };
        match given.left() {
            None => Ok(task),
            Some(option) if OPTIONS.contains(&option) => {
                Err(usage(option, format!("means nothing with state `{name}`"), "leave it out"))
            }
            Some(option) => Err(usage(
                option,
                "there is no such option".into(),
                "`ansible-doc proxyshift.node.proxyshift` lists them all",
            )),
        }
    }
}

const STATES: &str = "it is one of checked, snapshotted, cleaned, migrated, confirmed, rolled_back, \
                      guarded";

/// The names of all options that the module has, whatever the state.
const OPTIONS: [&str; 10] = [
    "state",
    "to",
    "confirm_within",
    "snapshot",
    "owners",
    "ignore",
    "playbook",
    "store",
    "for",
    "lock_wait",
];

fn usage(option: &str, cause: String, hint: &str) -> Error {
    Error::new(Kind::Usage, format!("option `{option}`"), cause).hint(hint)
}

fn missing(option: &str, hint: &str) -> Error {
    usage(option, "is missing".into(), hint)
}

fn exceptions(given: &mut UnreadOptions<'_>) -> Result<Vec<Exception>> {
    let texts = given.list("for")?;
    if texts.is_empty() {
        return Err(missing("for", "name the networks or interfaces"));
    }
    let parsed = texts.iter().map(|text| {
        text.parse().map_err(|e: Error| usage("for", e.to_string(), "name what needs it"))
    });
    parsed.collect()
}

/// The value of one of Ansible's own boolean options; `name` lacks the prefix `_ansible_`.
fn flag(options: &Map<String, Value>, name: &str) -> Result<bool> {
    let name = format!("{ANSIBLE}{name}");
    match options.get(&name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(other) => Err(usage(&name, format!("{other} is neither true nor false"), "")),
    }
}

/// The options that were not read yet. An option that is null counts as not given.
struct UnreadOptions<'a>(Vec<(&'a str, &'a Value)>);

impl<'a> UnreadOptions<'a> {
    fn of(options: &'a Map<String, Value>) -> UnreadOptions<'a> {
        let own = options.iter().filter(|(key, _)| !key.starts_with(ANSIBLE));
        let named = own.map(|(key, value)| (key.as_str(), value));
        UnreadOptions(
            named.filter(|(key, value)| !(value.is_null() && OPTIONS.contains(key))).collect(),
        )
    }

    fn take(&mut self, option: &str) -> Option<&'a Value> {
        let at = self.0.iter().position(|(key, _)| *key == option)?;
        Some(self.0.swap_remove(at).1)
    }

    /// The name of an option that is left unread because the state does not use it.
    fn left(&self) -> Option<&'a str> {
        self.0.first().map(|(key, _)| *key)
    }

    /// Reads an option as text. An empty text counts as not given.
    fn text(&mut self, option: &str) -> Result<Option<String>> {
        match self.take(option) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(usage(option, format!("{other} is not a text"), "put it in quotes")),
        }
    }

    /// Reads an option as a mode to migrate to.
    fn target(&mut self, option: &str) -> Result<Option<Mode>> {
        let parse = |name: String| {
            mode::target(&name).map_err(|e| usage(option, e.cause, &e.hint.unwrap_or_default()))
        };
        self.text(option)?.map(parse).transpose()
    }

    fn time(&mut self, option: &str) -> Result<Option<Duration>> {
        let hint = "write it as `90s`, `5m` or `1h`";
        let parse = |text: String| args::duration(&text).map_err(|e| usage(option, e, hint));
        self.text(option)?.map(parse).transpose()
    }

    /// Reads an option as a list, or as a text with commas between the members.
    fn list(&mut self, option: &str) -> Result<Vec<String>> {
        let wrong = |value: &Value| {
            usage(option, format!("{value} is not a list of names"), "write it as [one, other]")
        };
        match self.take(option) {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|t| !t.is_empty())
                .map(Into::into)
                .collect()),
            Some(Value::Array(members)) => {
                members.iter().map(|m| m.as_str().map(Into::into).ok_or_else(|| wrong(m))).collect()
            }
            Some(other) => Err(wrong(other)),
        }
    }

    /// Reads an option as a number of seconds. The number may be written as text, because templates
    /// pass numbers as text.
    fn number(&mut self, option: &str) -> Result<Option<u64>> {
        let Some(value) = self.take(option) else { return Ok(None) };
        let number = value.as_u64().or_else(|| value.as_str()?.parse().ok());
        number.map(Some).ok_or_else(|| {
            usage(option, format!("{value} is not a number of seconds"), "write it as 10")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(options: Value) -> Result<ModuleTask> {
        ModuleTask::parse(options.as_object().expect("an object"))
    }

    #[test]
    fn each_state_takes_its_own_options() {
        let task = parse(json!({
            "state": "migrated", "to": "ipvs", "confirm_within": "5m", "ignore": "a, b",
            "playbook": null, "lock_wait": "30", "store": "/s",
            "_ansible_check_mode": true, "_ansible_diff": true, "_ansible_verbosity": 1,
            "_ansible_no_log": false, "_ansible_anything": {"x": 1},
        }))
        .unwrap();
        let state = State::Migrated {
            to: Mode::Ipvs,
            playbook: None,
            confirm_within: Some(Duration::from_secs(300)),
            ignore: vec!["a".into(), "b".into()],
        };
        let (store, lock_wait) = (Some("/s".into()), Duration::from_secs(30));
        let wanted = ModuleTask { state, store, lock_wait, check: true, diff: true, verbose: true };
        assert_eq!(task, wanted);
        let plain = parse(json!({"state": "cleaned", "owners": ["flannel"]})).unwrap();
        assert_eq!((plain.check, plain.diff, plain.verbose), (false, false, false));
        let guarded = parse(json!({"state": "guarded", "for": ["10.9.0.0/24", "eth1"]})).unwrap();
        assert!(matches!(guarded.state, State::Guarded { exceptions } if exceptions.len() == 2));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (json!({}), "state"),
            (json!({"state": null}), "state"),
            (json!({"state": "present"}), "state"),
            (json!({"state": 1}), "state"),
            (json!({"state": "migrated"}), "to"),
            (json!({"state": "migrated", "to": "bpf"}), "to"),
            (
                json!({"state": "migrated", "to": "ipvs", "confirm_within": "soon"}),
                "confirm_within",
            ),
            (json!({"state": "cleaned", "confirm_within": 300}), "confirm_within"),
            (json!({"state": "cleaned", "owners": [1]}), "owners"),
            (json!({"state": "cleaned", "to": "ipvs"}), "to"),
            (json!({"state": "cleaned", "force": true}), "force"),
            (json!({"state": "cleaned", "force": null}), "force"),
            (json!({"state": "confirmed", "lock_wait": -1}), "lock_wait"),
            (json!({"state": "guarded"}), "for"),
            (json!({"state": "guarded", "for": "0.0.0.0/0"}), "for"),
            (json!({"state": "confirmed", "_ansible_check_mode": "no"}), "_ansible_check_mode"),
        ];
        for (options, named) in cases {
            let error = parse(options.clone()).unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{options}");
            assert_eq!(error.object, format!("option `{named}`"), "{options}: {error}");
        }
    }
}
