//! The verb `check`: runs the checks, and prints the findings.

pub(in crate::front) mod fix;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::checks::{self, Facts, Finding, Severity, Verdict};
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::node::live_facts;
use crate::node::observe::observe_beside_rules;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::state::live_facts::LiveFacts;
use crate::store::DEFAULT_DIR;
use crate::ui::page::Page;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::CheckArgs) -> Result<u8> {
    known_ids(options)?;
    if options.list {
        command.answer(&catalogue_document(), catalogue_text());
        return Ok(0);
    }
    fix::usage(command, options)?;
    if let Some(file) = &options.write_config {
        return super::write_config::run(command, options.snapshot.as_deref(), file);
    }
    let earlier = match options.watch {
        Some(seconds) if options.snapshot.is_none() => {
            let (state, at) = (command.state(None)?, Instant::now());
            command.sink().note(format!("looking again in {seconds} s"));
            std::thread::sleep(Duration::from_secs(seconds));
            Some((state, at))
        }
        Some(_) => {
            return Err(Error::new(Kind::Usage, "--watch", "a snapshot does not move")
                .hint("leave out --snapshot"));
        }
        None => None,
    };
    let (now, unread) = match &options.snapshot {
        Some(name) => command.snapshot_state(name)?,
        None => match command.state(None) {
            Err(error) if error.kind == Kind::LossyCapture && !options.fix => {
                (observe_beside_rules(&Tools::find(), command.ui)?, Some(error))
            }
            state => (state?, None),
        },
    };
    let interval = earlier.as_ref().map(|(_, at)| at.elapsed());
    let live = match options.snapshot {
        Some(_) => None,
        None => Some(probe_live_facts(command, &now)),
    };
    let earlier = earlier.map(|(state, _)| state);
    let mut input = CheckInput { now, earlier, interval, live, unread };
    let fixed = if options.fix { Some(fix::run(command, options, &mut input)?) } else { None };
    let task = Task::Check;
    command.sink().started(&task);
    let findings = judge(&input, &input.now, options)?;
    command.sink().finished(&task, Outcome::Checked { checks: findings.len() });
    let blocked = findings.iter().any(Finding::blocks);
    let (mut document, mut text) =
        (document(options.snapshot.as_deref(), &findings), text(&findings, command.args.verbose));
    if let Some(report) = &fixed {
        document["fixed"] = fix::document(report.as_ref());
        text.page(&fix::text(report.as_ref()));
    }
    command.answer(&document, text);
    Ok(if blocked { 3 } else { 0 })
}

/// What the checks judge: the node now, the node earlier (with the time between them), and live
/// facts.
pub(in crate::front) struct CheckInput {
    pub(in crate::front) now: NodeState,
    pub(in crate::front) earlier: Option<NodeState>,
    pub(in crate::front) interval: Option<Duration>,
    pub(in crate::front) live: Option<LiveFacts>,
    /// Why the rules of the node now cannot be read, if so.
    pub(in crate::front) unread: Option<Error>,
}

impl CheckInput {
    /// Captures the live node.
    pub(in crate::front) fn live(command: &Invocation<'_>) -> Result<CheckInput> {
        let now = command.state(None)?;
        let live = Some(probe_live_facts(command, &now));
        Ok(CheckInput { now, earlier: None, interval: None, live, unread: None })
    }
}

/// Asks the live node for the facts that no file of a snapshot holds.
pub(super) fn probe_live_facts(command: &Invocation<'_>, now: &NodeState) -> LiveFacts {
    let store = command.args.store.as_deref().unwrap_or(DEFAULT_DIR.as_ref());
    live_facts::probe(now, Some(store))
}

/// Runs the selected checks on `now`, which may be a later capture than `input.now`.
pub(in crate::front) fn judge(
    input: &CheckInput,
    now: &NodeState,
    options: &args::CheckArgs,
) -> Result<Vec<Finding>> {
    let named = |list: &[String], id: &str| list.iter().any(|i| i == id);
    with_facts(input, now, options.to, |facts| {
        checks::run(facts, &|id| {
            (options.only.is_empty() || named(&options.only, id)) && !named(&options.ignore, id)
        })
    })
}

/// Runs all checks for a migration to `to`, and calls `report` with each finding as soon as it is
/// known.
pub(in crate::front) fn judge_each(
    input: &CheckInput,
    to: Option<Mode>,
    report: &dyn Fn(&Finding),
) -> Result<Vec<Finding>> {
    with_facts(input, &input.now, to, |facts| {
        let each = checks::all().flat_map(|check| checks::run(facts, &|id| id == check.id));
        each.inspect(|finding| report(finding)).collect()
    })
}

fn with_facts<T>(
    input: &CheckInput,
    now: &NodeState,
    to: Option<Mode>,
    work: impl FnOnce(&Facts<'_>) -> T,
) -> Result<T> {
    let catalogue = Catalogue::builtin()?;
    let ownership = Ownership::of(&catalogue, now);
    let facts = Facts {
        earlier: input.earlier.as_ref(),
        interval: input.interval,
        live: input.live.as_ref(),
        unread: input.unread.as_ref(),
        ..Facts::of(now, &catalogue, &ownership, to)
    };
    Ok(work(&facts))
}

/// Refuses an unknown id of a check, because a misspelt id must not look like a check that found
/// nothing.
pub(in crate::front) fn known_ids(options: &args::CheckArgs) -> Result<()> {
    let mut ids = options.only.iter().chain(&options.ignore);
    match ids.find(|id| checks::find(id).is_none()) {
        None => Ok(()),
        Some(id) => Err(Error::new(Kind::Usage, id, "no check has this id")
            .hint("`proxyshift check --list` names them all")),
    }
}

/// The findings as a JSON document. The document names the snapshot as the node; without a
/// snapshot, it names this host.
pub(super) fn document(snapshot: Option<&str>, findings: &[Finding]) -> Value {
    let rows: Vec<Value> = findings.iter().map(row).collect();
    let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let node = snapshot.map_or_else(host, str::to_owned);
    json!({"schema": "proxyshift.check", "version": 1, "node": node, "findings": rows})
}

/// A finding as one row of a JSON document.
pub(in crate::front) fn row(finding: &Finding) -> Value {
    let (outcome, evidence, effect, remedy, fixable) = match &finding.verdict {
        Verdict::Ok(shown) => ("ok", vec![shown.clone()], "", Vec::new(), false),
        Verdict::Unknown(missing) => ("unknown", vec![missing.clone()], "", Vec::new(), false),
        Verdict::Found(f) => {
            ("found", f.evidence.clone(), f.effect.as_str(), f.remedy.clone(), !f.fix.is_empty())
        }
    };
    json!({
        "id": finding.id, "title": finding.title, "severity": finding.severity,
        "outcome": outcome, "evidence": evidence, "effect": effect, "remedy": remedy,
        "fixable": fixable, "reference": finding.reference,
    })
}

/// The findings as text in 80 columns: problems in full, unknown outcomes one a line, and ok
/// outcomes as a count (with `verbose`, also one a line).
pub(super) fn text(findings: &[Finding], verbose: bool) -> Page {
    let mut text = Page::new();
    for severity in [Severity::Block, Severity::Warn, Severity::Info] {
        let found = findings.iter().filter(|f| f.severity == severity);
        for (finding, found) in found.filter_map(|f| match &f.verdict {
            Verdict::Found(found) => Some((f, found)),
            _ => None,
        }) {
            let word = match severity {
                Severity::Block => "BLOCK",
                Severity::Warn => "WARN",
                Severity::Info => "INFO",
            };
            text.wrapped(&format!("{word}  {}: {}", finding.id, finding.title), "", "       ");
            found.evidence.iter().for_each(|e| text.indented("evidence", e));
            text.indented("effect", &found.effect);
            found.remedy.iter().for_each(|r| text.indented("remedy", r));
            text.indented("see", finding.reference);
            text.blank();
        }
    }
    let (mut ok, mut unknown) = (0, Vec::<(&str, Vec<&str>)>::new());
    for finding in findings {
        match &finding.verdict {
            // If several checks are unknown for the same cause, the cause is named once.
            Verdict::Unknown(missing) => match unknown.iter_mut().find(|(m, _)| m == missing) {
                Some((_, ids)) => ids.push(finding.id),
                None => unknown.push((missing, vec![finding.id])),
            },
            Verdict::Ok(shown) => {
                ok += 1;
                if verbose {
                    text.wrapped(&format!("ok {}: {shown}", finding.id), "", "   ");
                }
            }
            Verdict::Found(_) => {}
        }
    }
    if !unknown.is_empty() {
        text.line("Not known:");
        for (missing, ids) in unknown {
            text.wrapped(&format!("?  {}: {missing}", ids.join(", ")), "", "   ");
        }
        text.blank();
    }
    let count = |severity: Severity| {
        let found = |f: &&Finding| f.severity == severity && matches!(f.verdict, Verdict::Found(_));
        findings.iter().filter(found).count()
    };
    let (block, warn, info) =
        (count(Severity::Block), count(Severity::Warn), count(Severity::Info));
    text.line(format!("{block} blocking, {warn} to be warned of, {info} to know, {ok} ok."));
    text
}

fn catalogue_document() -> Value {
    let rows: Vec<Value> = checks::all()
        .map(|c| {
            json!({
                "id": c.id, "title": c.title, "severity": c.severity, "when": c.when,
                "reference": c.reference,
            })
        })
        .collect();
    json!({"schema": "proxyshift.checks", "version": 1, "checks": rows})
}

fn catalogue_text() -> Page {
    let mut text = Page::new();
    for check in checks::all() {
        text.line(format!("{} ({:?})", check.id, check.severity).to_lowercase());
        text.indented("", check.title);
        text.indented("when", check.when);
        text.indented("see", check.reference);
    }
    text
}
