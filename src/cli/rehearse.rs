//! `rehearse`: a run and its rollback on a private copy of the node.

use serde_json::json;

use crate::cli::{Command, args};
use crate::error::{Error, Kind, Result};
use crate::node::tools::Tools;
use crate::run::inside::{self, Job};
use crate::ui::table::counted;

pub(super) fn run(command: &Command<'_>, options: &args::Rehearse) -> Result<u8> {
    let tools = Tools::find();
    // A capture of the live node lies in a private folder for as long as it is rehearsed on.
    let own = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), &e))?;
    let dir = match &options.snapshot {
        Some(name) => command.snapshot_dir(name)?,
        None => {
            for (name, text) in &command.state(None)?.files {
                let path = own.path().join(name);
                let parent = path.parent().unwrap_or(own.path());
                std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, &e))?;
                std::fs::write(&path, &**text).map_err(|e| Error::io(&path, &e))?;
            }
            own.path().to_owned()
        }
    };
    let dir = dir.canonicalize().map_err(|e| Error::io(&dir, &e))?;
    let report = inside::run(Job::Rehearse, &dir, &tools, command.ui)?;
    const SHOWN: usize = 3;
    for object in report.left_out.iter().take(SHOWN) {
        command.sink().warning(format!("this kernel cannot hold {object}"));
    }
    if let Some(more) = report.left_out.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        command.sink().warning(format!("nor {more} others (`-o json` names them all)"));
    }
    let partial = !report.left_out.is_empty();
    if partial && options.snapshot.is_none() {
        return Err(Error::new(
            Kind::Rehearsal,
            "the rehearsal",
            format!("partial: {} objects of this node were left out", report.left_out.len()),
        ));
    }
    let document = json!({
        "schema": "proxyshift.rehearsal", "version": 1, "partial": partial,
        "left_out": report.left_out, "removed": report.removed, "proofs": report.proofs,
    });
    let how = if partial { "Partly proven" } else { "Proven" };
    let objects = counted(report.removed, "object");
    let text = match report.removed {
        0 => format!("{how}: nothing to remove; {} proofs.", report.proofs.len()),
        _ => format!("{how}: {objects} removed and put back; {} proofs.", report.proofs.len()),
    };
    command.answer(&document, &text);
    Ok(0)
}
