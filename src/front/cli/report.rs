//! The verb `report`: what a run did, as Markdown to hand on.

mod bundle;

use std::time::Duration;

use serde::Serialize;

use crate::error::Result;
use crate::event::Event;
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::node::secrets::masked;
use crate::owners::catalogue::Catalogue;
use crate::run::report::{OwnerChanges, Report, StoredRun, report};
use crate::store::run::{RunKind, RunState};
use crate::ui::page::Page;
use crate::ui::sentences;
use crate::ui::table::counted;

/// The largest number of objects that are listed one by one. If there are more, they are counted by
/// owner and table.
const LISTED: usize = 10;

/// The largest number of lines in one section.
const SHOWN: usize = 8;

#[derive(Serialize)]
struct ReportDocument<'a> {
    schema: &'static str,
    version: u32,
    #[serde(flatten)]
    report: &'a Report,
    #[serde(flatten)]
    sentences: &'a Sentences,
}

/// The verified claims and the events of a report, as sentences with secrets masked.
#[derive(Serialize)]
struct Sentences {
    /// What was verified on the node itself.
    proofs: Vec<String>,
    /// What was verified in the rehearsal of the run.
    rehearsed: Vec<String>,
    times: Vec<TimeRow>,
    notes: Vec<String>,
}

/// A finished task as sentences, with its duration.
#[derive(Serialize)]
struct TimeRow {
    task: String,
    result: String,
    at: String,
    seconds: Option<f64>,
}

impl Sentences {
    fn of(report: &Report) -> Sentences {
        let all = |events: &[Event]| {
            events.iter().filter_map(sentences::event).map(|text| masked(&text)).collect()
        };
        let rows = report.times.iter().map(|timing| TimeRow {
            task: masked(&sentences::task(&timing.task)),
            result: masked(&sentences::outcome(&timing.outcome)),
            at: timing.at.clone(),
            seconds: timing.seconds,
        });
        Sentences {
            proofs: all(&report.verified),
            rehearsed: report.rehearsed.iter().map(|c| masked(&sentences::claim(c))).collect(),
            times: rows.collect(),
            notes: all(&report.notes),
        }
    }
}

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::ReportArgs) -> Result<u8> {
    if let Some(file) = &options.bundle {
        return bundle::run(command, options, file);
    }
    let store = command.store()?;
    let stored = StoredRun::read(&store, store.find_run(options.run.as_deref())?)?;
    let report = report(&Catalogue::builtin()?, &stored)?;
    let sentences = Sentences::of(&report);
    command.answer(&document(&report, &sentences), markdown(&report, &sentences));
    Ok(0)
}

fn document<'a>(report: &'a Report, sentences: &'a Sentences) -> ReportDocument<'a> {
    ReportDocument { schema: "proxyshift.report", version: 1, report, sentences }
}

fn markdown(report: &Report, sentences: &Sentences) -> Page {
    let (ending, next) = ending(report);
    let what = match (&report.modes, report.verb) {
        (Some(modes), _) => format!("kube-proxy from {} to {} mode", modes.from, modes.to),
        (None, RunKind::CLEANUP) => "clean-up".to_owned(),
        (None, verb) => verb.to_owned(),
    };
    let name = report.node.as_ref().map(|node| format!(" on {}", node.name)).unwrap_or_default();
    let mut text = Page::from(format!("# proxyshift: {what}{name}"));
    text.blank();
    text.line(format!("**{ending}**{}", next.map(|next| format!(" {next}")).unwrap_or_default()));
    text.blank();
    text.lines(["| | |", "|---|---|"]);
    let mut row = |head: &str, cell: String| text.line(format!("| {head} | {} |", escaped(&cell)));
    if let Some(node) = &report.node {
        let backends: Vec<String> = node.backends.iter().map(ToString::to_string).collect();
        row(
            "node",
            format!("{}, Linux {}, rules in {}", node.name, node.kernel, backends.join(", ")),
        );
        row("proxyshift", node.proxyshift.clone());
    }
    row("run", format!("{} ({})", report.run, report.verb));
    row("snapshot", report.snapshot.clone());
    row("run began", utc(&report.started));
    if let Some(by) = &report.by {
        row("begun by", by.to_string());
    }
    if let Some(ended) = &report.ended {
        let took = report.seconds.map(|s| {
            format!(", after {}", super::status::time(Duration::from_secs(s.unsigned_abs())))
        });
        row("run ended", utc(ended) + &took.unwrap_or_default());
    }
    if let Some(confirmed) = &report.confirmed {
        row("confirmed", utc(confirmed));
    }
    found(&mut text, report);
    changed(&mut text, report);
    let proofs = sentences.proofs.clone();
    let rehearsal = match sentences.rehearsed.len() {
        0 => None,
        n => Some(format!("in a rehearsal on a private copy, {}", counted(n, "proof"))),
    };
    let proofs: Vec<String> = rehearsal.into_iter().chain(proofs).collect();
    section(&mut text, "What was proven", &proofs);
    section(&mut text, "What was said on the way", &sentences.notes);
    times(&mut text, &sentences.times);
    let errors: Vec<String> = report.errors.iter().map(ToString::to_string).collect();
    section(&mut text, "What failed", &errors);
    text
}

/// How the run ended, and what to do next, if anything.
fn ending(report: &Report) -> (String, Option<&'static str>) {
    let stage = report.stage.as_ref().map(|s| format!(" at its stage {s}")).unwrap_or_default();
    match report.state {
        RunState::Done if report.confirmed.is_some() => {
            ("Done, and confirmed.".into(), Some("To undo it: `proxyshift rollback`."))
        }
        RunState::Done => ("Done.".into(), Some("To undo it: `proxyshift rollback`.")),
        RunState::RolledBack => ("Rolled back: the node is as before.".into(), None),
        RunState::Unconfirmed => (
            "All stages done, not confirmed yet: it is undone at its deadline.".into(),
            Some("To keep it: `proxyshift confirm`; `proxyshift status` says how long that waits."),
        ),
        RunState::Running => (
            format!("Not finished: under way or cut off{stage}."),
            Some("`proxyshift status` says which; `resume` goes on, `rollback` undoes it."),
        ),
        RunState::Failed => ("Failed before it changed anything.".into(), None),
        RunState::UndonePartly => (
            "Failed, and not fully rolled back: a person is needed.".into(),
            Some("See what failed, below."),
        ),
        RunState::Rebooted => {
            ("Ended with a reboot: the node's rules were made anew.".into(), None)
        }
    }
}

fn found(text: &mut Page, report: &Report) {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let evidence = match finding.evidence.first() {
            None => String::new(),
            Some(first) => format!(": {first}"),
        };
        lines.push(format!("{} {} ({}){evidence}", finding.severity, finding.id, finding.title));
    }
    for left in &report.leftovers {
        let objects = counted(left.objects, "object");
        lines.push(format!("{}, {objects}: {}", left.owner, left.reason));
    }
    section(text, "What was found", &lines);
}

fn changed(text: &mut Page, report: &Report) {
    heading(text, "What changed");
    if report.changes.is_empty() && report.steps.is_empty() {
        return text.line("Nothing.");
    }
    if report.undone {
        let all = report.state == RunState::RolledBack;
        text.line(if all { "All of it was undone:" } else { "Undoing it was begun:" });
        text.blank();
    }
    if !report.changes.is_empty() {
        text.lines(["| owner | where | removed | added |", "|---|---|---:|---:|"]);
        for OwnerChanges { owner, place, removed, added, .. } in &report.changes {
            text.line(format!("| {owner} | {} | {removed} | {added} |", escaped(place)));
        }
        let objects = report
            .changes
            .iter()
            .flat_map(|c| c.objects.iter().map(move |object| format!("`{} {object}`", c.place)));
        let objects: Vec<String> = objects.collect();
        if objects.len() <= LISTED {
            text.blank();
            text.lines(objects.iter().map(|object| format!("- {object}")));
        }
    }
    if !report.steps.is_empty() {
        text.blank();
        list(text, &report.steps);
    }
}

fn times(text: &mut Page, rows: &[TimeRow]) {
    if rows.is_empty() {
        return;
    }
    heading(text, "Times");
    text.lines(["| done | what | took |", "|---|---|---:|"]);
    for timed in rows {
        let took = timed.seconds.map(duration).unwrap_or_default();
        let what = escaped(&format!("{}: {}", timed.task, timed.result));
        let clock = timed.at.split_once('T').map_or("", |(_, clock)| clock.trim_end_matches('Z'));
        text.line(format!("| {clock} | {what} | {took} |"));
    }
}

fn heading(text: &mut Page, head: &str) {
    text.blank();
    text.line(format!("## {head}"));
    text.blank();
}

fn section(text: &mut Page, head: &str, lines: &[String]) {
    if !lines.is_empty() {
        heading(text, head);
        list(text, lines);
    }
}

/// Adds a Markdown list of `lines`. Lines beyond [`SHOWN`] are only counted.
fn list(text: &mut Page, lines: &[String]) {
    text.lines(lines.iter().take(SHOWN).map(|line| format!("- {line}")));
    if let Some(more) = lines.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        text.line(format!("- and {more} more"));
    }
}

/// `text`, in which the characters that would end a cell of a Markdown table are escaped.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A time for people: `2026-11-21 20:15:02 UTC`.
fn utc(time: &str) -> String {
    format!("{} UTC", time.replace('T', " ").trim_end_matches('Z'))
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 60.0 => format!("{s:.0} s"),
        s => super::status::time(Duration::from_secs_f64(s)),
    }
}
