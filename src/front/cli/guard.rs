//! The verb `guard`: keeps an exception in front of the rules that drop INVALID packets.

use std::time::Duration;

use serde_json::json;

use crate::error::Result;
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::front::cli::command::as_root;
use crate::guard::Guard;
use crate::guard::GuardReport;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::ui::page::Page;
use crate::ui::table::counted;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::GuardArgs) -> Result<u8> {
    as_root()?;
    let (tools, catalogue) = (Tools::find(), Catalogue::builtin()?);
    let guard = Guard {
        tools: &tools,
        catalogue: &catalogue,
        sink: command.ui,
        lock_wait: Duration::from_secs(command.args.lock_wait),
        exceptions: &options.exceptions,
        contest: options.contest,
    };
    let report =
        if options.once { guard.once()? } else { guard.watch(options.interval, options.leave)? };
    let document = json!({
        "schema": "proxyshift.guard", "version": 1, "changed": report.changed,
        "rules": report.rules, "overruled_by": report.overruled_by,
    });
    command.answer(&document, text(&report));
    Ok(0)
}

fn text(report: &GuardReport) -> Page {
    let mut text = Page::from(match (report.rules.len(), report.changed) {
        (0, _) => "No exception stands: none is left, or no rule drops INVALID packets.".into(),
        (n, true) => format!("Set right: {} in place.", counted(n, "rule")),
        (n, false) => format!("Nothing to do: {} in place.", counted(n, "rule")),
    });
    for kept in &report.rules {
        text.line(format!("  {} {} before {}", kept.ruleset, kept.rule, kept.before));
    }
    for drop in &report.overruled_by {
        let helps = if drop.certain { "does" } else { "may" };
        text.line(format!("  {drop} {helps} drop them all the same"));
    }
    text
}
