//! `report --bundle FILE`: one archive about the node, for a report of a bug. It is made on nodes that are
//! broken, so each part is made by itself, and the bundle names those that are missing.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::{Sentences, document, markdown};
use crate::checks::{Finding, Verdict};
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::front::cli::args::{CheckArgs, ReportArgs};
use crate::front::cli::check::{self, CheckInput};
use crate::front::cli::command::Invocation;
use crate::front::cli::plan;
use crate::node::capture::parts::{Parts, capture_parts};
use crate::node::config_files::masked_capture;
use crate::node::observe::observe;
use crate::node::secrets::{mask_texts, masked, masked_lines};
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::plan::leftovers::CleanupScope;
use crate::run::report::{StoredRun, masked_logs, report};
use crate::run::snapshot::summary;
use crate::run::stored::beside_rules;
use crate::state::kube_proxy::controller::PROGRAM;
use crate::state::{Family, Files, NodeState};
use crate::store::archive;
use crate::store::bundle::{BUNDLE, SNAPSHOT, UNREAD, VERSION};
use crate::store::snapshots::{Snapshot, is_captured};
use crate::ui::page::Page;

/// The file with the reasons why parts are missing, for people.
const ERRORS: &str = "errors.txt";

/// What a bundle is about: its file [`BUNDLE`], and the answer of the verb.
#[derive(Debug, Serialize)]
struct BundleDocument {
    schema: &'static str,
    version: u32,
    /// Where the bundle is. Not in the bundle itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// When the bundle was made.
    time: String,
    /// The snapshot that it is about; none for the live node.
    snapshot: Option<String>,
    versions: Versions,
    /// The run that it tells of.
    run: Option<String>,
    /// The files of the bundle, without those of the capture.
    parts: Vec<String>,
    /// Why parts are missing.
    missing: Vec<Error>,
}

#[derive(Debug, Default, Serialize)]
struct Versions {
    proxyshift: &'static str,
    /// The release of the kernel; none if it was not captured.
    kernel: Option<String>,
    /// What each program printed for its version; none for a program that is missing.
    tools: BTreeMap<String, Option<String>>,
    /// The version of each kube-proxy that runs; none where it is not known.
    kube_proxy: Vec<Option<String>>,
}

/// What is to be written.
#[derive(Default)]
struct Bundle {
    files: Files,
    missing: Vec<Error>,
    run: Option<String>,
}

pub(super) fn run(command: &Invocation<'_>, options: &ReportArgs, file: &Path) -> Result<u8> {
    archive::is_new(file)?;
    if options.snapshot.is_none() && !rustix::process::geteuid().is_root() {
        return Err(Error::new(Kind::Permission, "this node", "only root may read its rules")
            .hint("run as root; with `--snapshot ./DIR` no rights are needed"));
    }
    let task = Task::Bundle;
    command.sink().started(&task);
    let mut bundle = Bundle::default();
    let name = options.snapshot.as_deref();
    let captured = match name {
        Some(name) => Captured::of_snapshot(command, name)?,
        None => Captured::live(command),
    };
    let versions = bundle.add_captured(command, name, captured);
    // The store of this machine says nothing of a node that a directory or an archive describes.
    if options.run.is_some() || !name.is_some_and(|name| name.contains('/')) {
        let added = bundle.add_run(command, options.run.as_deref());
        bundle.note(added);
    }
    let time = clock::now();
    let parts = bundle.files.keys().filter(|name| !name.starts_with(SNAPSHOT));
    let mut document = BundleDocument {
        schema: "proxyshift.bundle",
        version: VERSION,
        file: None,
        time: time.clone(),
        snapshot: name.map(str::to_owned),
        versions,
        run: bundle.run.take(),
        parts: parts.cloned().collect(),
        missing: bundle.missing.iter().map(without_secrets).collect(),
    };
    let errors = errors_text(&document.missing);
    if !errors.is_empty() {
        document.parts.push(ERRORS.to_owned());
        bundle.files.insert(ERRORS.to_owned(), errors.text().into());
    }
    bundle.files.insert(BUNDLE.to_owned(), pretty(&document)?.into());
    let entries = bundle.files.iter().map(|(name, text)| (name.as_str(), text.as_bytes()));
    archive::write(file, &format!("proxyshift-{}", clock::new_id()), &time, entries)?;
    command.sink().finished(&task, Outcome::Succeeded);

    document.file = Some(file.display().to_string());
    let text = answer(&document);
    command.answer(&document, text);
    Ok(0)
}

/// A node as far as it could be captured.
struct Captured {
    parts: Parts,
    /// Why it is not the whole node, if so.
    unread: Option<Error>,
}

impl Captured {
    fn live(command: &Invocation<'_>) -> Captured {
        let (task, tools) = (Task::Capture, Tools::find());
        command.sink().started(&task);
        let captured = match observe(&tools, command.ui) {
            Ok(state) => {
                command.sink().finished(&task, summary(&state));
                let parts = Parts { files: state.files, ..Parts::default() };
                return Captured { parts, unread: None };
            }
            Err(error) => {
                command.sink().warning(format!("not all of the node can be captured: {error}"));
                let mut parts = capture_parts(&tools, command.ui);
                if parts.errors.iter().all(|other| other.to_string() != error.to_string()) {
                    if error.kind == Kind::LossyCapture {
                        Family::ALL.into_iter().for_each(|family| parts.keep_messages(family));
                    }
                    parts.errors.insert(0, error.clone());
                }
                Captured { parts, unread: Some(error) }
            }
        };
        let state = NodeState::parse(captured.parts.files.clone()).unwrap_or_default();
        command.sink().finished(&task, summary(&state));
        captured
    }

    fn of_snapshot(command: &Invocation<'_>, name: &str) -> Result<Captured> {
        let loaded = Snapshot::load_partly(&command.snapshot(name)?.dir)?;
        let parts = Parts { files: loaded.files, ..Parts::default() };
        Ok(Captured { parts, unread: loaded.unread })
    }
}

impl Bundle {
    /// Remembers the error of a part that is missing.
    fn note<T>(&mut self, part: Result<T>) -> Option<T> {
        part.map_err(|error| self.missing.push(error)).ok()
    }

    fn add(&mut self, name: impl Into<String>, text: &str) {
        self.files.insert(name.into(), text.into());
    }

    /// Adds what was captured, and what `check` and `plan` say of it.
    fn add_captured(
        &mut self,
        command: &Invocation<'_>,
        name: Option<&str>,
        captured: Captured,
    ) -> Versions {
        let Captured { parts, unread } = captured;
        self.missing.extend(parts.errors);
        let files: Files = parts.files.into_iter().filter(|(path, _)| is_captured(path)).collect();
        let masked = masked_capture(files);
        let (files, notes) = self.note(masked).unwrap_or_default();
        for note in notes {
            self.missing.push(Error::new(Kind::NotFound, "configuration", note));
        }
        for (path, text) in parts.refused {
            self.add(format!("refused/{path}"), &masked_lines(&text));
        }
        for (path, text) in &files {
            self.files.insert(format!("{SNAPSHOT}/{path}"), text.clone());
        }
        if let Some(error) = &unread {
            let json = pretty(&without_secrets(error));
            if let Some(json) = self.note(json) {
                self.add(format!("{SNAPSHOT}/{UNREAD}"), &json);
            }
        }
        let state = NodeState::parse(match &unread {
            None => files,
            Some(_) => beside_rules(files),
        });
        let Some(state) = self.note(state) else { return Versions::of(&NodeState::default()) };
        let versions = Versions::of(&state);
        let planned = match &unread {
            None => self.add_plan(&state),
            // Said already, with what could not be captured.
            Some(_) => Ok(()),
        };
        self.note(planned);
        let checked = self.add_check(command, name, state, unread);
        self.note(checked);
        versions
    }

    fn add_plan(&mut self, state: &NodeState) -> Result<()> {
        let plan = CleanupScope::default().plan(&Catalogue::builtin()?, state)?;
        self.add("plan.json", &pretty(&plan::document(&plan))?);
        self.add("plan.txt", plan::text(&plan, true).text());
        Ok(())
    }

    fn add_check(
        &mut self,
        command: &Invocation<'_>,
        name: Option<&str>,
        now: NodeState,
        unread: Option<Error>,
    ) -> Result<()> {
        let task = Task::Check;
        command.sink().started(&task);
        let live = name.is_none().then(|| check::probe_live_facts(command, &now));
        let input = CheckInput { now, earlier: None, interval: None, live, unread };
        let findings = check::judge(&input, &input.now, &CheckArgs::default())?;
        command.sink().finished(&task, Outcome::Checked { checks: findings.len() });
        let findings: Vec<Finding> = findings.into_iter().map(masked_finding).collect();
        self.add("check.json", &pretty(&check::document(name, &findings))?);
        self.add("check.txt", check::text(&findings, true).text());
        Ok(())
    }

    /// Adds what the run `name` did, or else the last one, if there is one.
    fn add_run(&mut self, command: &Invocation<'_>, name: Option<&str>) -> Result<()> {
        let store = command.store()?;
        let run = match store.find_run(name) {
            Err(error) if error.kind == Kind::NotFound && name.is_none() => return Ok(()),
            run => run?,
        };
        self.run = Some(run.id.clone());
        let logs = masked_logs(&store, &run);
        if let Some((journal, events)) = self.note(logs) {
            self.add("run/journal.jsonl", &journal);
            self.add("run/events.jsonl", &events);
        }
        let stored = StoredRun::read(&store, run)?.without_secrets();
        let report = report(&Catalogue::builtin()?, &stored)?;
        let sentences = Sentences::of(&report);
        self.add("run/report.json", &pretty(&document(&report, &sentences))?);
        self.add("run/report.md", &masked_lines(markdown(&report, &sentences).text()));
        Ok(())
    }
}

impl Versions {
    fn of(state: &NodeState) -> Versions {
        let tools = state.tools.iter().flat_map(|list| &list.tools);
        let tools = tools
            .map(|tool| (tool.name.clone(), tool.path.as_ref().map(|_| masked_lines(&tool.text))));
        let processes = state.processes.iter().flatten();
        Versions {
            proxyshift: env!("CARGO_PKG_VERSION"),
            kernel: state.tools.as_ref().map(|list| list.kernel.clone()),
            tools: tools.collect(),
            kube_proxy: processes
                .filter(|process| process.name == PROGRAM)
                .map(|process| process.version.clone())
                .collect(),
        }
    }
}

/// The finding without secrets in its texts, some of which are of files and programs.
fn masked_finding(mut finding: Finding) -> Finding {
    match &mut finding.verdict {
        Verdict::Ok(text) | Verdict::Unknown(text) => *text = masked_lines(text),
        Verdict::Found(found) => {
            found.effect = masked_lines(&found.effect);
            for text in found.evidence.iter_mut().chain(&mut found.remedy) {
                *text = masked_lines(text);
            }
        }
    }
    finding
}

fn without_secrets(error: &Error) -> Error {
    Error {
        kind: error.kind,
        object: masked_lines(&error.object),
        cause: masked_lines(&error.cause),
        hint: error.hint.as_ref().map(|hint| masked(hint)),
    }
}

/// The document as JSON, without secrets in its texts.
fn pretty(document: &impl Serialize) -> Result<String> {
    let failed = |e: serde_json::Error| Error::new(Kind::Unexpected, "the bundle", e);
    let mut value = serde_json::to_value(document).map_err(failed)?;
    mask_texts(&mut value);
    Ok(serde_json::to_string_pretty(&value).map_err(failed)? + "\n")
}

fn errors_text(missing: &[Error]) -> Page {
    let mut text = Page::new();
    for error in missing {
        text.wrapped(&error.to_string(), "", "    ");
        if let Some(hint) = &error.hint {
            text.wrapped(hint, "    next: ", "    ");
        }
    }
    text
}

fn answer(document: &BundleDocument) -> Page {
    let file = document.file.as_deref().unwrap_or_default();
    let mut text = Page::from(format!("Wrote {file}. It can be read with `--snapshot`."));
    text.wrapped(
        "Secrets are masked; names, comments of rules and addresses are not: look through it before \
         you send it.",
        "",
        "",
    );
    if !document.missing.is_empty() {
        text.line("Missing in it:");
        for error in &document.missing {
            text.wrapped(&error.to_string(), "  ", "    ");
        }
    }
    text
}
