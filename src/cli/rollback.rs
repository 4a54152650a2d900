//! `rollback`.

use serde_json::json;

use crate::cli::Command;
use crate::error::Result;
use crate::run::rollback;
use crate::ui::table::counted;

pub(super) fn run(command: &Command<'_>) -> Result<u8> {
    let report = command.with_context(rollback::rollback)?;
    let document = json!({
        "schema": "proxyshift.rollback", "version": 1, "run": report.run,
        "restored": report.restored, "already_back": report.already_back,
    });
    let mut text =
        format!("Rolled back run {}: {} put back.", report.run, counted(report.restored, "object"));
    for object in &report.already_back {
        text += &format!("\n  was there again already: {object}");
    }
    command.answer(&document, &text);
    Ok(0)
}
