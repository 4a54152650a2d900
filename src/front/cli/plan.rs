//! `plan`: what a clean-up would remove, and why; or what a migration would do.

mod stages;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::front::cli::args;
use crate::front::cli::command::Command;
use crate::owners::catalogue::Catalogue;
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook::supported;
use crate::plan::{Action, Object, ObjectKind, Plan};
use crate::run::migrate::preview;
use crate::state::Family;
use crate::ui::table::{columns, counted};

pub(in crate::front) fn run(command: &Command<'_>, options: &args::Plan) -> Result<u8> {
    if let Some(to) = options.to {
        supported(to)?;
    }
    let state = command.state(options.snapshot.as_deref())?;
    let catalogue = Catalogue::builtin()?;
    let (live, playbook) = (options.snapshot.is_none(), options.playbook.as_deref());
    let ahead = |to| preview(&catalogue, &state, live, to, playbook);
    match options.to.map(ahead).transpose()?.flatten() {
        Some(preview) => {
            command
                .answer(&stages::document(&preview), &stages::text(&preview, command.args.verbose));
        }
        None => {
            let plan = CleanupScope::default().plan(&catalogue, &state)?;
            command.answer(&document(&plan), &text(&plan, command.args.verbose));
        }
    }
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
pub(in crate::front) fn text(plan: &Plan, verbose: bool) -> String {
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
        text += &format!("\n{} near them stay ({hint}).\n", objects(kept.len()));
    }
    text
}

fn objects(n: usize) -> String {
    counted(n, "object")
}

/// Objects under their owner and reason. Unless `all` is asked for, rules inside a chain that goes
/// are counted with it, and chains that differ by a hash alone are one line.
fn listing(objects: &[&Object], all: bool) -> String {
    let mut groups: Vec<((&str, &str), Vec<&Object>)> = Vec::new();
    for object in objects {
        let key = (object.owner.as_str(), object.reason.as_str());
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, members)) => members.push(object),
            None => groups.push((key, vec![object])),
        }
    }
    let mut text = String::new();
    for ((owner, reason), members) in groups {
        text += &format!("  {owner}: {reason}\n");
        let lines = if all { members.iter().map(|o| line(o)).collect() } else { folded(&members) };
        text.extend(lines.iter().map(|l| format!("    {l}\n")));
    }
    text
}

/// One line an object; chains with their rules as a count, and those of a family together.
fn folded(objects: &[&Object]) -> Vec<String> {
    let mut rules: BTreeMap<Place<'_>, usize> = BTreeMap::new();
    for rule in objects.iter().filter(|o| o.kind == ObjectKind::Rule) {
        *rules.entry(place(rule)).or_default() += 1;
    }
    let mut families: BTreeMap<(String, &str), (usize, usize)> = BTreeMap::new();
    let mut lines = Vec::new();
    let chains: Vec<&&Object> = objects.iter().filter(|o| o.kind == ObjectKind::Chain).collect();
    for chain in &chains {
        let inside = rules.remove(&place(chain)).unwrap_or(0);
        match chain.name.rsplit_once('-').filter(|(_, hash)| hash.len() == 16) {
            Some((family, _)) => {
                let sum = families.entry((where_is(chain), family)).or_default();
                *sum = (sum.0 + 1, sum.1 + inside);
            }
            None => lines.push(format!("{}{}", line(chain), with_rules(inside))),
        }
    }
    for ((place, family), (chains, inside)) in families {
        let chains = counted(chains, "chain");
        lines.push(format!("{place}{chains} {family}-…{}", with_rules(inside)));
    }
    let others = objects.iter().filter(|o| match o.kind {
        ObjectKind::Chain => false,
        ObjectKind::Rule => rules.contains_key(&place(o)),
        _ => true,
    });
    lines.extend(others.map(|o| line(o)));
    lines
}

type Place<'a> = (Option<Family>, &'a str, Option<&'a str>, &'a str);

fn place(object: &Object) -> Place<'_> {
    (object.family, &object.backend, object.table.as_deref(), &object.name)
}

fn with_rules(rules: usize) -> String {
    if rules == 0 { String::new() } else { format!(" with {}", counted(rules, "rule")) }
}

/// `ipv4 nft nat `, as far as the object has these.
fn where_is(object: &Object) -> String {
    let family = object.family.map(|f| format!("{f} ")).unwrap_or_default();
    let table = object.table.as_ref().map(|t| format!("{t} ")).unwrap_or_default();
    match object.kind {
        ObjectKind::Chain | ObjectKind::Rule | ObjectKind::Table => {
            format!("{family}{} {table}", object.backend)
        }
        _ => family,
    }
}

fn line(object: &Object) -> String {
    let what = match object.kind {
        ObjectKind::Rule => return format!("{}{}", where_is(object), object.text),
        ObjectKind::Chain => "chain",
        ObjectKind::Table => "table",
        ObjectKind::Set => "ipset",
        ObjectKind::VirtualServer => "virtual server",
        ObjectKind::RealServer => "real server",
        ObjectKind::Link => "link",
    };
    format!("{}{what} {}", where_is(object), object.name)
}

/// Counts by owner, for a question.
pub(in crate::front) fn by_owner(plan: &Plan) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for object in plan.removals() {
        *counts.entry(&object.owner).or_default() += 1;
    }
    let rows: Vec<Vec<String>> =
        counts.into_iter().map(|(o, n)| vec![format!("  {o}"), objects(n)]).collect();
    columns(&rows)
}
