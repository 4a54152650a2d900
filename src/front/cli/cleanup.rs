//! The verbs `cleanup` and `resume`.

use std::time::Duration;

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::front::cli::confirm_prompt;
use crate::front::cli::migrate;
use crate::front::cli::plan;
use crate::front::cli::status::time;
use crate::owners::catalogue::Catalogue;
use crate::plan::Plan;
use crate::plan::leftovers::CleanupScope;
use crate::run::RunResult;
use crate::run::cleanup;
use crate::run::resume;
use crate::ui::page::Page;
use crate::ui::prompt;
use crate::ui::table::counted;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::CleanupArgs) -> Result<u8> {
    let wanted = CleanupScope { owners: options.owner.clone(), black_holes: options.black_holes };
    let kube_proxy = wanted.owners.is_empty() || wanted.owners.iter().any(|o| o == "kube-proxy");
    if wanted.black_holes && !kube_proxy {
        return Err(Error::new(Kind::Usage, "--black-holes", "they are kube-proxy's")
            .hint("say --owner kube-proxy too"));
    }
    if options.dry_run {
        let plan = wanted.plan(&Catalogue::builtin()?, &command.state(None)?)?;
        command.answer(&plan::document(&plan), plan::text(&plan, command.args.verbose));
        return Ok(0);
    }
    command.can_ask("cleanup", "--dry-run to see what would be removed")?;
    let report = command.with_context(|context| {
        cleanup::cleanup(context, &wanted, options.confirm_within, &|p| approve(command, p))
    })?;
    answer(command, report.as_ref());
    match report.filter(|report| report.left().is_some()) {
        Some(report) if prompt::attended() && !command.args.yes => {
            confirm_prompt::run(command, &report.run.id)
        }
        _ => Ok(0),
    }
}

pub(in crate::front) fn resume(command: &Invocation<'_>) -> Result<u8> {
    let report = command.with_context(resume::resume)?;
    match report.run.modes() {
        None => answer(command, Some(&report)),
        Some(modes) => migrate::answer(command, &report, modes),
    }
    Ok(0)
}

fn approve(command: &Invocation<'_>, plan: &Plan) -> Result<bool> {
    if command.args.yes {
        return Ok(true);
    }
    let mut shown = plan::text(plan, command.args.verbose);
    shown.blank();
    shown.page(&plan::by_owner(plan));
    shown.blank();
    command.ui.say(shown);
    let yes = "they go, after a snapshot and a rehearsal";
    command.ui.confirm("Remove them?", yes, "nothing is changed", false)
}

pub(in crate::front) fn answer(command: &Invocation<'_>, report: Option<&RunResult>) {
    let left = report.and_then(RunResult::left);
    let document = json!({
        "schema": "proxyshift.cleanup", "version": 1,
        "run": report.map(|report| &report.run.id),
        "snapshot": report.map(|report| &report.run.snapshot),
        "removed": report.map_or(0, |report| report.objects),
        "others": report.map_or(&[][..], |report| &report.foreign),
        "confirm_within": left.map(|left| left.as_secs()),
    });
    command.answer(&document, text(report, left));
}

fn text(report: Option<&RunResult>, left: Option<Duration>) -> Page {
    let Some(report) = report else {
        return Page::from("Nothing to do: no leftovers were found.");
    };
    let (objects, run) = (counted(report.objects, "object"), &report.run.id);
    let mut text = Page::new();
    match left {
        Some(left) => {
            text.line(format!("{objects} removed in run {run}, which waits to be confirmed."));
            text.line("To keep it: proxyshift confirm");
            text.line(format!("Else it is undone in {}.", time(left)));
        }
        None => {
            text.line(format!("Done: {objects} removed in run {run}."));
            text.line("To undo it: proxyshift rollback");
        }
    }
    text
}
