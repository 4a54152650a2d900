//! The preview of a migration's stages, as text and as a document.

use serde::Serialize;

use crate::front::cli::migrate::transition;
use crate::front::cli::plan::listing;
use crate::plan::{Object, Plan};
use crate::run::preview::{Preview, StagePreview};
use crate::state::kube_proxy::Mode;
use crate::ui::table::counted;
use crate::ui::text::wrapped;

/// The width of the column with the names of stages.
const NAMES: usize = 13;

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

pub(super) fn text(preview: &Preview, verbose: bool) -> String {
    let Preview { playbook, from, stages, plan } = preview;
    let mut text = transition(*from, playbook.to);
    text += &format!(", by the playbook {}. * changes the node:\n\n", playbook.name);
    text.extend(stages.iter().map(|stage| one(stage, verbose)));
    text += &left(plan, *from, playbook.to, verbose);
    text
}

fn one(preview: &StagePreview, verbose: bool) -> String {
    let mark = if preview.changes { '*' } else { ' ' };
    let blank = " ".repeat(NAMES);
    let mut first = format!("{:<NAMES$}", format!("{mark} {}", preview.stage));
    let mut text = String::new();
    let mut line = |words: &str| {
        text += &wrapped(words, &first, &blank);
        first.clone_from(&blank);
    };
    preview.does.iter().for_each(|words| line(words));
    if let Some(cause) = &preview.stops {
        line(&format!("stops here: {cause}"));
    }
    let shown = if verbose { preview.with.len() } else { SHOWN };
    // These lines are not wrapped, so that they can be copied.
    text.extend(preview.with.iter().take(shown).map(|words| format!("{blank}  {words}\n")));
    if let Some(more) = preview.with.len().checked_sub(shown).filter(|n| *n > 0) {
        text += &format!("{blank}  and {more} more (-v lists them)\n");
    }
    text
}

fn left(plan: &Plan, from: Mode, to: Mode, verbose: bool) -> String {
    let removed: Vec<&Object> = plan.removals().collect();
    match removed.len() {
        0 => String::new(),
        n if !verbose => format!("\n-v lists {}, each with its reason.\n", counted(n, "object")),
        n if from == to => format!(
            "\n{} that are left over now:\n\n{}",
            counted(n, "object"),
            listing(&removed, true)
        ),
        n => format!(
            "\n{} that {from} mode will have left, and that go once the new mode serves:\n\n{}",
            counted(n, "object"),
            listing(&removed, true)
        ),
    }
}
