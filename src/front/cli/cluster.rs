//! The verbs of `cluster`: shows what is to be written to a cluster, and asks; lists its nodes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use similar::{ChangeTag, TextDiff};

use crate::api::ApiClient;
use crate::cluster::intent::{ClusterWrite, Intent, WriteAction, decide};
use crate::cluster::overview::{NodeRow, Overview, overview};
use crate::error::{Error, Kind, Result};
use crate::front::cli::cluster_args::{ClusterArgs, ClusterVerb, PrepareArgs};
use crate::front::cli::command::Invocation;
use crate::node::admin_access;
use crate::run::cluster::{Admitted, api_error, prepare, read_state, refused, try_on_server};
use crate::state::kubernetes::{JsonPatch, PatchOperation};
use crate::ui::page::Page;

pub(in crate::front) fn run(command: &Invocation<'_>, verb: &ClusterVerb) -> Result<u8> {
    match verb {
        ClusterVerb::Prepare(options) => run_prepare(command, options),
        ClusterVerb::Status(options) => run_status(command, options),
    }
}

fn client(options: &ClusterArgs) -> Result<ApiClient> {
    let access = admin_access::read(options.kubeconfig.as_deref(), options.context.as_deref())?;
    ApiClient::new(&access).map_err(|failure| api_error(access.server, &failure))
}

fn run_prepare(command: &Invocation<'_>, options: &PrepareArgs) -> Result<u8> {
    if !options.dry_run && options.render.is_none() {
        command.can_ask("cluster prepare", "look first: --dry-run")?;
    }
    let (client, named) = (client(&options.cluster)?, options.cluster.daemonset.as_ref());
    let state = read_state(&client, named, Some(options.to))?;
    let object =
        format!("DaemonSet {}/{}", state.original.metadata.namespace, state.original.metadata.name);
    let intent = decide(&state, options.to, options.render.is_none())
        .map_err(|refusals| refused(&object, &refusals))?;
    if let Some(folder) = &options.render {
        let files = render(folder, &intent)?;
        let mut text = Page::from(format!("{} files are written:", files.len()));
        text.lines(files.iter().map(|file| format!("  {file}")));
        text.wrapped(
            "The patch is for the DaemonSet that is there, the manifests come beside it. Nodes accept \
             whatever arrangement verifies.",
            "",
            "",
        );
        command.answer(&document(&intent, "rendered", &[], &files), text);
        return Ok(0);
    }
    if intent.writes.is_empty() {
        let text = format!(
            "Nothing to do: {object} is prepared. A node moves by `proxyshift migrate --to {}` on it.",
            intent.to
        );
        command.answer(&document(&intent, "nothing-to-do", &[], &[]), Page::from(text));
        return Ok(0);
    }
    let admitted = try_on_server(&client, &intent)?;
    let page = describe(&intent, &admitted, command.args.verbose);
    if options.dry_run {
        command.answer(&document(&intent, "planned", &admitted, &[]), page);
        return Ok(0);
    }
    if !command.args.yes {
        command.ui.say(page);
        let agreed = command.ui.confirm(
            "Write it?",
            "it is written; no pod restarts, and no node moves",
            "nothing is changed",
            false,
        )?;
        if !agreed {
            command.ui.say("Nothing was changed.");
            return Ok(0);
        }
    }
    prepare(&client, named, &intent, command.sink())?;
    let text = format!(
        "{object} is prepared: a node moves by `proxyshift migrate --to {}` on it, and `proxyshift \
         cluster status` shows all.",
        intent.to
    );
    let mut page = Page::new();
    page.wrapped(&text, "", "");
    command.answer(&document(&intent, "prepared", &admitted, &[]), page);
    Ok(0)
}

/// What is to be written, for people.
fn describe(intent: &Intent, admitted: &[Admitted], all: bool) -> Page {
    let mut page = Page::from(format!(
        "{} runs in {} mode. So that its nodes can move to {} mode one by one:",
        intent.original, intent.from, intent.to
    ));
    for (index, write) in intent.writes.iter().enumerate() {
        let what = if matches!(write.action, WriteAction::Create(_)) { "make" } else { "change" };
        page.blank();
        page.wrapped(
            &format!("{}. {what} {}: {}", index + 1, write.object, write.reason),
            "",
            "   ",
        );
        match &write.action {
            WriteAction::Patch { changes, .. } => {
                for part in changes {
                    page.line(format!("   {}:", part.path.join(".")));
                    difference(&mut page, &as_yaml(&part.before), &as_yaml(&part.after));
                }
            }
            WriteAction::Create(object) if all => {
                page.lines(as_yaml(object).lines().map(|line| format!("   + {line}")));
            }
            WriteAction::Create(_) => {}
        }
    }
    page.blank();
    if admitted.is_empty() {
        page.line("The API server has tried all of it, and admission changes nothing.");
    }
    for Admitted { object, changes } in admitted {
        page.wrapped(&format!("Admission changes {object}:"), "", "");
        for change in changes {
            page.wrapped(
                &format!("{}: {} becomes {}", change.path, change.sent, change.returned),
                "  ",
                "    ",
            );
        }
    }
    if !all {
        page.line("-v shows whole manifests.");
    }
    page
}

fn difference(page: &mut Page, before: &str, after: &str) {
    for change in TextDiff::from_lines(before, after).iter_all_changes() {
        let mark = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        page.line(format!("   {mark} {}", change.value().trim_end()));
    }
}

fn as_yaml(value: &Value) -> String {
    if value.is_null() { String::new() } else { serde_yaml::to_string(value).unwrap_or_default() }
}

fn document(intent: &Intent, state: &str, admitted: &[Admitted], files: &[String]) -> Value {
    let write = |write: &ClusterWrite| match &write.action {
        WriteAction::Create(_) => json!({
            "object": write.object, "action": "create", "reason": write.reason, "changes": []}),
        WriteAction::Patch { changes, .. } => {
            let changes: Vec<Value> = changes
                .iter()
                .map(|part| {
                    json!({"path": part.path.join("."), "before": part.before, "after": part.after})
                })
                .collect();
            json!({"object": write.object, "action": "patch", "reason": write.reason,
                   "changes": changes})
        }
    };
    let admission = admitted.iter().flat_map(|Admitted { object, changes }| {
        changes.iter().map(move |change| {
            json!({"object": object, "path": change.path, "sent": change.sent,
                   "returned": change.returned})
        })
    });
    json!({
        "schema": "proxyshift.cluster-prepare", "version": 1, "daemonset": intent.original,
        "from": intent.from, "to": intent.to, "state": state,
        "writes": intent.writes.iter().map(write).collect::<Vec<_>>(),
        "admission": admission.collect::<Vec<_>>(), "files": files,
    })
}

/// Writes an arrangement as files: each object of ours, and the patch of the original, without its
/// tests. Returns the paths.
fn render(folder: &Path, intent: &Intent) -> Result<Vec<String>> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    let original = intent.writes.iter().find(|write| write.object == intent.original);
    if let Some(ClusterWrite { action: WriteAction::Patch { patch, .. }, object, .. }) = original {
        let is_change =
            |operation: &&PatchOperation| !matches!(operation, PatchOperation::Test { .. });
        let patch = JsonPatch(patch.0.iter().filter(is_change).cloned().collect());
        let text = serde_yaml::to_string(&patch).unwrap_or_default();
        files.push((folder.join(format!("0-daemonset-{}.patch.yaml", object.name)), text));
    }
    for (index, (object, value)) in intent.objects.iter().enumerate() {
        let kind = object.kind.to_string().to_lowercase();
        let name = object.name.replace(':', "-");
        let file = folder.join(format!("{}-{kind}-{name}.yaml", index + 1));
        files.push((file, as_yaml(value)));
    }
    for (path, text) in &files {
        let written = File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::new(Kind::Usage, path.display().to_string(), "is there already")
                    .hint("name a folder without these files")
            }
            _ => Error::io(path, &e),
        })?;
    }
    Ok(files.into_iter().map(|(path, _)| path.display().to_string()).collect())
}

fn run_status(command: &Invocation<'_>, options: &ClusterArgs) -> Result<u8> {
    let state = read_state(&client(options)?, options.daemonset.as_ref(), None)?;
    let overview = overview(&state);
    let mut document = json!({"schema": "proxyshift.cluster-status", "version": 1});
    if let (Value::Object(document), Ok(Value::Object(rest))) =
        (&mut document, serde_json::to_value(&overview))
    {
        document.extend(rest);
    }
    command.answer(&document, table(&overview));
    Ok(if overview.has_pending() { Kind::Pending.exit_code() } else { 0 })
}

/// The nodes, for people.
fn table(overview: &Overview) -> Page {
    let mode = overview.mode.map_or("?", |mode| mode.name());
    let prepared: Vec<&str> = overview.prepared.iter().map(|mode| mode.name()).collect();
    let rest = match &prepared[..] {
        [] => "not prepared for another".to_owned(),
        modes => format!("prepared for {}", modes.join(", ")),
    };
    let mut page = Page::from(format!("{}: {mode} mode, {rest}.", overview.daemonset));
    let head = ["NODE", "LABEL", "MODE", "VERSION", "POD", "READY", "RUN"].map(str::to_owned);
    let rows = overview.nodes.iter().flat_map(rows);
    page.columns(&std::iter::once(head.to_vec()).chain(rows).collect::<Vec<_>>());
    for drift in &overview.drift {
        page.blank();
        page.wrapped(&format!("{}: {}", drift.object, drift.text), "! ", "  ");
        page.indented("remedy", &drift.remedy);
    }
    page
}

/// A line for each pod of a node, or one without a pod.
fn rows(node: &NodeRow) -> Vec<Vec<String>> {
    let none = || "-".to_owned();
    let label = node.label.clone().unwrap_or_else(none);
    let run = node.run.as_ref().map_or_else(none, |run| {
        let state = serde_json::to_value(run.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default().to_owned();
        let until = run.deadline.as_ref().map(|at| format!(", undone at {at}")).unwrap_or_default();
        format!("{} to {}: {state}{until}", run.from, run.to)
    });
    let row = |cells: [String; 4]| {
        let [mode, version, pod, ready] = cells;
        vec![node.node.clone(), label.clone(), mode, version, pod, ready, run.clone()]
    };
    if node.pods.is_empty() {
        return vec![row([none(), none(), "none".into(), none()])];
    }
    let of_pod = |pod: &crate::cluster::overview::PodRow| {
        let ready = if pod.ready { "yes" } else { "no" };
        row([
            pod.mode.map_or_else(none, |mode| mode.to_string()),
            pod.version.clone().unwrap_or_else(none),
            pod.pod.clone(),
            ready.into(),
        ])
    };
    node.pods.iter().map(of_pod).collect()
}
