//! The verbs below `snapshot`, on the snapshots in the store.

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::run::snapshot;
use crate::run::stored;
use crate::state::NodeState;
use crate::store::archive;
use crate::store::imported::Imported;
use crate::store::snapshots::{Loaded, Snapshot};
use crate::ui::page::Page;
use crate::ui::sentences;
use crate::ui::table::thousands;

pub(in crate::front) fn run(command: &Invocation<'_>, verb: &args::SnapshotVerb) -> Result<u8> {
    match verb {
        args::SnapshotVerb::Create { why } => create(command, why),
        args::SnapshotVerb::List => list(command),
        args::SnapshotVerb::Show { snapshot } => show(command, snapshot),
        args::SnapshotVerb::Verify { snapshot } => verify(command, snapshot),
        args::SnapshotVerb::Diff { from, to } => diff(command, from, to.as_deref()),
        args::SnapshotVerb::Prune { keep } => prune(command, *keep),
        args::SnapshotVerb::Export { snapshot, file } => {
            archive::export(&command.snapshot(snapshot)?.dir, file)?;
            let document = json!({"schema": "proxyshift.export", "version": 1, "file": file.display().to_string()});
            command.answer(&document, format!("Wrote {}.", file.display()));
            Ok(0)
        }
        args::SnapshotVerb::Import { file } => {
            let snapshot = command.store_to_write()?.import(file, &stored::reparses)?;
            let document =
                json!({"schema": "proxyshift.import", "version": 1, "snapshot": snapshot.id});
            command.answer(&document, format!("Imported snapshot {}.", snapshot.id));
            Ok(0)
        }
    }
}

fn create(command: &Invocation<'_>, why: &str) -> Result<u8> {
    let baseline = command.with_context(|context| {
        let _lock = context.lock("snapshot")?;
        snapshot::take_snapshot(context, why)
    })?;
    let document = json!({
        "schema": "proxyshift.snapshot", "version": 1,
        "snapshot": baseline.snapshot.id, "directory": baseline.snapshot.dir.display().to_string(),
    });
    let dir = baseline.snapshot.dir.display();
    command.answer(&document, format!("Snapshot {} in {dir}.", baseline.snapshot.id));
    Ok(0)
}

fn list(command: &Invocation<'_>) -> Result<u8> {
    let listed = command.store()?.list()?;
    let mut rows = Vec::new();
    let mut documents = Vec::new();
    for entry in &listed {
        let id = &entry.snapshot.id;
        match &entry.manifest {
            Ok(m) => {
                let why = m.why.clone() + &mark(entry.imported.as_ref());
                rows.push(vec![id.clone(), m.time.clone(), m.node.clone(), why]);
                documents.push(json!({
                    "id": id, "time": m.time, "node": m.node, "why": m.why,
                    "imported": entry.imported,
                }));
            }
            Err(e) => {
                let cause = format!("broken: {}", e.cause);
                rows.push(vec![id.clone(), cause + &mark(entry.imported.as_ref())]);
                documents.push(json!({"id": id, "broken": e.cause, "imported": entry.imported}));
            }
        }
    }
    let document = json!({"schema": "proxyshift.snapshots", "version": 1, "snapshots": documents});
    let mut text = Page::new();
    text.columns(&rows);
    if rows.is_empty() {
        text.line("No snapshots.");
    }
    command.answer(&document, text);
    Ok(0)
}

/// Where an imported snapshot came from, as the end of a text; empty for one that was taken here.
fn mark(imported: Option<&Imported>) -> String {
    match imported {
        None => String::new(),
        Some(Imported { from, when }) if from.is_empty() && when.is_empty() => {
            "; imported".to_owned()
        }
        Some(Imported { from, when }) => format!("; imported from {from}, {when}"),
    }
}

fn show(command: &Invocation<'_>, name: &str) -> Result<u8> {
    let snapshot = command.snapshot(name)?;
    let (dir, imported) = (&snapshot.dir, snapshot.imported());
    let loaded = Snapshot::load_partly(dir)?;
    warn_of_part(command, &loaded);
    let state = stored::parse_snapshot(loaded.files)?;
    let catalogue = Catalogue::builtin()?;
    let ownership = Ownership::of(&catalogue, &state);
    let counts = ownership.counts();
    let document = json!({
        "schema": "proxyshift.snapshot-owners", "version": 1, "directory": dir.display().to_string(),
        "manifest": loaded.manifest, "imported": imported, "owners": counts,
    });
    let mut text = Page::from(match &loaded.manifest {
        Some(m) => {
            let mark = mark(imported.as_ref());
            format!("{} of {}, taken {} ({}){mark}", m.id, m.node, m.time, m.why)
        }
        None => format!("{}, a capture without a manifest", dir.display()),
    });
    text.line(sentences::outcome(&snapshot::summary(&state)));
    text.blank();
    let heads = ["owner", "chains", "rules", "sets", "servers", "links", "tables"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(counts.iter().map(|(owner, c)| {
        let numbers = [c.chains, c.rules, c.sets, c.virtual_servers, c.links, c.tables];
        let cell = |n: &usize| if *n == 0 { "·".to_owned() } else { thousands(*n) };
        [(*owner).to_owned()].into_iter().chain(numbers.iter().map(cell)).collect()
    }));
    text.columns(&rows);
    command.answer(&document, text);
    Ok(0)
}

/// Warns that what was captured is not the whole node.
fn warn_of_part(command: &Invocation<'_>, loaded: &Loaded) {
    if let Some(unread) = &loaded.unread {
        command.sink().warning(format!("this is a part of the node: {unread}"));
    }
}

fn verify(command: &Invocation<'_>, name: &str) -> Result<u8> {
    let dir = command.snapshot(name)?.dir;
    let loaded = Snapshot::load_partly(&dir)?;
    warn_of_part(command, &loaded);
    stored::reparses(&loaded.files)?;
    let files = loaded.files.len();
    let what = match &loaded.manifest {
        Some(_) => {
            "checksums match, restore.sh is ours, and each file parses and renders to the same bytes"
        }
        None => {
            "no manifest, so nothing to roll back to; each file parses and renders to the same bytes"
        }
    };
    let document = json!({
        "schema": "proxyshift.verify", "version": 1, "files": files,
        "manifest": loaded.manifest.is_some(),
    });
    command.answer(&document, format!("{}: {files} files, {what}.", dir.display()));
    Ok(0)
}

fn diff(command: &Invocation<'_>, from: &str, to: Option<&str>) -> Result<u8> {
    let before = command.state(Some(from))?;
    let after: NodeState = command.state(to)?;
    let differences = before.differences(&after);
    let rows: Vec<_> = differences
        .iter()
        .map(|d| json!({"place": d.part, "change": d.to_string().chars().next(), "text": d.text}))
        .collect();
    let document = json!({"schema": "proxyshift.diff", "version": 1, "differences": rows});
    let mut text = Page::new();
    text.lines(differences.iter().map(ToString::to_string));
    if text.is_empty() {
        text.line("They mean the same.");
    }
    command.answer(&document, text);
    Ok(0)
}

fn prune(command: &Invocation<'_>, keep: usize) -> Result<u8> {
    if keep == 0 {
        return Err(Error::new(Kind::Usage, "--keep 0", "at least one snapshot must stay"));
    }
    // Where there is no store, there is nothing to prune, and none is made.
    let store = command.store()?;
    let removed = store.prune(keep, &store.needed_snapshots()?)?;
    let document = json!({"schema": "proxyshift.prune", "version": 1, "removed": removed});
    command.answer(&document, format!("Removed {} snapshots.", removed.len()));
    Ok(0)
}
