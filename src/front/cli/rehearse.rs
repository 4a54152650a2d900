//! The verb `rehearse`: a run and its rollback on a private copy of the node.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::event::Claim;
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::plan::playbook::StageName;
use crate::run::migrate::preview;
use crate::run::preview::Preview;
use crate::run::sandbox;
use crate::run::sandbox::RehearsalReport;
use crate::run::sandbox::SandboxTask;
use crate::state::kube_proxy::Mode;
use crate::state::{Files, NodeState};
use crate::store::snapshots::Snapshot;
use crate::ui::page::Page;
use crate::ui::sentences;
use crate::ui::table::counted;

/// How many unsupported objects are named.
const SHOWN: usize = 3;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::RehearseArgs) -> Result<u8> {
    let tools = Tools::find();
    let live = options.snapshot.is_none();
    let state = match (&options.snapshot, options.to) {
        (Some(_), None) => None,
        (name, _) => Some(command.state(name.as_deref())?),
    };
    let modes = match (&state, options.to) {
        (Some(state), Some(to)) => RehearsedMigration::of(state, live, to)?,
        _ => None,
    };
    // A capture of the live node, or what an archive holds, is kept in a private folder for the duration
    // of the rehearsal.
    let own = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), &e))?;
    let dir = match (&options.snapshot, &state) {
        (Some(name), _) => {
            let snapshot = command.snapshot(name)?;
            if snapshot.is_plain() {
                snapshot.dir
            } else {
                write(&Snapshot::load(&snapshot.dir)?.files, own.path())?
            }
        }
        (None, Some(state)) => write(&state.files, own.path())?,
        (None, None) => own.path().to_owned(),
    };
    drop(state);
    let dir = dir.canonicalize().map_err(|e| Error::io(&dir, &e))?;
    let mut report = match &modes {
        Some(modes) => sandbox::rehearse_takeover(modes.to, &dir, &tools, command.ui)?,
        None => sandbox::run(SandboxTask::Rehearse, &dir, &tools, command.ui)?,
    };
    report.claims.extend(modes.iter().flat_map(|modes| modes.edit.clone()));
    for object in report.unsupported.iter().take(SHOWN) {
        command.sink().warning(format!("this kernel cannot hold {object}"));
    }
    if let Some(more) = report.unsupported.len().checked_sub(SHOWN).filter(|n| *n > 0) {
        command.sink().warning(format!("nor {more} others (`-o json` names them all)"));
    }
    if !report.unsupported.is_empty() && live {
        return Err(Error::new(
            Kind::Rehearsal,
            "the rehearsal",
            format!("partial: {} objects of this node were left out", report.unsupported.len()),
        ));
    }
    answer(command, &report, modes.as_ref());
    // What this kernel lacks is no fault of a capture from elsewhere. But a removal that was not rehearsed
    // is not proven.
    Ok(if report.unrehearsed.is_empty() { 0 } else { 3 })
}

/// Writes the files of a capture below `dir`.
fn write(files: &Files, dir: &Path) -> Result<PathBuf> {
    for (name, text) in files {
        let path = dir.join(name);
        let parent = path.parent().unwrap_or(dir);
        std::fs::create_dir_all(parent).map_err(|e| Error::io(parent, &e))?;
        std::fs::write(&path, &**text).map_err(|e| Error::io(&path, &e))?;
    }
    Ok(dir.to_owned())
}

/// A migration to rehearse: the edit of kube-proxy's configuration, and the clean-up.
struct RehearsedMigration {
    from: Mode,
    to: Mode,
    /// The claim that kube-proxy's configuration can be edited; none if the edit cannot be tried.
    edit: Option<Claim>,
    /// What no rehearsal can verify, one sentence each.
    unproven: Vec<String>,
}

impl RehearsedMigration {
    /// The rehearsed migration to the mode `to`. None where kube-proxy runs in that mode already.
    fn of(state: &NodeState, live: bool, to: Mode) -> Result<Option<RehearsedMigration>> {
        let preview = preview(&Catalogue::builtin()?, state, live, to, None)?;
        let Some(Preview { playbook, from, stages, .. }) = preview else { return Ok(None) };
        let mut unproven = vec![format!(
            "that kube-proxy starts and serves in {to} mode: `migrate` waits for that before it \
             removes anything, and goes back without it"
        )];
        if playbook.stage(StageName::Prepare).is_some() {
            unproven.push(
                "that the modules load and take their sysctls: these are the whole machine's"
                    .into(),
            );
        }
        let switch = stages.into_iter().find(|stage| stage.stage == StageName::Switch);
        let mut edit = None;
        if let Some(switch) = switch {
            match switch.stops {
                Some(cause) => unproven.push(format!("the edit of its settings: {cause}")),
                None => edit = Some(Claim::Config { edit: switch.does.join("; ") }),
            }
        }
        Ok(Some(RehearsedMigration { from, to, edit, unproven }))
    }
}

fn answer(command: &Invocation<'_>, report: &RehearsalReport, modes: Option<&RehearsedMigration>) {
    let partial = !report.unsupported.is_empty();
    let mut document = json!({
        "schema": "proxyshift.rehearsal", "version": 1, "partial": partial,
        "left_out": report.unsupported, "not_rehearsed": report.unrehearsed,
        "removed": report.removed,
        "proofs": report.claims.iter().map(sentences::claim).collect::<Vec<_>>(),
    });
    let how = if partial { "Partly proven" } else { "Proven" };
    let objects = counted(report.removed, "object");
    let proofs = report.claims.len();
    let mut text = Page::from(match (report.removed, modes) {
        (0, _) => format!("{how}: nothing to remove; {proofs} proofs."),
        (_, None) => format!("{how}: {objects} removed and put back; {proofs} proofs."),
        (_, Some(modes)) => format!(
            "{how}: {objects} that {} mode will have left, removed and put back; {proofs} proofs.",
            modes.from
        ),
    });
    if !report.unrehearsed.is_empty() {
        let objects = counted(report.unrehearsed.len(), "object");
        text.line(format!(
            "Not rehearsed, for this kernel cannot hold them: the removal of {objects}:"
        ));
        text.lines(report.unrehearsed.iter().take(SHOWN).map(|object| format!("  {object}")));
    }
    if let Some(modes) = modes {
        document["to"] = json!(modes.to);
        document["not_proven"] = json!(modes.unproven);
        text.line("Not proven here:");
        text.lines(modes.unproven.iter().map(|claim| format!("  {claim}")));
    }
    command.answer(&document, text);
}
