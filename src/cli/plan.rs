//! `plan`: what a clean-up would remove, and why.

use std::collections::HashMap;

use serde::Serialize;

use crate::cli::{Command, args};
use crate::error::Result;
use crate::owners::catalogue::Catalogue;
use crate::plan::{Action, Object, ObjectKind, Plan};
use crate::run::cleanup::plan_with;
use crate::state::Family;
use crate::ui::table::{columns, counted, thousands};

pub(super) fn run(command: &Command<'_>, options: &args::Plan) -> Result<u8> {
    let state = command.state(options.snapshot.as_deref())?;
    let plan = plan_with(&Catalogue::builtin()?, &state, &[])?;
    command.answer(&document(&plan), &text(&plan, command.args.verbose));
    Ok(0)
}

/// The plan as a document.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    schema: &'static str,
    version: u32,
    objects: &'a [Object],
}

/// The plan as a document: `proxyshift.plan`, version 1.
pub(super) fn document(plan: &Plan) -> Document<'_> {
    Document { schema: "proxyshift.plan", version: 1, objects: &plan.objects }
}

/// The plan for people: what goes, in full; what stays, counted, or in full when asked.
pub(super) fn text(plan: &Plan, verbose: bool) -> String {
    let removed: Vec<&Object> = plan.removals().collect();
    let kept: Vec<&Object> = plan.objects.iter().filter(|o| o.action == Action::Keep).collect();
    let mut text = match removed.len() {
        0 => "Nothing to remove: no leftovers were found.\n".to_owned(),
        n => format!("{} to remove:\n\n{}", objects(n), listing(&removed, verbose)),
    };
    let suspected: Vec<&Object> =
        kept.iter().filter(|o| o.reason.starts_with("suspected")).copied().collect();
    if !suspected.is_empty() && !verbose {
        text += &format!("\nSuspected, not removed:\n\n{}", listing(&suspected, true));
    }
    if verbose {
        text += &format!("\n{} that stay:\n\n{}", objects(kept.len()), listing(&kept, true));
    } else if !kept.is_empty() {
        let hint = "-v lists them with the reason for each";
        text +=
            &format!("\n{} of kube-proxy, kubelet and CNI stay ({hint}).\n", objects(kept.len()));
    }
    text
}

fn objects(n: usize) -> String {
    counted(n, "object")
}

/// Objects grouped by place, owner and reason. Rules inside a chain that goes are counted with it
/// unless all is asked for.
fn listing(objects: &[&Object], all: bool) -> String {
    // How many rules each chain that goes holds.
    let mut chains: HashMap<_, usize> =
        objects.iter().filter(|o| o.kind == ObjectKind::Chain).map(|o| (place(o), 0)).collect();
    for rule in objects.iter().filter(|o| o.kind == ObjectKind::Rule) {
        chains.entry(place(rule)).and_modify(|n| *n += 1);
    }
    let inside = |o: &&&Object| o.kind == ObjectKind::Rule && chains.contains_key(&place(o));
    let mut text = String::new();
    let mut last = String::new();
    for object in objects.iter().filter(|o| all || !inside(o)) {
        let heading = format!("  {} — {}\n", object.owner, object.reason);
        if heading != last {
            text += &heading;
            last = heading;
        }
        let is_chain = !all && object.kind == ObjectKind::Chain;
        let count = if is_chain { chains.get(&place(object)).copied() } else { None };
        text += &format!("    {}\n", line(object, count.unwrap_or(0)));
    }
    text
}

/// Where a chain is, or a rule's chain.
fn place(object: &Object) -> (Option<Family>, &str, Option<&str>, &str) {
    (object.family, &object.backend, object.table.as_deref(), &object.name)
}

fn line(object: &Object, rules: usize) -> String {
    let family = object.family.map(|f| format!("{f} ")).unwrap_or_default();
    let table = object.table.as_ref().map(|t| format!("{t} ")).unwrap_or_default();
    let place = format!("{family}{} {table}", object.backend);
    match object.kind {
        ObjectKind::Rule => format!("{place}{}", object.text),
        ObjectKind::Chain if rules == 1 => format!("{place}chain {} with its rule", object.name),
        ObjectKind::Chain if rules > 0 => {
            format!("{place}chain {} with its {} rules", object.name, thousands(rules))
        }
        ObjectKind::Chain => format!("{place}chain {}", object.name),
        ObjectKind::Table => format!("{place}table {}", object.name),
        ObjectKind::Set => format!("{place}set {}", object.name),
        ObjectKind::VirtualServer => format!("{place}virtual server {}", object.name),
        ObjectKind::Link => format!("{place}link {}", object.name),
    }
}

/// Counts by owner, for a question.
pub(super) fn by_owner(plan: &Plan) -> String {
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for object in plan.removals() {
        *counts.entry(&object.owner).or_default() += 1;
    }
    let rows: Vec<Vec<String>> =
        counts.into_iter().map(|(o, n)| vec![format!("  {o}"), objects(n)]).collect();
    columns(&rows)
}
