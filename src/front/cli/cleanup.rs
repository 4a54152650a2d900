//! The verbs `cleanup` and `resume`.

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
        command.answer(&plan::document(&plan), &plan::text(&plan, command.args.verbose));
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
    eprintln!("{}", plan::text(plan, command.args.verbose));
    eprintln!("{}", plan::by_owner(plan));
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
    let text = match (report, left) {
        (None, _) => "Nothing to do: no leftovers were found.".to_owned(),
        (Some(report), Some(left)) => format!(
            "{} removed in run {}, which waits to be confirmed.\n\
             To keep it: proxyshift confirm\nElse it is undone in {}.",
            counted(report.objects, "object"),
            report.run.id,
            time(left),
        ),
        (Some(report), None) => format!(
            "Done: {} removed in run {}.\nTo undo it: proxyshift rollback",
            counted(report.objects, "object"),
            report.run.id,
        ),
    };
    command.answer(&document, &text);
}
