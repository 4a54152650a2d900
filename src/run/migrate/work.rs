//! A migration under way: its stages one after the other, each with its time; the end, or the way
//! back.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::interrupt;
use crate::kube_proxy::services::Services;
use crate::plan::change::{Change, Edit, Irreversible};
use crate::plan::playbook::{Clean, Converge, Playbook, Stage, StageName, Switch, Upgrade, When};
use crate::run::change::{prune, rollback_error};
use crate::run::migrate::{MARGIN, Report, back, hooks};
use crate::run::payload::StepRef;
use crate::run::watchdog;
use crate::run::{Context, boot_unit, confirm};
use crate::state::NodeState;
use crate::state::stage::RunStage;
use crate::store::journal::Journal;
use crate::store::run::{Modes, Probe, Run, RunState};

/// A migration under way.
pub(super) struct Execution<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) playbook: Playbook,
    pub(super) run: Run,
    pub(super) journal: Journal,
    /// The node as it was before.
    pub(super) base: NodeState,
    /// What the old mode served right before the switch; endpoints come and go.
    pub(super) later: Option<Services>,
    /// The questions that were answered before.
    pub(super) probes: Vec<Probe>,
}

impl Execution<'_> {
    /// Runs the stages from `first` on, or all that follow the snapshot; undoes them on a failure.
    pub(super) fn go(mut self, first: Option<StageName>) -> Result<Report> {
        match self.stages(first) {
            Ok((removed, others)) => self.end(removed, others),
            Err(cause) => Err(self.undo(cause)),
        }
    }

    fn stages(&mut self, first: Option<StageName>) -> Result<(usize, Vec<String>)> {
        let (mut removed, mut others) = (0, Vec::new());
        for stage in self.playbook.stages.clone() {
            let name = stage.name();
            let before =
                matches!(name, StageName::Preflight | StageName::Snapshot | StageName::Rehearse);
            if before || first.is_some_and(|first| name < first) {
                continue;
            }
            interrupt::check(name.name())?;
            self.enter(&stage)?;
            self.hooks(When::Before, name)?;
            match &stage {
                Stage::Prepare(prepare) => self.prepare(prepare)?,
                Stage::Switch(switch) => self.switch(switch)?,
                Stage::Upgrade(upgrade) => self.upgrade(upgrade)?,
                Stage::Converge(converge) => self.converge(converge)?,
                Stage::Clean(clean) => {
                    let changed = self.clean(clean)?;
                    (removed, others) = (changed.objects, changed.others);
                }
                Stage::Verify(_) => self.verify()?,
                Stage::Settle(_) => self.settle()?,
                Stage::Confirm(_)
                | Stage::Preflight(_)
                | Stage::Snapshot {}
                | Stage::Rehearse {} => {}
            }
            self.hooks(When::After, name)?;
        }
        Ok((removed, others))
    }

    /// The run comes to a stage, and has its time for it.
    fn enter(&mut self, stage: &Stage) -> Result<()> {
        let time = match stage {
            Stage::Switch(Switch { timeout, .. })
            | Stage::Upgrade(Upgrade { timeout, .. })
            | Stage::Converge(Converge { timeout, .. }) => *timeout,
            Stage::Clean(Clean { drain, .. }) => *drain,
            _ => Duration::ZERO,
        };
        let name = stage.name();
        let hooks = [When::Before, When::After].map(|when| {
            self.playbook.hooks.at(when, name).iter().map(|hook| hook.timeout).sum::<Duration>()
        });
        if let Some(pending) = &mut self.run.pending {
            pending.stage = RunStage::Playbook(name);
            pending.set_deadline(time + hooks[0] + hooks[1] + MARGIN);
        }
        self.context.store.update(&self.run)?;
        watchdog::arm(self.context, &mut self.run)
    }

    fn hooks(&mut self, when: When, stage: StageName) -> Result<()> {
        for hook in self.playbook.hooks.at(when, stage) {
            let step = StepRef::new("hook", 1);
            let change = Irreversible::Hook { command: hook.run.to_string() };
            step.begin::<Edit>(&mut self.journal, Change::Irreversible(change))?;
            hooks::run(hook, self.context.sink)?;
            step.mark_done(&mut self.journal)?;
        }
        Ok(())
    }

    pub(super) fn modes(&self) -> Modes {
        let asked = Modes { from: self.playbook.from, to: self.playbook.to };
        self.run.modes().unwrap_or(asked)
    }

    /// The stages are done: the run waits to be confirmed, or is kept.
    fn end(mut self, removed: usize, others: Vec<String>) -> Result<Report> {
        let context = self.context;
        let modes = self.modes();
        match self.run.confirm_within() {
            Some(time) => confirm::wait_for(context, &mut self.run, time)?,
            None => {
                context.store.finish(&mut self.run, RunState::Done)?;
                boot_unit::remove()?;
                prune(context)?;
            }
        }
        let waits = self.run.state == RunState::Unconfirmed;
        Ok(Report {
            left: self.run.pending.as_ref().filter(|_| waits).map(|s| s.left()),
            run: self.run.id,
            snapshot: self.run.snapshot,
            from: modes.from,
            to: modes.to,
            removed,
            others,
        })
    }

    /// Undoes what was done; the error says both why and how that ended.
    fn undo(&mut self, cause: Error) -> Error {
        let context = self.context;
        context.sink.warning(format!("{cause}; undoing"));
        let step = StepRef::new(RunStage::Begun.name(), 0);
        let _ = step.mark_failed(&mut self.journal, &cause);
        let undone = back::undo(context, &mut self.run, &mut self.journal, &self.base);
        rollback_error(cause, undone)
    }
}
