//! The way to another mode, asked for step by step.

use crate::checks::Verdict;
use crate::cli::wizard::{Answers, farewell, heading, sure};
use crate::cli::{Command, countdown, migrate as verb};
use crate::error::Result;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::run::migrate::{self, Asked, Intended};
use crate::state::NodeState;
use crate::state::kube_proxy::Mode;
use crate::ui::table::counted;

pub(super) fn run(
    command: &Command<'_>,
    now: &NodeState,
    from: Mode,
    to: Mode,
    answers: &Answers,
) -> Result<u8> {
    let ignore = &answers.ignored;
    let asked = Asked { to, playbook: None, confirm_within: None, confirm: true, ignore };
    heading(command, &format!("From {from} to {to}"));
    let report = command
        .with_context(|context| migrate::migrate(context, &asked, &|i| approve(command, now, i)))?;
    verb::answer(command, &report);
    let code = match report.left {
        Some(_) => countdown::stay(command, &report.run)?,
        None => 0,
    };
    let ignored = match ignore.is_empty() {
        true => String::new(),
        false => format!(" --ignore {}", ignore.join(",")),
    };
    let same = format!("migrate --to {to}{ignored} --yes; proxyshift confirm");
    farewell(command, &answers.same(&same));
    Ok(code)
}

/// What is about to be done; the node's name typed.
fn approve(command: &Command<'_>, now: &NodeState, intended: &Intended) -> Result<bool> {
    let ui = command.ui;
    for finding in &intended.warnings {
        if let Verdict::Found(found) = &finding.verdict {
            ui.paragraph(&format!("! {}: {}", finding.id, found.effect), "  ", "    ");
        }
    }
    ui.say(verb::text(intended).trim_end());
    ui.say("  Now here, by owner; only kube-proxy's are changed:");
    let catalogue = Catalogue::builtin()?;
    for (owner, count) in Ownership::of(&catalogue, now).counts() {
        let (chains, rules) = (counted(count.chains, "chain"), counted(count.rules, "rule"));
        ui.say(&format!("    {owner:<12} {chains}, {rules}"));
    }
    let yes = "a snapshot is taken and proven, then the stages; all is undone if one fails";
    sure(command, yes, "nothing is changed")
}
