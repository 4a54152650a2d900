//! The wizard, which `proxyshift` without a verb starts on a terminal. Each step runs the code of a
//! verb. At the end, the wizard names the verbs that do the same.

mod clean;
mod migrate;
mod node;
mod pending;

use crate::checks::{Finding, Severity, Verdict};
use crate::error::{Error, Kind, Result};
use crate::front::cli::args;
use crate::front::cli::check;
use crate::front::cli::check::CheckInput;
use crate::front::cli::check::fix;
use crate::front::cli::check::judge_each;
pub(in crate::front) use crate::front::cli::command::Invocation;
pub(in crate::front) use crate::front::cli::command::as_root;
use crate::kube_proxy::mode;
use crate::owners::catalogue::Catalogue;
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook::builtin_text;
use crate::state::kube_proxy::Mode;
use crate::ui::page::Page;
use crate::ui::prompt::{Answer, attended};
use crate::ui::table::counted;
use crate::ui::{LineMark, OutputFormat};

/// Runs the wizard from its first question to its last.
pub(super) fn run(command: &Invocation<'_>) -> Result<u8> {
    if !attended() || command.args.yes || command.ui.output == OutputFormat::Json {
        return Err(Error::new(Kind::Usage, "proxyshift", "which verb?").hint(
            "on a terminal, without --yes and -o json, it asks; else start with `proxyshift check` \
             or `proxyshift plan`: they change nothing",
        ));
    }
    as_root()?;
    if let Some(run) = command.store()?.pending()? {
        return pending::run(command, &run);
    }
    let mut input = CheckInput::live(command)?;
    node::show(command, &input.now)?;
    let goal = goal(command, &input)?;
    let answers = findings(command, &mut input, goal)?;
    match goal {
        Goal::Clean => clean::run(command, &answers),
        Goal::Modes(from, to) => migrate::run(command, &input.now, from, to, &answers),
    }
}

/// What the operator wants to do with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Clean,
    Modes(Mode, Mode),
}

/// What the operator decided about findings: the ids of the checks that were fixed or ignored.
#[derive(Debug, Default)]
struct Answers {
    fixed: Vec<&'static str>,
    ignored: Vec<String>,
}

impl Answers {
    /// The command line that does the same as `verb` after these decisions.
    fn same(&self, verb: &str) -> String {
        if self.fixed.is_empty() {
            return format!("proxyshift {verb}");
        }
        let only = self.fixed.join(",");
        format!("proxyshift check --fix --only {only} --yes; proxyshift {verb}")
    }
}

/// Asks which goal to pursue. The answers are the goals that this node allows.
fn goal(command: &Invocation<'_>, input: &CheckInput) -> Result<Goal> {
    let plan = CleanupScope::default().plan(&Catalogue::builtin()?, &input.now)?;
    let leftovers = plan.removals().count();
    let mut goals = vec![None];
    let mut answers = vec![Answer::new("nothing", "nothing is changed")];
    if leftovers > 0 {
        goals.push(Some(Goal::Clean));
        let then = format!("{} go, after more questions", counted(leftovers, "leftover"));
        answers.push(Answer::new("clean up", then));
    }
    if let Some(from) = node::running(&input.now)?.mode {
        for to in mode::targets().filter(|to| *to != from && builtin_text(from, *to).is_ok()) {
            goals.push(Some(Goal::Modes(from, to)));
            let then = format!("kube-proxy goes from {from} to {to}, after more questions");
            answers.push(Answer::new(format!("move to {to}"), then));
        }
    }
    if goals.len() == 1 {
        command.ui.say("");
        command.ui.say("There is nothing to clean up, and no mode to go to.");
        return Err(stopped());
    }
    command.ui.heading("What is to be done?");
    let chosen = command.ui.choose("To do", &answers, 0)?;
    goals[chosen].ok_or_else(stopped)
}

/// Shows the findings that concern `goal`, and asks what to do about each one that blocks it.
fn findings(command: &Invocation<'_>, input: &mut CheckInput, goal: Goal) -> Result<Answers> {
    let mut answers = Answers::default();
    loop {
        let found = run_checks(command, input, goal)?;
        let blocks = blocking(goal)?;
        let known = |f: &Finding| {
            answers.ignored.iter().any(|i| i == f.id) || answers.fixed.contains(&f.id)
        };
        let Some(finding) = found.iter().find(|f| blocks(f) && !known(f)) else {
            return Ok(answers);
        };
        resolve(command, input, finding, &mut answers)?;
    }
}

/// The ids of the checks that block a clean-up, because they concern the clean-up's tools, its
/// rights, or the disk that the clean-up writes to.
const CLEANING: [&str; 7] = [
    "backends.garbled",
    "backends.lost-match",
    "tools.disk-room",
    "tools.host",
    "tools.ipset",
    "tools.iptables",
    "tools.privileges",
];

/// Returns a test for whether a finding blocks `goal`.
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

/// Runs the checks and shows them. Returns the findings that report a problem.
fn run_checks(command: &Invocation<'_>, input: &CheckInput, goal: Goal) -> Result<Vec<Finding>> {
    command.ui.heading("Checks");
    let to = match goal {
        Goal::Clean => None,
        Goal::Modes(_, to) => Some(to),
    };
    let all = judge_each(input, to, &|finding| {
        let mark = match (&finding.verdict, finding.severity) {
            (Verdict::Found(_), Severity::Block) => LineMark::Bad,
            (Verdict::Found(_), Severity::Warn) => LineMark::Warn,
            (Verdict::Ok(_), _) if command.args.verbose => LineMark::Good,
            _ => return,
        };
        command.ui.marked(mark, &format!("{}: {}", finding.id, finding.title));
    })?;
    let mut text = counted(all.len(), "check");
    let is_found = |f: &&Finding| matches!(f.verdict, Verdict::Found(_));
    let is_unknown = |f: &&Finding| matches!(f.verdict, Verdict::Unknown(_));
    text += &format!(", {} found something", all.iter().filter(is_found).count());
    text += &format!(", {} cannot be known", all.iter().filter(is_unknown).count());
    command.ui.marked(LineMark::Good, &format!("{text}; see `proxyshift check`"));
    Ok(all.into_iter().filter(|f| is_found(&f)).collect())
}

/// Asks what to do about a blocking finding: fix it, ignore it, or stop.
fn resolve(
    command: &Invocation<'_>,
    input: &mut CheckInput,
    finding: &Finding,
    answers: &mut Answers,
) -> Result<()> {
    let Verdict::Found(found) = &finding.verdict else { return Ok(()) };
    let ui = command.ui;
    ui.heading(&format!("In the way: {}", finding.id));
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
            let options = args::CheckArgs { only: vec![finding.id.into()], ..Default::default() };
            let report = fix::run(command, &options, input)?;
            ui.say(fix::text(report.as_ref()));
            if report.is_some() {
                answers.fixed.push(finding.id);
            }
            *input = check::CheckInput::live(command)?;
            Ok(())
        }
    }
}

/// Asks the operator to confirm a risky step by typing the node's name.
fn confirm_by_name(command: &Invocation<'_>, yes: &str, no: &str) -> Result<bool> {
    command.ui.typed("The node's name", &node::name(), yes, no)
}

/// Prints how to roll back, and `same`, the command line that does the same as the wizard did.
fn print_summary(command: &Invocation<'_>, same: &str) {
    let mut text = Page::new();
    text.blank();
    text.line("To go back, now or later: proxyshift rollback");
    text.line("The same without questions:");
    text.line(format!("  {same}"));
    command.ui.print(text);
}

fn stopped() -> Error {
    Error::new(Kind::Interrupted, "proxyshift", "stopped; nothing was changed")
}
