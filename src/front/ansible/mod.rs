//! proxyshift as an Ansible module.
//!
//! Ansible copies a module that is a binary to the node as `AnsiballZ_proxyshift` and starts it
//! with one argument: the path of a file that holds a JSON object. The object has the options of
//! the task and Ansible's own options, whose names begin with `_ansible_`. The module answers with
//! one JSON object on standard output. See "Binary modules" in
//! <https://docs.ansible.com/ansible/latest/dev_guide/developing_program_flow_modules.html>.

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
use crate::ui::print_line;

use answer::{EventCollector, ModuleResult};
use options::ModuleTask;

/// The options of a task, if Ansible started this program; otherwise none. `args` begins with the
/// program's name. Ansible started this program if there is exactly one argument, and that argument
/// is not a verb but the path of a regular file that holds a JSON object with one of Ansible's own
/// options. The name under which the program was started does not matter.
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

/// Runs a task and prints its result. Returns the exit code.
pub fn run(options: &Map<String, Value>) -> u8 {
    // A panic must not print, because only the result may be printed.
    panic::set_hook(Box::new(|_| {}));
    let events = EventCollector::default();
    let answer = match ModuleTask::parse(options).and_then(|task| watch().map(|()| task)) {
        Err(error) => ModuleResult::failed(error),
        Ok(task) => panic::catch_unwind(AssertUnwindSafe(|| task::run_task(&task, &events)))
            .unwrap_or_else(|_| {
                let cause = "proxyshift itself failed; see `proxyshift status` on the node";
                ModuleResult::failed(Error::new(Kind::Unexpected, "the module", cause))
            }),
    };
    print_result(answer, events)
}

/// Handles signals. When Ansible loses its connection or times out, the module ends at once if it
/// has changed nothing yet, and never in the middle of a change.
fn watch() -> Result<()> {
    let cause = "interrupted by a signal; nothing was changed";
    interrupt::watch(
        || {},
        move || {
            let error = Error::new(Kind::Interrupted, "the module", cause);
            print_result(ModuleResult::failed(error), EventCollector::default())
        },
    )
}

/// Prints the result as JSON. Returns the exit code.
fn print_result(answer: ModuleResult, events: EventCollector) -> u8 {
    let code = answer.code();
    print_line(&answer.document(events));
    code
}
