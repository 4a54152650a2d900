//! What a run did, read from the run's folder and its snapshot. The node is not captured for it.

mod masked;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::checks::{Finding, Severity, Verdict, find};
use crate::error::{Error, Result};
use crate::event::{Claim, Event, Outcome, Task};
use crate::node::secrets::masked;
use crate::owners::catalogue::Catalogue;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::{Owner, Ownership, UNKNOWN};
use crate::plan::change::{Direction, Edit, TableEdit, Target};
use crate::plan::leftovers::CleanupScope;
use crate::plan::reason::Reason;
use crate::run::caller::begun_by;
use crate::run::cleanup::scope;
use crate::run::payload::{JournalLine, Replay, replay};
use crate::run::stored::parse_snapshot;
use crate::runtime::Caller;
use crate::state::stage::RunStage;
use crate::state::{Backend, NodeState};
use crate::store::Store;
use crate::store::event_log::LogContent;
use crate::store::event_log::LoggedEvent;
use crate::store::journal::{self, JOURNAL, Mark};
use crate::store::manifest::Manifest;
use crate::store::run::{Modes, RecordedFinding, Run, RunKind, RunState};
use crate::store::snapshots::Snapshot;

pub use self::masked::masked_logs;

/// A run, and all that the store has about that run.
pub struct StoredRun {
    /// The content of `run.json`.
    pub run: Run,
    /// The changes in the run's journal.
    journal: Replay,
    /// When the last line of the journal was written.
    last: Option<String>,
    /// When the run was confirmed.
    confirmed: Option<String>,
    /// The events in the run's event log.
    events: Vec<LoggedEvent>,
    /// The manifest of the run's snapshot, and the node state in that snapshot; none if the
    /// snapshot is gone.
    base: Option<(Option<Manifest>, NodeState)>,
}

impl StoredRun {
    /// Reads `run` from the store. A field stays empty if its data is missing on disk, or if the
    /// run was made by an earlier version of proxyshift that did not keep the data.
    ///
    /// # Errors
    /// [`Kind::Store`](crate::error::Kind::Store) when the run's journal cannot be read.
    pub fn read(store: &Store, run: Run) -> Result<StoredRun> {
        let folder = store.folder(&run.id);
        let lines: Vec<JournalLine> =
            if folder.contains(JOURNAL) { journal::read(&folder)? } else { Vec::new() };
        let last = lines.last().map(|line| line.at.clone());
        let confirmed = lines.iter().rfind(|line| line.kind == Mark::Confirmed);
        let confirmed = confirmed.map(|line| line.at.clone());
        let mut journal = replay(lines)?;
        // An edit that was open when the run was interrupted counts as done, because it may have
        // been made and the journal cannot tell.
        journal.done.extend(journal.open.take().map(|(edit, _)| edit));
        let load = |id: &str| {
            let loaded = Snapshot::load(&store.snapshot_of(&run, id)?.dir)?;
            Ok::<_, Error>((loaded.manifest, parse_snapshot(loaded.files)?))
        };
        let base = load(run.clean_snapshot().unwrap_or(&run.snapshot)).ok();
        let events = store.events(&run.id);
        Ok(StoredRun { run, journal, last, confirmed, events, base })
    }
}

/// A finding in the form in which a run keeps it; none if the check found nothing.
pub(super) fn recorded(finding: &Finding) -> Option<RecordedFinding> {
    let Verdict::Found(found) = &finding.verdict else { return None };
    let evidence = found.evidence.clone();
    Some(record(finding.id, finding.title, finding.severity, evidence))
}

fn record(id: &str, title: &str, severity: Severity, evidence: Vec<String>) -> RecordedFinding {
    let severity = match severity {
        Severity::Block => "block",
        Severity::Warn => "warn",
        Severity::Info => "info",
    };
    RecordedFinding { id: id.into(), title: title.into(), severity: severity.into(), evidence }
}

/// The node that the run changed, as the snapshot describes it.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    /// The host name.
    pub name: String,
    /// The release of the kernel, as `uname -r` prints it.
    pub kernel: String,
    /// The backends that held rules when the snapshot was taken.
    pub backends: Vec<Backend>,
    /// The version of proxyshift that took the snapshot.
    pub proxyshift: String,
}

/// How many objects of one owner are leftovers for the same reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// The name of the owner, as the catalogue has it.
    pub owner: String,
    /// Why the objects are leftovers.
    pub reason: String,
    /// How many objects they are.
    pub objects: usize,
}

/// The changed objects of one owner in one table. Objects outside of tables are grouped by owner
/// and kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerChanges {
    /// The name of the owner; `unknown` where the snapshot does not tell the owner.
    pub owner: String,
    /// The table with its family and backend, or the kind of the objects, such as `ipsets`.
    pub place: String,
    /// How many objects were removed.
    pub removed: usize,
    /// How many objects were added.
    pub added: usize,
    /// The changed objects, each as a text.
    pub objects: Vec<String>,
}

/// A finished task of the run, and how long it took.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The task that finished.
    pub task: Task,
    /// The outcome of the task.
    pub outcome: Outcome,
    /// When the task finished.
    pub at: String,
    /// How many seconds the task took; none where its start was not seen.
    pub seconds: Option<f64>,
}

/// What a run did and how it ended, for a person or a program that did not see it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The id of the run.
    pub run: String,
    /// The verb that started the run.
    pub verb: &'static str,
    /// Whether the run is pending, done, undone or failed.
    pub state: RunState,
    /// The last stage that the run entered; none where `run.json` does not keep it.
    pub stage: Option<RunStage>,
    /// The modes before and after a migration; none for other runs.
    pub modes: Option<Modes>,
    /// When the run began.
    pub started: String,
    /// Who began the run, from where and with which words; none for a run of an earlier version.
    pub by: Option<Caller>,
    /// When the run ended; none for a pending run.
    pub ended: Option<String>,
    /// How many seconds the run took from its beginning to its end.
    pub seconds: Option<i64>,
    /// When the run was confirmed.
    pub confirmed: Option<String>,
    /// The id of the snapshot that a rollback restores.
    pub snapshot: String,
    /// The node that the run changed; none when the snapshot is gone.
    pub node: Option<Node>,
    /// Findings that did not stop the run, or that the run fixed.
    pub findings: Vec<RecordedFinding>,
    /// The leftovers that a clean-up was for, with the reason.
    pub leftovers: Vec<Leftovers>,
    /// Objects that the run changed in the kernel.
    pub changes: Vec<OwnerChanges>,
    /// Changes other than of objects, and hooks, in order.
    pub steps: Vec<String>,
    /// True once the undo of the run has begun.
    pub undone: bool,
    /// Events of tasks that verified the node, and of claims that were verified on the node.
    #[serde(skip)]
    pub verified: Vec<Event>,
    /// The claims that were verified in the rehearsal of the run.
    #[serde(skip)]
    pub rehearsed: Vec<Claim>,
    /// How long the tasks of the run took.
    #[serde(skip)]
    pub times: Vec<Timing>,
    /// The notes and warnings of the run.
    #[serde(skip)]
    pub notes: Vec<Event>,
    /// The errors of the run, in order.
    pub errors: Vec<Error>,
}

/// Makes the report on a stored run.
///
/// # Errors
/// When the catalogue cannot be read, or the leftovers in the snapshot cannot be planned.
pub fn report(catalogue: &Catalogue, kept: &StoredRun) -> Result<Report> {
    let run = &kept.run;
    let ended = run.ended.clone().or_else(|| kept.last.clone());
    let ended = ended.filter(|_| !run.state.is_pending());
    let ownership = kept.base.as_ref().map(|(_, state)| Ownership::of(catalogue, state));
    let mut report = Report {
        run: run.id.clone(),
        verb: run.verb(),
        state: run.state,
        stage: run.pending.as_ref().map(|s| s.stage),
        modes: run.modes(),
        started: run.started.clone(),
        by: begun_by(run),
        seconds: ended.as_deref().and_then(|ended| seconds_between(&run.started, ended)),
        ended,
        confirmed: kept.confirmed.clone(),
        snapshot: run.snapshot.clone(),
        node: kept.base.as_ref().and_then(|(manifest, _)| Some(node(manifest.as_ref()?))),
        findings: findings(run),
        leftovers: match &kept.base {
            Some((_, state)) => leftovers(catalogue, run, state)?,
            None => Vec::new(),
        },
        changes: changes(&kept.journal.done, ownership.as_ref()),
        steps: kept.journal.begun.iter().map(|change| masked(&change.to_string())).collect(),
        undone: kept.journal.rolling_back
            || matches!(run.state, RunState::RolledBack | RunState::UndonePartly),
        verified: Vec::new(),
        rehearsed: Vec::new(),
        times: Vec::new(),
        notes: Vec::new(),
        errors: Vec::new(),
    };
    for logged in &kept.events {
        report.add(logged);
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, logged: &LoggedEvent) {
        let event = match &logged.what {
            LogContent::Event(event) => event,
            LogContent::Error(e) => {
                return self.errors.push(Error {
                    kind: e.kind,
                    object: masked(&e.object),
                    cause: masked(&e.cause),
                    hint: e.hint.clone(),
                });
            }
        };
        match event {
            Event::Verified { .. } => self.verified.push(event.clone()),
            Event::Finished { task, outcome } => {
                if task.verifies() {
                    self.verified.push(event.clone());
                }
                self.times.push(Timing {
                    task: task.clone(),
                    outcome: outcome.clone(),
                    at: logged.at.clone(),
                    seconds: logged.seconds,
                });
            }
            Event::Note { .. } | Event::Warning { .. } => self.notes.push(event.clone()),
            Event::Rehearsal { inner } => match &**inner {
                Event::Verified { claim } => self.rehearsed.push(claim.clone()),
                _ => self.notes.push(event.clone()),
            },
            Event::Run { .. } | Event::Started { .. } => {}
        }
    }
}

fn node(manifest: &Manifest) -> Node {
    Node {
        name: manifest.node.clone(),
        kernel: manifest.kernel.clone(),
        backends: manifest.backends.clone(),
        proxyshift: manifest.proxyshift.clone(),
    }
}

fn seconds_between(from: &str, to: &str) -> Option<i64> {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    Some(time(to)?.as_second() - time(from)?.as_second())
}

/// For a migration, the findings that the run kept; for a fix, the checks whose findings the run
/// fixed.
fn findings(run: &Run) -> Vec<RecordedFinding> {
    match &run.kind {
        RunKind::Cleanup(_) => Vec::new(),
        RunKind::Migrate(migration) => migration.findings.clone(),
        RunKind::Fix { checks } => {
            let known = checks.iter().filter_map(|id| find(id));
            known.map(|c| record(c.id, c.title, c.severity, Vec::new())).collect()
        }
    }
}

/// Leftovers in the run's snapshot, limited to the owners that the clean-up was for.
fn leftovers(catalogue: &Catalogue, run: &Run, state: &NodeState) -> Result<Vec<Leftovers>> {
    let cleaned = run.clean_snapshot().is_some();
    let wanted = match &run.kind {
        RunKind::Cleanup(options) => scope(options),
        RunKind::Migrate(_) if cleaned => CleanupScope::of_owner(KUBE_PROXY),
        RunKind::Migrate(_) | RunKind::Fix { .. } => return Ok(Vec::new()),
    };
    let plan = wanted.plan(catalogue, state)?;
    let mut counts: BTreeMap<(&str, &Reason), usize> = BTreeMap::new();
    for object in plan.removals() {
        *counts.entry((&object.owner, &object.reason)).or_default() += 1;
    }
    let row = |((owner, reason), objects): ((&str, &Reason), usize)| Leftovers {
        owner: owner.to_owned(),
        reason: reason.to_string(),
        objects,
    };
    let mut rows: Vec<Leftovers> = counts.into_iter().map(row).collect();
    rows.sort_by(|a, b| (&a.owner, &a.reason).cmp(&(&b.owner, &b.reason)));
    Ok(rows)
}

/// The changes that `edits` made, grouped by owner and table.
fn changes(edits: &[Edit], ownership: Option<&Ownership<'_>>) -> Vec<OwnerChanges> {
    let mut all: BTreeMap<(String, String), OwnerChanges> = BTreeMap::new();
    for edit in edits {
        for (owner, place, object) in objects(edit, ownership) {
            let key = (owner.clone(), place.clone());
            let change = all.entry(key).or_insert_with(|| OwnerChanges {
                owner,
                place,
                removed: 0,
                added: 0,
                objects: Vec::new(),
            });
            match edit.direction {
                Direction::Remove => change.removed += 1,
                Direction::Add => change.added += 1,
            }
            change.objects.push(object);
        }
    }
    all.into_values().collect()
}

/// The objects of an edit, each as its owner, its table (or kind) and its text.
fn objects(edit: &Edit, ownership: Option<&Ownership<'_>>) -> Vec<(String, String, String)> {
    let (place, object) = match &edit.target {
        Target::Table(table) => return table_objects(edit.direction, table, ownership),
        Target::NativeTable(t) => ("nft tables", format!("{} {}", t.family, t.name)),
        Target::Set(set) => ("ipsets", set.name.clone()),
        Target::VirtualServer(server) => ("virtual servers", server.service.to_string()),
        Target::RealServer(real) => {
            ("real servers", format!("{} of {}", real.real.address, real.service))
        }
        Target::Link(link) => ("links", link.name.clone()),
    };
    let owner = ownership.zip(edit.target.id()).and_then(|(o, id)| o.of_object(&id).map(name));
    vec![(owner.unwrap_or_else(unknown), place.to_owned(), object)]
}

fn table_objects(
    direction: Direction,
    table: &TableEdit,
    ownership: Option<&Ownership<'_>>,
) -> Vec<(String, String, String)> {
    let (id, place) = (table.ruleset, table.id().to_string());
    // A rule that the run added is not in the snapshot, so the index of that rule does not lead to
    // its owner in the snapshot.
    let of_rules = ownership.filter(|_| direction == Direction::Remove);
    let mut all = Vec::new();
    for rule in &table.rules {
        let owner =
            of_rules.and_then(|o| o.rule(id, &table.table, &rule.chain, rule.position).map(name));
        all.push((owner.unwrap_or_else(unknown), place.clone(), rule.text.to_string()));
    }
    for chain in &table.chains {
        let owner = ownership.and_then(|o| o.chain(id, &table.table, &chain.name).map(name));
        let owner = owner.unwrap_or_else(unknown);
        all.push((owner.clone(), place.clone(), format!("chain {}", chain.name)));
        let rules = chain.rules.iter();
        all.extend(rules.map(|rule| (owner.clone(), place.clone(), rule.to_string())));
    }
    all
}

fn name(owner: Owner<'_>) -> String {
    owner.name.to_owned()
}

fn unknown() -> String {
    UNKNOWN.to_owned()
}
