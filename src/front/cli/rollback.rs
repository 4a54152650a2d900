//! The verb `rollback`, without a snapshot.

mod to;

use serde_json::json;

use crate::error::Result;
use crate::front::cli::command::Invocation;
use crate::run::rollback::{self, UndoReport};
use crate::ui::page::Page;
use crate::ui::table::counted;

pub(in crate::front) fn run(command: &Invocation<'_>, to: Option<&str>) -> Result<u8> {
    if let Some(name) = to {
        return to::run(command, name);
    }
    let report = command.with_context(rollback::rollback)?;
    let document = json!({
        "schema": "proxyshift.rollback", "version": 1, "run": report.run,
        "restored": report.restored, "taken_out": report.taken_out,
        "already_back": report.already_back, "others": report.others,
    });
    command.answer(&document, text(&report));
    Ok(0)
}

fn text(report: &UndoReport) -> Page {
    let mut text = Page::from(format!("Rolled back run {}: {}.", report.run, done(report)));
    let again = report.already_back.iter();
    text.lines(again.map(|object| format!("  was there again already: {object}")));
    text
}

/// How many objects were restored, and how many added ones were removed, as text.
fn done(report: &UndoReport) -> String {
    let restored = || format!("{} put back", counted(report.restored, "object"));
    let taken_out = || format!("{} taken out again", counted(report.taken_out, "added object"));
    match (report.restored, report.taken_out) {
        (_, 0) => restored(),
        (0, _) => taken_out(),
        _ => format!("{}, {}", restored(), taken_out()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_fits_the_direction() {
        let text = |restored, taken_out| {
            done(&UndoReport { restored, taken_out, ..UndoReport::default() })
        };
        assert_eq!(text(2, 0), "2 objects put back");
        assert_eq!(text(0, 1), "1 added object taken out again");
        assert_eq!(text(1, 2), "1 object put back, 2 added objects taken out again");
        assert_eq!(text(0, 0), "0 objects put back");
    }
}
