//! What a run did, read from its folder and its snapshot. The node is not captured for it.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::checks::{Finding, Severity, Verdict, find};
use crate::error::{Error, Result};
use crate::event::{Claim, Event, Outcome, Task};
use crate::node::processes::masked;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::{Owner, Ownership, UNKNOWN};
use crate::plan::change::{Direction, Edit, TableEdit, Target};
use crate::plan::leftovers::CleanupScope;
use crate::plan::reason::Reason;
use crate::run::payload::{JournalLine, Replay, replay};
use crate::run::stored::parse_snapshot;
use crate::state::stage::RunStage;
use crate::state::{Backend, NodeState};
use crate::store::Store;
use crate::store::event_log::LogContent;
use crate::store::event_log::LoggedEvent;
use crate::store::journal::{self, JOURNAL, Mark};
use crate::store::manifest::Manifest;
use crate::store::run::{Modes, RecordedFinding, Run, RunKind, RunState};
use crate::store::snapshots::Snapshot;

/// A run as the store has it.
pub struct StoredRun {
    /// Its `run.json`.
    pub run: Run,
    /// What its journal says.
    journal: Replay,
    /// When the journal's last line was written.
    last: Option<String>,
    /// When it was confirmed.
    confirmed: Option<String>,
    /// Its events.
    events: Vec<LoggedEvent>,
    /// Its snapshot, if that is still there.
    base: Option<(Option<Manifest>, NodeState)>,
}

impl StoredRun {
    /// Reads `run` from the store. What is missing, or was not kept by an earlier proxyshift, is
    /// empty.
    ///
    /// # Errors
    /// [`Kind::Store`](crate::error::Kind::Store) when its journal cannot be read.
    pub fn read(store: &Store, run: Run) -> Result<StoredRun> {
        let dir = store.run_dir(&run.id);
        let lines: Vec<JournalLine> = match dir.join(JOURNAL).exists() {
            true => journal::read(&dir)?,
            false => Vec::new(),
        };
        let last = lines.last().map(|line| line.at.clone());
        let confirmed = lines.iter().rfind(|line| line.kind == Mark::Confirmed);
        let confirmed = confirmed.map(|line| line.at.clone());
        let mut journal = replay(lines)?;
        // This edit was open when the run was interrupted. Whether it was made, only the node can
        // tell.
        journal.done.extend(journal.open.take().map(|(edit, _)| edit));
        let clean_snapshot = run.pending.as_ref().and_then(|s| s.clean_snapshot.as_ref());
        let load = |id: &String| {
            let loaded = Snapshot::load(&store.find(id)?.dir)?;
            Ok::<_, Error>((loaded.manifest, parse_snapshot(loaded.files)?))
        };
        let base = load(clean_snapshot.unwrap_or(&run.snapshot)).ok();
        let events = store.events(&run.id);
        Ok(StoredRun { run, journal, last, confirmed, events, base })
    }
}

/// A finding, as a run keeps it; none if nothing was found.
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

/// The node of the run.
#[derive(Debug, Clone, Serialize)]
pub struct Node {
    /// The host name.
    pub name: String,
    /// The kernel's release.
    pub kernel: String,
    /// The backends that hold rules.
    pub backends: Vec<Backend>,
    /// The proxyshift that took the snapshot.
    pub proxyshift: String,
}

/// Leftovers of one owner, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// The owner.
    pub owner: String,
    /// Why they are leftovers.
    pub reason: String,
    /// How many objects.
    pub objects: usize,
}

/// Changes of one owner's objects in one table, or of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnerChanges {
    /// The owner; `unknown` where the snapshot does not say.
    pub owner: String,
    /// Where: a table with its backend, or the kind of the objects.
    pub place: String,
    /// Objects removed.
    pub removed: usize,
    /// Objects added.
    pub added: usize,
    /// Each of them.
    pub objects: Vec<String>,
}

/// A task that took time.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The task.
    pub task: Task,
    /// What came of it.
    pub outcome: Outcome,
    /// When it was done.
    pub at: String,
    /// How long it took, in seconds; none where its beginning was not seen.
    pub seconds: Option<f64>,
}

/// What a run did and how it ended.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The run.
    pub run: String,
    /// Its verb.
    pub verb: &'static str,
    /// How far it has come.
    pub state: RunState,
    /// Its last stage, of a run in stages.
    pub stage: Option<RunStage>,
    /// The modes before and after a migration.
    pub modes: Option<Modes>,
    /// When it began.
    pub started: String,
    /// When it ended; none for one that has not.
    pub ended: Option<String>,
    /// How long that was, in seconds.
    pub seconds: Option<i64>,
    /// When it was confirmed.
    pub confirmed: Option<String>,
    /// The snapshot that a rollback restores.
    pub snapshot: String,
    /// The node; none when the snapshot is gone.
    pub node: Option<Node>,
    /// Findings that did not stop the run, or that it fixed.
    pub findings: Vec<RecordedFinding>,
    /// Leftovers, with the reason.
    pub leftovers: Vec<Leftovers>,
    /// Objects that it changed in the kernel.
    pub changes: Vec<OwnerChanges>,
    /// Other changes, and hooks, in order.
    pub steps: Vec<String>,
    /// True once its undoing has begun.
    pub undone: bool,
    /// Tasks that verified the node, and claims that were verified on it.
    #[serde(skip)]
    pub verified: Vec<Event>,
    /// What was verified in its rehearsal.
    #[serde(skip)]
    pub rehearsed: Vec<Claim>,
    /// The tasks that took time.
    #[serde(skip)]
    pub times: Vec<Timing>,
    /// Notes and warnings.
    #[serde(skip)]
    pub notes: Vec<Event>,
    /// Its errors, in order.
    pub errors: Vec<Error>,
}

/// The report on a stored run.
///
/// # Errors
/// When the catalogue or the snapshot cannot be judged.
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

/// The findings that a migration kept; for a fix, the checks that it was for.
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

/// Leftovers in the run's snapshot, of the owners that the clean-up was for.
fn leftovers(catalogue: &Catalogue, run: &Run, state: &NodeState) -> Result<Vec<Leftovers>> {
    let cleaned = run.clean_snapshot().is_some();
    let wanted = match &run.kind {
        RunKind::Cleanup(options) => {
            CleanupScope { owners: options.owners.clone(), black_holes: options.black_holes }
        }
        RunKind::Migrate(_) if cleaned => CleanupScope::of_owner("kube-proxy"),
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

/// The changes that the edits made, by owner and table.
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

/// Each object of an edit: its owner, where it is, and itself.
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
    // An added object has no position in the snapshot.
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
