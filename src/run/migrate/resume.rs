//! Going on with a migration that was cut off.

use std::fs;

use crate::error::{Error, Kind, Result};
use crate::node::observe::observe_tolerant;
use crate::plan::change::Edit;
use crate::plan::invariants::{Outcome, outcome};
use crate::plan::playbook::{Playbook, StageName, When};
use crate::run::Context;
use crate::run::migrate::work::Execution;
use crate::run::migrate::{PLAYBOOK, Report};
use crate::run::payload::{Replay, StepRef, replay};
use crate::run::snapshot::load_baseline;
use crate::state::argv::Rerun;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;
use crate::store::run::Run;

/// Goes on with a migration that was cut off, from the stage that it was in.
///
/// # Errors
/// As [`super::migrate`]; [`Kind::Pending`] when only a rollback can be offered.
pub fn resume(context: &Context<'_>, mut run: Run) -> Result<Report> {
    let only_back = |run: &Run, cause: &str| {
        Err(Error::new(Kind::Pending, format!("run {}", run.id), cause)
            .hint("`proxyshift rollback` brings the node back"))
    };
    let Some((migration, pending)) = run.migration().zip(run.pending.as_ref()) else {
        return only_back(&run, "is not a migration");
    };
    let (modes, stage, probes) = (migration.modes, pending.stage, migration.probes.clone());
    if run.boot_id != crate::clock::boot_id() {
        return only_back(&run, "the node was rebooted since");
    }
    let dir = context.store.run_dir(&run.id);
    let path = dir.join(PLAYBOOK);
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
    let file = path.display().to_string();
    let playbook = Playbook::parse(&file, &text, modes.from)?;
    let (journal, lines) = Journal::open(&dir)?;
    let mut replay = replay(lines)?;
    if replay.rolling_back || stage == RunStage::Rollback {
        return only_back(&run, "it had begun to roll back");
    }
    let base = load_baseline(context, &run)?;
    run.claim();
    context.store.update(&run)?;
    context.sink.run(&run.id, run.verb());
    let mut work = Execution { context, playbook, run, journal, base, later: None, probes };
    if let Some((edit, step)) = replay.open.take() {
        work.close_open_edit(&edit, &step)?;
    }
    let stage = stage.of_playbook();
    if let Some(hook) = work.asks_first(&replay, stage) {
        return only_back(
            &work.run,
            &format!("`{hook}` may have run already, and must not run twice"),
        );
    }
    work.go(stage)
}

impl Execution<'_> {
    /// Closes an edit that was under way when everything was cut off, as the kernel shows it.
    fn close_open_edit(&mut self, edit: &Edit, step: &StepRef) -> Result<()> {
        let Some(base) = self.clean_snapshot()? else { return Ok(()) };
        let now = observe_tolerant(self.context.tools, self.context.sink)?;
        match outcome(edit, &base, &now) {
            Outcome::Done => step.mark_done(&mut self.journal),
            Outcome::NotDone => Ok(()),
            Outcome::Unclear => Err(Error::new(
                Kind::Pending,
                format!("run {}", self.run.id),
                "the kernel shows neither the state before nor after its last edit",
            )
            .hint("`proxyshift rollback` brings the node back")),
        }
    }

    /// A command that may have run already in the stage that was cut off, and must not run twice.
    fn asks_first(&self, replay: &Replay, stage: Option<StageName>) -> Option<String> {
        let name = stage?;
        let hooks = [When::Before, When::After]
            .into_iter()
            .flat_map(|when| self.playbook.hooks.at(when, name))
            .filter(|hook| hook.again == Rerun::Ask)
            .map(|hook| hook.run.to_string());
        hooks.into_iter().find(|command| replay.has_begun_hook(command))
    }
}
