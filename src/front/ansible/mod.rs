//! The program as an Ansible module of its own.
//!
//! Ansible copies a module that is a binary to the node as `AnsiballZ_proxyshift` and starts it with
//! one argument: a file that holds the task's options as a JSON object, with Ansible's own beside
//! them, whose names begin with `_ansible_`. The answer is one JSON object on standard output. See
//! "Binary modules" in <https://docs.ansible.com/ansible/latest/dev_guide/developing_program_flow_modules.html>.

mod answer;
mod check_mode;
mod diff;
mod options;
mod states;
mod task;

use std::ffi::OsString;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use clap::CommandFactory;
use serde_json::{Map, Value};

use crate::error::{Error, Kind, Result};
use crate::front::cli::args::Args;
use crate::interrupt;

use answer::{EventCollector, ModuleResult};
use options::Task;

/// The task of Ansible's, if these arguments, the program's name among them, are one: exactly one
/// argument, no verb, which names a regular file that holds a JSON object with a key of Ansible's. The
/// program's own name says nothing.
pub fn task(args: &[OsString]) -> Option<Map<String, Value>> {
    let [_, only] = args else { return None };
    if only.to_str().is_some_and(|word| Args::command().find_subcommand(word).is_some()) {
        return None;
    }
    let file = Path::new(only);
    if !fs::metadata(file).is_ok_and(|meta| meta.is_file()) {
        return None;
    }
    let options: Map<String, Value> = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    options.keys().any(|key| key.starts_with(options::ANSIBLE)).then_some(options)
}

/// Carries out a task and prints what came of it; returns the exit code.
pub fn run(options: &Map<String, Value>) -> u8 {
    // Nothing but the answer is said, come what may.
    panic::set_hook(Box::new(|_| {}));
    let heard = EventCollector::default();
    let answer = match Task::parse(options).and_then(|task| watch().map(|()| task)) {
        Err(error) => ModuleResult::failed(error),
        Ok(task) => panic::catch_unwind(AssertUnwindSafe(|| task::run_task(&task, &heard)))
            .unwrap_or_else(|_| {
                let cause = "proxyshift itself failed; see `proxyshift status` on the node";
                ModuleResult::failed(Error::new(Kind::Unexpected, "the module", cause))
            }),
    };
    tell(answer, heard)
}

/// A lost connection or a time-out of Ansible's ends the module at once while nothing is changed, and
/// never in the middle of a change.
fn watch() -> Result<()> {
    let cause = "interrupted by a signal; nothing was changed";
    interrupt::watch(
        || {},
        move || {
            let error = Error::new(Kind::Interrupted, "the module", cause);
            tell(ModuleResult::failed(error), EventCollector::default())
        },
    )
}

/// Prints the answer; returns the exit code.
fn tell(answer: ModuleResult, heard: EventCollector) -> u8 {
    let code = answer.code();
    println!("{}", answer.document(heard));
    code
}
