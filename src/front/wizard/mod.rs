//! `proxyshift` alone, on a terminal: leads through the job, question by question. It does nothing
//! that a verb does not do, by the verb's own code, and says at the end which.

mod clean;
mod migrate;
mod node;
mod pending;

use crate::checks::{Finding, Severity, Verdict};
use crate::error::{Error, Kind, Result};
use crate::front::cli::args;
use crate::front::cli::check;
use crate::front::cli::check::Seen;
use crate::front::cli::check::fix;
use crate::front::cli::check::judge_each;
pub(in crate::front) use crate::front::cli::command::Command;
pub(in crate::front) use crate::front::cli::command::as_root;
use crate::kube_proxy::mode;
use crate::owners::catalogue::Catalogue;
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook::builtin_text;
use crate::state::kube_proxy::Mode;
use crate::ui::Output;
use crate::ui::prompt::{Answer, attended};
use crate::ui::table::counted;

/// Leads through the job.
pub(super) fn run(command: &Command<'_>) -> Result<u8> {
    if !attended() || command.args.yes || command.ui.output == Output::Json {
        return Err(Error::new(Kind::Usage, "proxyshift", "which verb?").hint(
            "on a terminal, without --yes and -o json, it asks; else start with `proxyshift check` \
             or `proxyshift plan`: they change nothing",
        ));
    }
    as_root()?;
    if let Some(run) = command.store()?.pending()? {
        return pending::run(command, &run);
    }
    let mut seen = Seen::live(command)?;
    node::show(command, &seen.now)?;
    let goal = goal(command, &seen)?;
    let answers = findings(command, &mut seen, goal)?;
    match goal {
        Goal::Clean => clean::run(command, &answers),
        Goal::Modes(from, to) => migrate::run(command, &seen.now, from, to, &answers),
    }
}

/// What the operator wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Clean,
    Modes(Mode, Mode),
}

/// The operator's answers to findings.
#[derive(Debug, Default)]
struct Answers {
    fixed: Vec<&'static str>,
    ignored: Vec<String>,
}

impl Answers {
    /// The one command line that does the same as this `verb` and the answers before it.
    fn same(&self, verb: &str) -> String {
        match self.fixed.is_empty() {
            true => format!("proxyshift {verb}"),
            false => {
                let only = self.fixed.join(",");
                format!("proxyshift check --fix --only {only} --yes; proxyshift {verb}")
            }
        }
    }
}

/// What is to be done, of what can be.
fn goal(command: &Command<'_>, seen: &Seen) -> Result<Goal> {
    let plan = CleanupScope::default().plan(&Catalogue::builtin()?, &seen.now)?;
    let leftovers = plan.removals().count();
    let mut goals = vec![None];
    let mut answers = vec![Answer::new("nothing", "nothing is changed")];
    if leftovers > 0 {
        goals.push(Some(Goal::Clean));
        let then = format!("{} go, after more questions", counted(leftovers, "leftover"));
        answers.push(Answer::new("clean up", then));
    }
    if let Some(from) = node::running(&seen.now)?.mode {
        for to in mode::targets().filter(|to| *to != from && builtin_text(from, *to).is_ok()) {
            goals.push(Some(Goal::Modes(from, to)));
            let then = format!("kube-proxy goes from {from} to {to}, after more questions");
            answers.push(Answer::new(format!("move to {to}"), then));
        }
    }
    if goals.len() == 1 {
        command.ui.say("\nThere is nothing to clean up, and no mode to go to.");
        return Err(stopped());
    }
    heading(command, "What is to be done?");
    let chosen = command.ui.choose("To do", &answers, 0)?;
    goals[chosen].ok_or_else(stopped)
}

/// Tells what the checks find on the way to `goal`, and settles what stands in the way.
fn findings(command: &Command<'_>, seen: &mut Seen, goal: Goal) -> Result<Answers> {
    let mut answers = Answers::default();
    loop {
        let found = judged(command, seen, goal)?;
        let blocks = blocking(goal)?;
        let known = |f: &Finding| {
            answers.ignored.iter().any(|i| i == f.id) || answers.fixed.contains(&f.id)
        };
        let Some(finding) = found.iter().find(|f| blocks(f) && !known(f)) else {
            return Ok(answers);
        };
        settle(command, seen, finding, &mut answers)?;
    }
}

/// The checks that matter to a clean-up: what it reads and writes with, and where.
const CLEANING: [&str; 6] = [
    "backends.garbled",
    "tools.disk-room",
    "tools.host",
    "tools.ipset",
    "tools.iptables",
    "tools.privileges",
];

/// Whether a finding stands in the way of `goal`.
fn blocking(goal: Goal) -> Result<impl Fn(&Finding) -> bool> {
    let listed = match goal {
        Goal::Clean => None,
        Goal::Modes(from, to) => Some(crate::plan::playbook::builtin(from, to)?.blocking()),
    };
    Ok(move |finding: &Finding| match &listed {
        None => CLEANING.contains(&finding.id),
        Some(ids) => ids.iter().any(|id| id == finding.id),
    })
}

/// What the checks found.
fn judged(command: &Command<'_>, seen: &Seen, goal: Goal) -> Result<Vec<Finding>> {
    heading(command, "Checks");
    let to = match goal {
        Goal::Clean => None,
        Goal::Modes(_, to) => Some(to),
    };
    let styles = command.ui.styles();
    let all = judge_each(seen, to, &|finding| {
        let mark = match (&finding.verdict, finding.severity) {
            (Verdict::Found(_), Severity::Block) => styles.bad.apply_to("✗"),
            (Verdict::Found(_), Severity::Warn) => styles.warn.apply_to("!"),
            (Verdict::Ok(_), _) if command.args.verbose => styles.good.apply_to("✓"),
            _ => return,
        };
        let text = format!("{mark} {}: {}", finding.id, finding.title);
        command.ui.paragraph(&text, "  ", "    ");
    })?;
    let mut text = counted(all.len(), "check");
    let is_found = |f: &&Finding| matches!(f.verdict, Verdict::Found(_));
    let is_unknown = |f: &&Finding| matches!(f.verdict, Verdict::Unknown(_));
    text += &format!(", {} found something", all.iter().filter(is_found).count());
    text += &format!(", {} cannot be known", all.iter().filter(is_unknown).count());
    let mark = styles.good.apply_to("✓");
    command.ui.paragraph(&format!("{mark} {text}; see `proxyshift check`"), "  ", "    ");
    Ok(all.into_iter().filter(|f| is_found(&f)).collect())
}

/// Asks what to do about a finding that stands in the way: mend it, ignore it, or stop.
fn settle(
    command: &Command<'_>,
    seen: &mut Seen,
    finding: &Finding,
    answers: &mut Answers,
) -> Result<()> {
    let Verdict::Found(found) = &finding.verdict else { return Ok(()) };
    let ui = command.ui;
    heading(command, &format!("In the way: {}", finding.id));
    for (label, texts) in [
        ("found", &found.evidence),
        ("effect", &vec![found.effect.clone()]),
        ("remedy", &found.remedy),
    ] {
        texts.iter().for_each(|text| ui.paragraph(&format!("{label}: {text}"), "  ", "    "));
    }
    let mut choices = vec![
        Answer::new("stop", "nothing is changed; mend it, and come back"),
        Answer::new("ignore it", "go on all the same, at your own risk"),
    ];
    if !found.fix.is_empty() {
        choices.push(Answer::new("mend it", "the remedy is shown, rehearsed, and applied"));
    }
    match ui.choose("About this", &choices, 0)? {
        0 => Err(stopped()),
        1 => {
            if !confirm_by_name(command, "the finding is ignored", "nothing is changed")? {
                return Err(stopped());
            }
            answers.ignored.push(finding.id.to_owned());
            Ok(())
        }
        _ => {
            let options = args::Check { only: vec![finding.id.into()], ..Default::default() };
            let report = fix::run(command, &options, seen)?;
            ui.say(fix::text(report.as_ref()).trim_end());
            if report.is_some() {
                answers.fixed.push(finding.id);
            }
            *seen = check::Seen::live(command)?;
            Ok(())
        }
    }
}

/// For what is risky: the node's name, typed.
fn confirm_by_name(command: &Command<'_>, yes: &str, no: &str) -> Result<bool> {
    command.ui.typed("The node's name", &node::name(), yes, no)
}

/// The end: how to go back, and the same without questions.
fn print_summary(command: &Command<'_>, same: &str) {
    command.ui.print(&format!(
        "\nTo go back, now or later: proxyshift rollback\nThe same without questions:\n  {same}"
    ));
}

fn heading(command: &Command<'_>, text: &str) {
    command.ui.say(&format!("\n{}", command.ui.styles().strong.apply_to(text)));
}

fn stopped() -> Error {
    Error::new(Kind::Interrupted, "proxyshift", "stopped; nothing was changed")
}
