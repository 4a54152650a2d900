//! `check --fix`: applies the safe remedies, each shown before it is applied.

use serde_json::{Value, json};

use crate::checks::{Finding, Verdict};
use crate::error::{Error, Kind, Result};
use crate::front::cli::args;
use crate::front::cli::check::CheckInput;
use crate::front::cli::check::judge;
use crate::front::cli::check::probe_live_facts;
use crate::front::cli::command::Invocation;
use crate::run::RunResult;
use crate::run::fix::{self, Remedy};
use crate::state::NodeState;
use crate::store::run::{Run, RunKind};
use crate::ui::page::Page;

/// Refuses `--fix` together with options that exclude it, before anything is captured.
pub(super) fn usage(command: &Invocation<'_>, options: &args::CheckArgs) -> Result<()> {
    if !options.fix {
        return Ok(());
    }
    if options.snapshot.is_some() {
        return Err(Error::new(Kind::Usage, "--fix", "a snapshot cannot be mended")
            .hint("leave out --snapshot, or leave out --fix"));
    }
    command.can_ask("check --fix", "leave out --fix to see what would be mended")
}

/// Applies the remedies that are approved, and captures the node again.
pub(in crate::front) fn run(
    command: &Invocation<'_>,
    options: &args::CheckArgs,
    input: &mut CheckInput,
) -> Result<Option<RunResult>> {
    if remedies(input, &input.now, options)?.is_empty() {
        command.sink().note("nothing was found that can be mended safely");
        return Ok(None);
    }
    let report = command.with_context(|context| {
        let found = |now: &NodeState| remedies(input, now, options);
        fix::fix(context, &found, &|remedy| approve(command, remedy))
    })?;
    if report.is_some() {
        input.now = command.state(None)?;
        input.live = Some(probe_live_facts(command, &input.now));
    }
    Ok(report)
}

fn remedies(input: &CheckInput, now: &NodeState, options: &args::CheckArgs) -> Result<Vec<Remedy>> {
    let remedy = |finding: Finding| match finding.verdict {
        Verdict::Found(found) if !found.fix.is_empty() => {
            Some(Remedy { id: finding.id, changes: found.fix })
        }
        _ => None,
    };
    Ok(judge(input, now, options)?.into_iter().filter_map(remedy).collect())
}

fn approve(command: &Invocation<'_>, remedy: &Remedy) -> Result<bool> {
    let lines: Vec<String> = remedy.changes.iter().flat_map(|change| change.lines()).collect();
    if command.args.yes {
        for line in lines {
            command.sink().note(format!("{}: {line}", remedy.id));
        }
        return Ok(true);
    }
    let mut shown = Page::from(remedy.id);
    lines.iter().for_each(|line| shown.indented("", line));
    command.ui.say(shown);
    let yes = "it is done, after a snapshot and a rehearsal";
    command.ui.confirm("Do this?", yes, "the finding is left as it is", false)
}

/// The applied remedies, as a part of the JSON document of `check`.
pub(in crate::front) fn document(report: Option<&RunResult>) -> Value {
    json!({
        "run": report.map(|report| &report.run.id),
        "snapshot": report.map(|report| &report.run.snapshot),
        "checks": report.map_or(&[][..], |report| applied(&report.run)),
        "others": report.map_or(&[][..], |report| &report.foreign),
    })
}

/// The applied remedies, as text for the terminal.
pub(in crate::front) fn text(report: Option<&RunResult>) -> Page {
    let Some(report) = report else { return Page::from("Nothing was changed.") };
    let checks = applied(&report.run).join(", ");
    let mut text = Page::from(format!("Mended in run {}: {checks}.", report.run.id));
    text.line("To undo it: proxyshift rollback");
    text
}

/// The ids of the checks whose remedies a run applied.
fn applied(run: &Run) -> &[String] {
    match &run.kind {
        RunKind::Fix { checks } => checks,
        RunKind::Cleanup(_) | RunKind::Migrate(_) => &[],
    }
}
