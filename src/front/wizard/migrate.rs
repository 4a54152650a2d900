//! The questions of a migration, one for each step.

use std::path::PathBuf;

use crate::checks::Verdict;
use crate::error::{Error, Kind, Result};
pub(in crate::front) use crate::front::cli::command::Invocation;
use crate::front::cli::confirm_prompt;
use crate::front::cli::migrate as verb;
use crate::front::wizard::Answers;
use crate::front::wizard::confirm_by_name;
use crate::front::wizard::print_summary;
use crate::front::wizard::stopped;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::playbook::{Playbook, builtin};
use crate::run::migrate::{self, Intended, MigrateOptions};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::store::run::Modes;
use crate::ui::LineMark;
use crate::ui::prompt::Answer;
use crate::ui::table::counted;

pub(super) fn run(
    command: &Invocation<'_>,
    now: &NodeState,
    from: Mode,
    to: Mode,
    answers: &Answers,
) -> Result<u8> {
    let ignore = &answers.ignored;
    let playbook = playbook(command, now, from, to)?;
    let requested = MigrateOptions {
        to,
        playbook: playbook.as_deref(),
        confirm_within: None,
        confirm: true,
        ignore,
    };
    command.ui.heading(&format!("From {from} to {to}"));
    let report = command.with_context(|context| {
        migrate::migrate(context, &requested, &|i| approve(command, now, i))
    })?;
    verb::answer(command, &report, report.run.modes().unwrap_or(Modes { from, to }));
    let code = match report.left() {
        Some(_) => confirm_prompt::run(command, &report.run.id)?,
        None => 0,
    };
    let mut same = format!("migrate --to {to}");
    if let Some(file) = &playbook {
        same += &format!(" --playbook {}", shell_words::quote(&file.to_string_lossy()));
    }
    if !ignore.is_empty() {
        same += &format!(" --ignore {}", ignore.join(","));
    }
    same += " --yes; proxyshift confirm";
    print_summary(command, &answers.same(&same));
    Ok(code)
}

/// Asks for the operator's own playbook, if nothing shows what controls kube-proxy here. None where
/// the built-in playbook will do.
fn playbook(
    command: &Invocation<'_>,
    now: &NodeState,
    from: Mode,
    to: Mode,
) -> Result<Option<PathBuf>> {
    let unknown = match migrate::find_controller(&builtin(from, to)?, now) {
        Ok(_) => return Ok(None),
        Err(e) if e.kind != Kind::UnknownController => return Err(e),
        Err(e) => e,
    };
    command.ui.heading("Who restarts kube-proxy?");
    for text in [Some(unknown.to_string()), unknown.hint].into_iter().flatten() {
        command.ui.paragraph(&text, "  ", "    ");
    }
    let answers = [
        Answer::new("a file", "its stages are followed, and its commands run"),
        Answer::new("nothing", "nothing is changed"),
    ];
    loop {
        let file = command.ui.typed_line("Your playbook", &answers)?;
        if file.is_empty() {
            return Err(stopped());
        }
        let file = PathBuf::from(file);
        let read = std::fs::read_to_string(&file).map_err(|e| Error::io(&file, &e));
        match read.and_then(|text| Playbook::parse(&file.display().to_string(), &text, from)) {
            Ok(_) => return Ok(Some(file)),
            Err(e) => command.ui.paragraph(&e.to_string(), "  ", "    "),
        }
    }
}

/// Shows what the migration is about to do, and asks the operator to type the node's name.
fn approve(command: &Invocation<'_>, now: &NodeState, intended: &Intended) -> Result<bool> {
    let ui = command.ui;
    for finding in &intended.warnings {
        if let Verdict::Found(found) = &finding.verdict {
            ui.marked(LineMark::Warn, &format!("{}: {}", finding.id, found.effect));
        }
    }
    ui.say(verb::text(intended));
    ui.say("  Now here, by owner; only kube-proxy's are changed:");
    let catalogue = Catalogue::builtin()?;
    for (owner, count) in Ownership::of(&catalogue, now).counts() {
        let (chains, rules) = (counted(count.chains, "chain"), counted(count.rules, "rule"));
        ui.say(format!("    {owner:<12} {chains}, {rules}"));
    }
    let yes = "a snapshot is taken and proven, then the stages; all is undone if one fails";
    confirm_by_name(command, yes, "nothing is changed")
}
