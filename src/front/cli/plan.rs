//! The verb `plan`: what a clean-up would remove, and why; or with `--to`, what a migration would
//! do.

mod stages;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::front::cli::args;
use crate::front::cli::command::Invocation;
use crate::owners::catalogue::Catalogue;
use crate::plan::leftovers::CleanupScope;
use crate::plan::{Action, Object, Plan};
use crate::run::migrate::preview;
use crate::state::object::{ObjectId, ObjectKind, TableId};
use crate::ui::page::Page;
use crate::ui::table::counted;

pub(in crate::front) fn run(command: &Invocation<'_>, options: &args::PlanArgs) -> Result<u8> {
    let state = command.state(options.snapshot.as_deref())?;
    let catalogue = Catalogue::builtin()?;
    let live = options.snapshot.is_none();
    let playbook = options.playbook.as_deref();
    let migration = match options.to {
        Some(to) => preview(&catalogue, &state, live, to, playbook)?,
        None => None,
    };
    match migration {
        Some(preview) => {
            let text = stages::text(&preview, command.args.verbose);
            command.answer(&stages::document(&preview), text);
        }
        None => {
            let plan = CleanupScope::default().plan(&catalogue, &state)?;
            command.answer(&document(&plan), text(&plan, command.args.verbose));
        }
    }
    Ok(0)
}

/// The plan of a clean-up as a JSON document.
#[derive(Serialize)]
pub(super) struct PlanDocument<'a> {
    schema: &'static str,
    version: u32,
    objects: &'a [Object],
}

/// The plan of a clean-up as a JSON document: `proxyshift.plan`, version 1.
pub(super) fn document(plan: &Plan) -> PlanDocument<'_> {
    PlanDocument { schema: "proxyshift.plan", version: 1, objects: &plan.objects }
}

/// The plan as text: the removed objects in full, and the kept ones as counts (with `verbose`, also
/// in full).
pub(in crate::front) fn text(plan: &Plan, verbose: bool) -> Page {
    let removed: Vec<&Object> = plan.removals().collect();
    let kept: Vec<&Object> = plan.objects.iter().filter(|o| o.action != Action::Remove).collect();
    let mut text = Page::new();
    match removed.len() {
        0 => text.line("Nothing to remove: no leftovers were found."),
        n => list(&mut text, &format!("{} to remove:", objects(n)), &removed, verbose),
    }
    let suspected: Vec<&Object> =
        kept.iter().filter(|o| o.action == Action::Suspect).copied().collect();
    if !suspected.is_empty() && !verbose {
        text.blank();
        list(&mut text, "Suspected, not removed:", &suspected, true);
    }
    if verbose {
        text.blank();
        list(&mut text, &format!("{} that stay:", objects(kept.len())), &kept, true);
    } else if !kept.is_empty() {
        let hint = "-v lists them with the reason for each";
        text.blank();
        text.line(format!("{} near them stay ({hint}).", objects(kept.len())));
    }
    text
}

fn objects(n: usize) -> String {
    counted(n, "object")
}

/// Adds `head` and a list of objects, grouped by owner and reason. Without `all`, a removed chain has one line with the count
/// of its rules, and chains whose names differ only in a hash share a line.
fn list(text: &mut Page, head: &str, objects: &[&Object], all: bool) {
    text.line(head);
    text.blank();
    let mut groups: Vec<Vec<&Object>> = Vec::new();
    for object in objects {
        let same = |group: &&mut Vec<&Object>| {
            let first = group[0];
            (&first.owner, &first.reason) == (&object.owner, &object.reason)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(object),
            None => groups.push(vec![object]),
        }
    }
    for members in groups {
        text.line(format!("  {}: {}", members[0].owner, members[0].sentence()));
        let lines = if all { members.iter().map(|o| line(o)).collect() } else { folded(&members) };
        text.lines(lines.iter().map(|l| format!("    {l}")));
    }
}

/// One line for each object, except that rules are counted on the line of their chain, and that
/// chains whose names differ only in a hash share a line.
fn folded(objects: &[&Object]) -> Vec<String> {
    let mut rules: BTreeMap<(&TableId, &str), usize> = BTreeMap::new();
    for object in objects {
        if let ObjectId::Rule { table, chain, .. } = &object.id {
            *rules.entry((table, chain)).or_default() += 1;
        }
    }
    let mut families: BTreeMap<(String, &str), (usize, usize)> = BTreeMap::new();
    let mut lines = Vec::new();
    for chain in objects {
        let ObjectId::Chain { table, name } = &chain.id else { continue };
        let inside = rules.remove(&(&**table, name.as_str())).unwrap_or(0);
        match name.rsplit_once('-').filter(|(_, hash)| hash.len() == 16) {
            Some((family, _)) => {
                let sum = families.entry((location(chain), family)).or_default();
                *sum = (sum.0 + 1, sum.1 + inside);
            }
            None => lines.push(format!("{}{}", line(chain), with_rules(inside))),
        }
    }
    for ((prefix, family), (chains, inside)) in families {
        let chains = counted(chains, "chain");
        lines.push(format!("{prefix}{chains} {family}-…{}", with_rules(inside)));
    }
    let rest = objects.iter().filter(|o| match &o.id {
        ObjectId::Chain { .. } => false,
        ObjectId::Rule { table, chain, .. } => rules.contains_key(&(&**table, chain.as_str())),
        _ => true,
    });
    lines.extend(rest.map(|o| line(o)));
    lines
}

fn with_rules(rules: usize) -> String {
    if rules == 0 { String::new() } else { format!(" with {}", counted(rules, "rule")) }
}

/// The beginning of an object's line: `ipv4 nft nat `, which is family, backend and table, as far
/// as the object has them.
fn location(object: &Object) -> String {
    let id = &object.id;
    let family = id.family().map(|f| format!("{f} ")).unwrap_or_default();
    match (id, id.table()) {
        (_, Some(table)) => format!("{family}{} {} ", id.backend(), table.name),
        (ObjectId::NativeTable { .. }, None) => format!("{family}{} ", id.backend()),
        _ => family,
    }
}

fn line(object: &Object) -> String {
    let what = match object.kind() {
        ObjectKind::Rule => return format!("{}{}", location(object), object.text()),
        ObjectKind::Chain => "chain",
        ObjectKind::Table => "table",
        ObjectKind::Set => "ipset",
        ObjectKind::VirtualServer => "virtual server",
        ObjectKind::RealServer => "real server",
        ObjectKind::Link => "link",
    };
    format!("{}{what} {}", location(object), object.id.name())
}

/// The number of removed objects of each owner, as text.
pub(in crate::front) fn by_owner(plan: &Plan) -> Page {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for object in plan.removals() {
        *counts.entry(&object.owner).or_default() += 1;
    }
    let rows: Vec<Vec<String>> =
        counts.into_iter().map(|(o, n)| vec![format!("  {o}"), objects(n)]).collect();
    let mut text = Page::new();
    text.columns(&rows);
    text
}
