//! The preview of a migration's stages, as text and as a document.

use serde::Serialize;

use crate::front::cli::migrate::transition;
use crate::front::cli::plan::list;
use crate::plan::{Object, Plan};
use crate::run::preview::{Preview, StagePreview};
use crate::state::kube_proxy::Mode;
use crate::ui::page::Page;
use crate::ui::table::counted;

/// What stands before and behind the name of a stage: its mark, and blanks.
const AROUND: usize = 4;

/// How many objects of each stage are shown without `-v`.
const SHOWN: usize = 4;

/// The preview of a migration as a JSON document: `proxyshift.plan`, version 1. `objects` are the
/// leftovers that will exist once the new mode serves.
#[derive(Serialize)]
pub(super) struct MigrationDocument<'a> {
    schema: &'static str,
    version: u32,
    from: Mode,
    to: Mode,
    playbook: &'a str,
    stages: &'a [StagePreview],
    objects: &'a [Object],
}

pub(super) fn document(preview: &Preview) -> MigrationDocument<'_> {
    MigrationDocument {
        schema: "proxyshift.plan",
        version: 1,
        from: preview.from,
        to: preview.playbook.to,
        playbook: &preview.playbook.name,
        stages: &preview.stages,
        objects: &preview.plan.objects,
    }
}

pub(super) fn text(preview: &Preview, verbose: bool) -> Page {
    let Preview { playbook, from, stages, plan } = preview;
    let transition = transition(*from, playbook.to);
    let name = &playbook.name;
    let mut text = Page::from(format!("{transition}, by the playbook {name}. * changes the node:"));
    text.blank();
    let names = stages.iter().map(|stage| stage.stage.name().len());
    let width = AROUND + names.max().unwrap_or(0);
    stages.iter().for_each(|stage| one(&mut text, stage, width, verbose));
    left(&mut text, plan, *from, playbook.to, verbose);
    text
}

/// Adds one stage, whose name stands in a column of `width` characters.
fn one(text: &mut Page, preview: &StagePreview, width: usize, verbose: bool) {
    let mark = if preview.changes { '*' } else { ' ' };
    let blank = " ".repeat(width);
    let mut first = format!("{:<width$}", format!("{mark} {}", preview.stage));
    let mut line = |words: &str| {
        text.wrapped(words, &first, &blank);
        first.clone_from(&blank);
    };
    preview.does.iter().for_each(|words| line(words));
    if let Some(cause) = &preview.stops {
        line(&format!("stops here: {cause}"));
    }
    let shown = if verbose { preview.with.len() } else { SHOWN };
    // These lines are not wrapped, so that they can be copied.
    text.lines(preview.with.iter().take(shown).map(|words| format!("{blank}  {words}")));
    if let Some(more) = preview.with.len().checked_sub(shown).filter(|n| *n > 0) {
        text.line(format!("{blank}  and {more} more (-v lists them)"));
    }
}

fn left(text: &mut Page, plan: &Plan, from: Mode, to: Mode, verbose: bool) {
    let removed: Vec<&Object> = plan.removals().collect();
    if removed.is_empty() {
        return;
    }
    let objects = counted(removed.len(), "object");
    text.blank();
    if !verbose {
        return text.line(format!("-v lists {objects}, each with its reason."));
    }
    let what = if from == to {
        "that are left over now:".to_owned()
    } else {
        format!("that {from} mode will have left, and that go once the new mode serves:")
    };
    list(text, &format!("{objects} {what}"), &removed, true);
}
