//! What a run did, told from what is kept of it: its folder and its snapshot. It asks the node
//! nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checks::{CHECKS, Finding, Severity, Verdict};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::node::processes::masked;
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::plan::edit::{Direction, Edit, Target};
use crate::plan::leftovers::Wanted;
use crate::run::apply_edits::ROLLBACK;
use crate::run::apply_edits::told;
use crate::run::cleanup::wanted_of;
use crate::run::rehearsal::REHEARSAL;
use crate::run::snapshot::parse_snapshot;
use crate::run::{fix, migrate};
use crate::state::ipvs::Service;
use crate::state::{Backend, NodeState};
use crate::store::Store;
use crate::store::event_log::LoggedEvent;
use crate::store::event_log::What;
use crate::store::journal::{self, Entry, JOURNAL, Mark};
use crate::store::manifest::Manifest;
use crate::store::run::{Modes, Run, RunState};
use crate::store::snapshots::Snapshot;

/// What is kept of a run.
pub struct StoredRun {
    /// Its `run.json`.
    pub run: Run,
    /// Its journal, read as edits, for what it changed in the kernel.
    edits: Vec<Edit>,
    /// Its journal's lines.
    journal: Vec<Entry>,
    /// What it said.
    said: Vec<LoggedEvent>,
    /// Its snapshot, if that is still there.
    base: Option<(Option<Manifest>, NodeState)>,
}

impl StoredRun {
    /// Reads what is kept of `run`. What is not there any more, or was not kept by an earlier
    /// proxyshift, is left out.
    ///
    /// # Errors
    /// [`Kind::Store`](crate::error::Kind::Store) when its journal cannot be read.
    pub fn read(store: &Store, run: Run) -> Result<StoredRun> {
        let dir = store.run_dir(&run.id);
        let (mut edits, mut lines) = (Vec::new(), Vec::new());
        if dir.join(JOURNAL).exists() {
            let told = told(journal::read(&dir)?)?;
            edits = told.done;
            // Begun when everything was cut off: what became of it, only the node can say.
            edits.extend(told.open.map(|(edit, _)| edit));
            lines = journal::read(&dir)?;
        }
        let clean_snapshot = run.pending.as_ref().and_then(|s| s.clean_snapshot.as_ref());
        let load = |id: &String| {
            let loaded = Snapshot::load(&store.find(id)?.dir)?;
            Ok::<_, Error>((loaded.manifest, parse_snapshot(loaded.files)?))
        };
        let base = load(clean_snapshot.unwrap_or(&run.snapshot)).ok();
        let said = store.events(&run.id);
        Ok(StoredRun { run, edits, journal: lines, said, base })
    }
}

/// A finding of a check, as a run keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFinding {
    /// The check's id.
    pub id: String,
    /// What it looks at.
    pub title: String,
    /// How much it matters: `block`, `warn`, `info`.
    pub severity: String,
    /// What shows it.
    pub evidence: Vec<String>,
}

impl RecordedFinding {
    /// What was found, if something was.
    pub fn of(finding: &Finding) -> Option<RecordedFinding> {
        let Verdict::Found(found) = &finding.verdict else { return None };
        Some(RecordedFinding::new(
            finding.id,
            finding.title,
            finding.severity,
            found.evidence.clone(),
        ))
    }

    fn new(id: &str, title: &str, severity: Severity, evidence: Vec<String>) -> RecordedFinding {
        let severity = match severity {
            Severity::Block => "block",
            Severity::Warn => "warn",
            Severity::Info => "info",
        };
        RecordedFinding { id: id.into(), title: title.into(), severity: severity.into(), evidence }
    }
}

/// Where the run was.
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

/// What changed of one owner's in one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
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

/// Something that took time.
#[derive(Debug, Clone, Serialize)]
pub struct Timing {
    /// What.
    pub task: String,
    /// What came of it.
    pub result: String,
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
    pub verb: String,
    /// How far it came.
    pub state: RunState,
    /// Its last stage, of a run in stages.
    pub stage: Option<String>,
    /// From which mode to which, of a migration.
    pub modes: Option<Modes>,
    /// When it began.
    pub started: String,
    /// When it ended; none for one that has not.
    pub ended: Option<String>,
    /// How long that was, in seconds.
    pub seconds: Option<i64>,
    /// When it was confirmed.
    pub confirmed: Option<String>,
    /// The snapshot that it goes back to.
    pub snapshot: String,
    /// The node; none when the snapshot is gone.
    pub node: Option<Node>,
    /// What checks found beforehand and did not stop it, or what it mended.
    pub findings: Vec<RecordedFinding>,
    /// What was left over, and why.
    pub leftovers: Vec<Leftovers>,
    /// What it changed in the kernel's tables, sets, servers and links.
    pub changes: Vec<Change>,
    /// What else it changed or ran, in order.
    pub steps: Vec<String>,
    /// True when what it changed was undone, or that was begun.
    pub undone: bool,
    /// What was proven.
    pub proofs: Vec<String>,
    /// What was proven in its rehearsal.
    pub rehearsed: Vec<String>,
    /// What took how long.
    pub times: Vec<Timing>,
    /// What needed to be known on the way, and warnings.
    pub notes: Vec<String>,
    /// Why it failed, as far as it did; the last one last.
    pub errors: Vec<Error>,
}

/// The report on what is kept of a run.
///
/// # Errors
/// When the catalogue or the snapshot cannot be judged.
pub fn report(catalogue: &Catalogue, kept: &StoredRun) -> Result<Report> {
    let run = &kept.run;
    let last = || kept.journal.last().map(|entry| entry.at.clone());
    let ended = run.ended.clone().or_else(last).filter(|_| !run.state.is_pending());
    let confirmed = kept.journal.iter().rfind(|e| e.kind == Mark::Confirmed);
    let ownership = kept.base.as_ref().map(|(_, state)| Ownership::of(catalogue, state));
    let mut report = Report {
        run: run.id.clone(),
        verb: run.verb.clone(),
        state: run.state,
        stage: run.pending.as_ref().map(|s| s.stage.clone()),
        modes: run.pending.as_ref().and_then(|s| s.modes),
        started: run.started.clone(),
        seconds: ended.as_deref().and_then(|ended| seconds_between(&run.started, ended)),
        ended,
        confirmed: confirmed.map(|entry| entry.at.clone()),
        snapshot: run.snapshot.clone(),
        node: kept.base.as_ref().and_then(|(manifest, _)| Some(node(manifest.as_ref()?))),
        findings: findings(run),
        leftovers: match &kept.base {
            Some((_, state)) => leftovers(catalogue, run, state)?,
            None => Vec::new(),
        },
        changes: changes(&kept.edits, kept.base.as_ref().map(|b| &b.1), ownership.as_ref()),
        steps: migrate::shown(&kept.journal).iter().map(|step| masked(step)).collect(),
        undone: kept.journal.iter().any(|e| e.stage == ROLLBACK)
            || matches!(run.state, RunState::RolledBack | RunState::UndonePartly),
        proofs: Vec::new(),
        rehearsed: Vec::new(),
        times: Vec::new(),
        notes: Vec::new(),
        errors: Vec::new(),
    };
    for said in &kept.said {
        report.add(said);
    }
    Ok(report)
}

impl Report {
    fn add(&mut self, said: &LoggedEvent) {
        match &said.what {
            What::Error(e) => self.errors.push(Error {
                kind: e.kind,
                object: masked(&e.object),
                cause: masked(&e.cause),
                hint: e.hint.clone(),
            }),
            What::Event(Event::Proved { what, evidence }) => {
                let proof = masked(format!("{what} {evidence}").trim_end());
                match proof.strip_prefix(REHEARSAL) {
                    Some(proof) => self.rehearsed.push(proof.to_owned()),
                    None => self.proofs.push(proof),
                }
            }
            What::Event(Event::Finished { task, result }) => {
                if task.starts_with("verifying") || task.starts_with("asking") {
                    self.proofs.push(format!("{task}: {result}"));
                }
                self.times.push(Timing {
                    task: masked(task),
                    result: masked(result),
                    at: said.at.clone(),
                    seconds: said.seconds,
                });
            }
            What::Event(Event::Note { text } | Event::Warning { text }) => {
                self.notes.push(masked(text));
            }
            What::Event(Event::Run { .. } | Event::Started { .. }) => {}
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

/// What the run kept of its checks; of remedies, what they are for.
fn findings(run: &Run) -> Vec<RecordedFinding> {
    if run.verb != fix::FIX {
        return serde_json::from_value(run.plan["findings"].clone()).unwrap_or_default();
    }
    let ids = run.plan["checks"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let check = |id| CHECKS.iter().find(|check| check.id == id);
    let judged =
        |c: &crate::checks::Check| RecordedFinding::new(c.id, c.title, c.severity, Vec::new());
    ids.filter_map(check).map(judged).collect()
}

/// What the run's snapshot shows to be left over of the owners it was to clean up after.
fn leftovers(catalogue: &Catalogue, run: &Run, state: &NodeState) -> Result<Vec<Leftovers>> {
    let cleaned = run.pending.as_ref().is_some_and(|s| s.clean_snapshot.is_some());
    let wanted = match run.verb.as_str() {
        "cleanup" => wanted_of(run),
        migrate::MIGRATE if cleaned => Wanted::of_owner("kube-proxy"),
        _ => return Ok(Vec::new()),
    };
    let plan = wanted.plan(catalogue, state)?;
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for object in plan.removals() {
        *counts.entry((&object.owner, &object.reason)).or_default() += 1;
    }
    let row = |((owner, reason), objects): ((&str, &str), usize)| Leftovers {
        owner: owner.to_owned(),
        reason: reason.to_owned(),
        objects,
    };
    Ok(counts.into_iter().map(row).collect())
}

/// What the edits changed, by owner and place.
fn changes(
    edits: &[Edit],
    base: Option<&NodeState>,
    ownership: Option<&Ownership<'_>>,
) -> Vec<Change> {
    let mut all: BTreeMap<(String, String), Change> = BTreeMap::new();
    for edit in edits {
        for (owner, place, object) in objects(edit, base, ownership) {
            let key = (owner.clone(), place.clone());
            let change = all.entry(key).or_insert_with(|| Change {
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

/// Each object of an edit: its owner, its place, and itself.
fn objects(
    edit: &Edit,
    base: Option<&NodeState>,
    ownership: Option<&Ownership<'_>>,
) -> Vec<(String, String, String)> {
    let unknown = || "unknown".to_owned();
    let one = |owner: Option<&str>, place: &str, object: String| {
        vec![(owner.map_or_else(unknown, str::to_owned), place.to_owned(), object)]
    };
    let server_of = |service: &Service| {
        let place = base?.ipvs.servers.iter().position(|s| s.service == *service)?;
        ownership?.virtual_server(place).map(|o| o.name)
    };
    match &edit.target {
        Target::Table(table) => {
            let place = format!("{} {}", table.ruleset, table.table);
            let mut all = Vec::new();
            for rule in &table.rules {
                let found = |o: &Ownership<'_>| {
                    let owner = o.rule(table.ruleset, &table.table, &rule.chain, rule.position)?;
                    Some(owner.name.to_owned())
                };
                // What was added stands at no place of the snapshot's.
                let owner = ownership.filter(|_| edit.direction == Direction::Remove);
                let owner = owner.and_then(found).unwrap_or_else(unknown);
                all.push((owner, place.clone(), rule.text.to_string()));
            }
            for chain in &table.chains {
                let owner = ownership.and_then(|o| {
                    let owner = o.chain(table.ruleset, &table.table, &chain.name)?;
                    Some(owner.name.to_owned())
                });
                let owner = owner.unwrap_or_else(unknown);
                all.push((owner.clone(), place.clone(), format!("chain {}", chain.name)));
                let rules = chain.rules.iter();
                all.extend(rules.map(|rule| (owner.clone(), place.clone(), rule.to_string())));
            }
            all
        }
        Target::NativeTable(t) => {
            let owner = ownership.and_then(|o| o.table(&t.family, &t.name)).map(|o| o.name);
            one(owner, "nft tables", format!("{} {}", t.family, t.name))
        }
        Target::Set(set) => one(
            ownership.and_then(|o| o.set(&set.name)).map(|o| o.name),
            "ipsets",
            set.name.clone(),
        ),
        Target::VirtualServer(server) => {
            one(server_of(&server.service), "virtual servers", server.service.to_string())
        }
        Target::RealServer(real) => {
            let object = format!("{} of {}", real.real.address, real.service);
            one(server_of(&real.service), "real servers", object)
        }
        Target::Link(link) => {
            let owner = ownership.and_then(|o| o.link(&link.name)).map(|o| o.name);
            one(owner, "links", link.name.clone())
        }
    }
}
