//! `rollback`.

mod to;

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Command;
use crate::run::rollback::{self, UndoReport};
use crate::ui::table::counted;

pub(in crate::front) fn run(command: &Command<'_>, to: Option<&str>) -> Result<u8> {
    if let Some(name) = to {
        return to::run(command, name);
    }
    let report = command.with_context(rollback::rollback)?;
    let document = json!({
        "schema": "proxyshift.rollback", "version": 1, "run": report.run,
        "restored": report.restored, "taken_out": report.taken_out,
        "already_back": report.already_back,
    });
    command.answer(&document, &text(&report));
    Ok(0)
}

fn text(report: &UndoReport) -> String {
    let mut text = format!("Rolled back run {}: {}.", report.run, done(report));
    for object in &report.already_back {
        text += &format!("\n  was there again already: {object}");
    }
    text
}

/// What came back, and what was added before and went.
fn done(report: &UndoReport) -> String {
    let put_back = || format!("{} put back", counted(report.restored, "object"));
    let taken_out = || format!("{} taken out again", counted(report.taken_out, "added object"));
    match (report.restored, report.taken_out) {
        (_, 0) => put_back(),
        (0, _) => taken_out(),
        _ => format!("{}, {}", put_back(), taken_out()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_fit_the_direction() {
        let said = |restored, taken_out| {
            done(&UndoReport { restored, taken_out, ..UndoReport::default() })
        };
        assert_eq!(said(2, 0), "2 objects put back");
        assert_eq!(said(0, 1), "1 added object taken out again");
        assert_eq!(said(1, 2), "1 object put back, 2 added objects taken out again");
        assert_eq!(said(0, 0), "0 objects put back");
    }
}
