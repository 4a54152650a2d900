//! The verb `migrate`: moves kube-proxy to another mode.

use serde_json::json;

use crate::checks::Verdict;
use crate::error::Result;
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::front::cli::confirm_prompt;
use crate::front::cli::status::time;
use crate::plan::playbook::Playbook;
use crate::run::RunResult;
use crate::run::migrate::{self, Intended, MigrateOptions};
use crate::state::kube_proxy::Mode;
use crate::store::run::Modes;
use crate::ui::page::Page;
use crate::ui::table::counted;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::MigrateArgs) -> Result<u8> {
    command.can_ask("migrate", &format!("look first: `proxyshift check --to {}`", options.to))?;
    let requested = MigrateOptions {
        to: options.to,
        playbook: options.playbook.as_deref(),
        confirm_within: options.confirm_within,
        confirm: !options.no_confirm,
        ignore: &options.ignore,
    };
    let report = command
        .with_context(|context| migrate::migrate(context, &requested, &|i| approve(command, i)))?;
    if let Some(modes) = report.run.modes() {
        answer(command, &report, modes);
    }
    if report.left().is_some() && command.attended() && !command.args.yes {
        return confirm_prompt::run(command, &report.run.id);
    }
    Ok(0)
}

/// Shows what the migration is about to do, and asks for a yes.
fn approve(command: &Invocation<'_>, intended: &Intended) -> Result<bool> {
    for finding in &intended.warnings {
        if let Verdict::Found(found) = &finding.verdict {
            command.sink().warning(format!("{}: {}", finding.id, found.effect));
        }
    }
    if command.args.yes {
        return Ok(true);
    }
    let mut shown = text(intended);
    shown.blank();
    command.ui.say(shown);
    let yes = "after a snapshot and a rehearsal; all is undone if anything fails";
    command.ui.confirm("Go on?", yes, "nothing is changed", false)
}

pub(in crate::front) fn text(intended: &Intended) -> Page {
    let Intended { playbook, from, restarts, probes, .. } = intended;
    let transition = transition(*from, playbook.to);
    let mut text = Page::from(format!("{transition}, by the playbook {}.", playbook.name));
    if let Some((controller, settings)) = restarts {
        text.line(format!("  It is run by {controller}, and told its mode in {settings}."));
    }
    text.line(format!("  Stages: {}", stages(playbook)));
    let services = counted(probes.len(), "service");
    text.line(format!("  Asked before and after: {services}"));
    text.lines(probes.iter().map(|probe| format!("    {probe}")));
    text
}

/// The beginning of a preview, which says from which mode to which kube-proxy goes.
pub(super) fn transition(from: Mode, to: Mode) -> String {
    if from == to {
        return format!("kube-proxy stays in {from} mode");
    }
    format!("kube-proxy goes from {from} to {to} mode")
}

fn stages(playbook: &Playbook) -> String {
    let names: Vec<&str> = playbook.stages.iter().map(|stage| stage.name().name()).collect();
    names.join(" → ")
}

pub(in crate::front) fn answer(command: &Invocation<'_>, report: &RunResult, modes: Modes) {
    let RunResult { run, objects, foreign } = report;
    let left = report.left();
    let state = if left.is_some() { "unconfirmed" } else { "done" };
    let document = json!({
        "schema": "proxyshift.migrate", "version": 1, "run": run.id,
        "snapshot": run.snapshot, "from": modes.from, "to": modes.to,
        "removed": objects, "others": foreign, "state": state,
        "seconds_left": left.map(|left| left.as_secs()),
    });
    let mut text = Page::from(format!(
        "kube-proxy serves in {} mode (it was {}); {} removed in run {}.",
        modes.to,
        modes.from,
        counted(*objects, "leftover"),
        run.id
    ));
    match left {
        None => text.line("To undo it: proxyshift rollback"),
        Some(left) => {
            text.line("To keep it: proxyshift confirm");
            let left = time(left);
            text.line(format!("Else it is undone in {left}; at once: proxyshift rollback"));
        }
    }
    command.answer(&document, text);
}
