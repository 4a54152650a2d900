//! The stages of a migration, one after the other; each is journaled, and extends the deadline.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::error::{Error, Kind, Result};
use crate::node::conntrack::{self, Conntrack};
use crate::node::controller::{self, Change, Controller, Settings};
use crate::node::kernel;
use crate::node::measure::modules;
use crate::owners::catalogue::Catalogue;
use crate::plan::edit::{Edit, edits};
use crate::plan::foreign::lost;
use crate::plan::invariants::{Outcome, outcome};
use crate::plan::parity::{What, parity};
use crate::plan::playbook::{
    Again, Clean, Converge, Means, Playbook, Prepare, Stage, StageName, Switch, Upgrade, When,
};
use crate::plan::services::{Services, services};
use crate::run::change::{Changed, make, prune};
use crate::run::cleanup::{base_of, plan, rehearse};
use crate::run::execute::{CLEAN, Place, interrupts, settle, told};
use crate::run::look::look_again;
use crate::run::migrate::steps::{self, AFTER, BEFORE, Step};
use crate::run::migrate::{MARGIN, PLAYBOOK, Report, back, converge, drain, hooks, only_process};
use crate::run::probes::{self, Probe};
use crate::run::take::{parsed, take};
use crate::run::{Context, boot_unit, confirm, stand_by};
use crate::state::NodeState;
use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::Mode;
use crate::store::journal::{Entry, Journal, read};
use crate::store::runs::{Run, RunState, Shift};
use crate::store::snapshots::Snapshot;

/// A migration under way.
pub(super) struct Work<'a> {
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

/// Goes on with a migration that was cut off, from the stage that it was in.
///
/// # Errors
/// As [`super::migrate`]; [`Kind::Pending`] when only a rollback can be offered.
pub fn resume(context: &Context<'_>, mut run: Run) -> Result<Report> {
    let only_back = |run: &Run, cause: &str| {
        Err(Error::new(Kind::Pending, format!("run {}", run.id), cause)
            .hint("`proxyshift rollback` brings the node back"))
    };
    let Some((shift, stage)) = run.staged.as_ref().and_then(|s| Some((s.shift?, s.stage.clone())))
    else {
        return only_back(&run, "is not a migration");
    };
    if run.boot_id != crate::clock::boot_id() {
        return only_back(&run, "the node was rebooted since");
    }
    let dir = context.store.run_dir(&run.id);
    let path = dir.join(PLAYBOOK);
    let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, &e))?;
    let file = path.display().to_string();
    let from = back::other(shift);
    let playbook = Playbook::parse(&file, &text, from)?;
    let (journal, lines) = Journal::open(&dir)?;
    let told = told(lines)?;
    if told.rolling_back || stage == back::STAGE {
        return only_back(&run, "it had begun to roll back");
    }
    let base = base_of(context, &run)?;
    let probes = serde_json::from_value(run.plan["probes"].clone()).unwrap_or_default();
    run.take_over();
    context.store.update(&run)?;
    let mut work = Work { context, playbook, run, journal, base, later: None, probes };
    if let Some((edit, place)) = told.open {
        work.close_open_edit(&edit, &place)?;
    }
    if let Some(hook) = work.asks_first(&read(&dir)?, &stage) {
        return only_back(
            &work.run,
            &format!("`{hook}` may have run already, and must not run twice"),
        );
    }
    let stage = StageName::find(&stage);
    work.go(stage)
}

impl Work<'_> {
    /// Runs the stages from `first` on, or all that follow the snapshot; undoes them on a failure.
    pub(super) fn go(mut self, first: Option<StageName>) -> Result<Report> {
        match self.stages(first) {
            Ok((removed, others)) => self.end(removed, others),
            Err(cause) => Err(self.undo(cause)),
        }
    }

    fn stages(&mut self, first: Option<StageName>) -> Result<(usize, Vec<String>)> {
        let interrupted = interrupts()?;
        let (mut removed, mut others) = (0, Vec::new());
        for stage in self.playbook.stages.clone() {
            let name = stage.name();
            let before =
                matches!(name, StageName::Preflight | StageName::Snapshot | StageName::Rehearse);
            if before || first.is_some_and(|first| name < first) {
                continue;
            }
            if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Error::new(Kind::Interrupted, name.name(), "interrupted by a signal"));
            }
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
        if let Some(staged) = &mut self.run.staged {
            staged.stage = name.name().to_owned();
            staged.within(time + hooks[0] + hooks[1] + MARGIN);
        }
        self.context.store.update(&self.run)?;
        stand_by::arm(self.context, &mut self.run)
    }

    fn hooks(&mut self, when: When, stage: StageName) -> Result<()> {
        for hook in self.playbook.hooks.at(when, stage) {
            steps::hook(&mut self.journal, &hook.run.to_string())?;
            hooks::run(hook, self.context.sink)?;
            steps::note(&mut self.journal, "hook", json!({"hook": hook.run.to_string()}))?;
        }
        Ok(())
    }

    fn shift(&self) -> Shift {
        let asked = Shift { from: self.playbook.from, to: self.playbook.to };
        self.run.staged.as_ref().and_then(|s| s.shift).unwrap_or(asked)
    }

    fn services_before(&self) -> Services {
        services(&self.base, self.shift().from)
    }

    /// Loads modules and sets sysctls, now and for the next boot.
    fn prepare(&mut self, prepare: &Prepare) -> Result<()> {
        let (sink, stage) = (self.context.sink, StageName::Prepare.name());
        let task = "preparing the kernel";
        sink.started(task);
        let known = modules::read();
        for name in &prepare.modules {
            kernel::load(self.context.tools, name, &known)?;
        }
        let mut number = 0;
        for (name, to) in &prepare.sysctls {
            let from = kernel::sysctl(name)?;
            if from.as_deref() == Some(to) {
                continue;
            }
            number += 1;
            let step = Step::Sysctl { name: name.clone(), from, to: to.clone() };
            step.begin(&mut self.journal, stage, number)?;
            kernel::set_sysctl(name, to)?;
            steps::done(&mut self.journal, stage, number)?;
        }
        let lasting = [
            (kernel::MODULES, kernel::modules_text(prepare.modules.iter().map(String::as_str))),
            (kernel::SYSCTLS, kernel::sysctls_text(&prepare.sysctls)),
        ];
        for (path, to) in lasting {
            let path = Path::new(path);
            let from = controller::read(path)?;
            if from.as_deref() == Some(&to) {
                continue;
            }
            number += 1;
            let step = Step::File { path: path.into(), from: from.clone(), to: Some(to.clone()) };
            step.begin(&mut self.journal, stage, number)?;
            kernel::persist(path, from.as_deref(), Some(&to))?;
            steps::done(&mut self.journal, stage, number)?;
        }
        sink.finished(task, format!("{} modules, {number} settings", prepare.modules.len()));
        Ok(())
    }

    /// Edits kube-proxy's settings and restarts it at once.
    fn switch(&mut self, switch: &Switch) -> Result<()> {
        let (sink, stage) = (self.context.sink, StageName::Switch.name());
        let to = self.playbook.to;
        let task = format!("switching kube-proxy to {to} mode");
        sink.started(&task);
        let (controller, settings) = self.kube_proxy()?;
        let path = settings.path().to_owned();
        let dir = self.context.store.run_dir(&self.run.id);
        let before = match fs::read_to_string(dir.join(BEFORE)) {
            Ok(text) => text,
            Err(_) => controller::read(&path)?
                .ok_or_else(|| Error::new(Kind::NotFound, path.display().to_string(), "is gone"))?,
        };
        let change = Change { mode: to, exclude: self.foreign_networks() };
        let after = settings.edit(&before, &change)?;
        if after == before && self.base_serves(to) {
            sink.finished(&task, "it runs in that mode already");
            return Ok(());
        }
        let now = look_again(self.context.tools, sink)?;
        self.later = Some(services(&now, self.shift().from));
        drop(now);
        for (name, text) in [(BEFORE, &before), (AFTER, &after)] {
            steps::keep(&dir.join(name), text)?;
        }
        let step = Step::Settings { path: path.clone(), controller: controller.clone() };
        step.begin(&mut self.journal, stage, 1)?;
        controller::swap(&path, Some(&before), Some(&after))?;
        let pid = controller.restart(switch.timeout)?;
        steps::done(&mut self.journal, stage, 1)?;
        sink.finished(
            &task,
            format!("{} edited, {controller} restarted (pid {pid})", path.display()),
        );
        Ok(())
    }

    /// Who runs kube-proxy and where it is told its mode, as found before anything was changed.
    fn kube_proxy(&self) -> Result<(Controller, Settings)> {
        let read = |name: &str| self.run.plan[name].clone();
        let broken = |e| Error::new(Kind::Store, format!("run {}", self.run.id), e);
        let controller = serde_json::from_value(read("controller")).map_err(broken)?;
        let settings = serde_json::from_value(read("settings")).map_err(broken)?;
        Ok((controller, settings))
    }

    fn base_serves(&self, mode: Mode) -> bool {
        self.shift().from == mode
    }

    /// The networks of virtual servers that are somebody else's: kube-proxy must not take them for
    /// its own and remove them.
    fn foreign_networks(&self) -> Vec<ipnet::IpNet> {
        if self.playbook.to != Mode::Ipvs {
            return Vec::new();
        }
        back::foreign_servers(self.context.catalogue, &self.base)
    }

    /// Has kube-proxy replaced by another version.
    fn upgrade(&mut self, upgrade: &Upgrade) -> Result<()> {
        let sink = self.context.sink;
        let old = {
            let now = look_again(self.context.tools, sink)?;
            only_process(&now)?.pid
        };
        match &upgrade.by {
            Means::Command { run, .. } => {
                let task = format!("upgrading: {run}");
                sink.started(&task);
                hooks::command(run)?.deadline(upgrade.timeout).run()?;
                sink.finished(&task, "done");
            }
            Means::Operator { ask } => {
                sink.warning(ask.clone());
                let task = "waiting for another kube-proxy to run";
                sink.started(task);
                let start = Instant::now();
                loop {
                    let now = look_again(self.context.tools, sink)?;
                    if only_process(&now).is_ok_and(|p| p.pid != old) {
                        break;
                    }
                    if start.elapsed() > upgrade.timeout {
                        sink.finished(task, "not in time");
                        let cause = format!("pid {old} still runs after {:?}", upgrade.timeout);
                        return Err(Error::new(Kind::Command, "kube-proxy", cause));
                    }
                    std::thread::sleep(Duration::from_secs(1));
                }
                sink.finished(task, "it runs");
            }
        }
        Ok(())
    }

    fn converge(&mut self, converge: &Converge) -> Result<()> {
        let before = self.services_before();
        converge::wait(
            self.context,
            self.playbook.to,
            &before,
            self.later.as_ref(),
            converge.timeout,
        )
        .map(|_| ())
    }

    /// Removes what the old mode left, from a snapshot of its own.
    fn clean(&mut self, clean: &Clean) -> Result<Changed> {
        let context = self.context;
        let owners = [clean.leftovers_of.clone()];
        // Resumed, it goes back to where it began, and on from where it is.
        let begun = match self.cleaned_from()? {
            Some(base) => (base, look_again(context.tools, context.sink)?),
            None => {
                let taken = take(context, "before the stage clean")?;
                if let Some(staged) = &mut self.run.staged {
                    staged.cleaned_from = Some(taken.snapshot.id.clone());
                }
                context.store.update(&self.run)?;
                rehearse(context, &taken, None)?;
                (taken.state.clone(), taken.state)
            }
        };
        let (base, now) = begun;
        let edits = edits(&plan(context, &now, &owners)?, &now);
        drop(now);
        if edits.is_empty() {
            context.sink.note("nothing is left over of the old mode");
            return Ok(Changed { objects: 0, others: Vec::new() });
        }
        drain::wait(context, &edits, clean.drain)?;
        let plan_again = || {
            let now = look_again(context.tools, context.sink)?;
            Ok(crate::plan::edit::edits(&plan(context, &now, &owners)?, &now))
        };
        make(context, &self.run, &mut self.journal, CLEAN, &base, edits, &plan_again)
    }

    /// Proves that what is not kube-proxy's is as before, and that the services answer.
    fn verify(&mut self) -> Result<()> {
        prove(
            self.context,
            self.context.catalogue,
            &self.base,
            self.playbook.to,
            self.shift(),
            &self.probes,
        )
    }

    /// Forgets stale UDP connections to services.
    fn settle(&mut self) -> Result<()> {
        let task = "forgetting stale UDP connections to services";
        self.context.sink.started(task);
        let now = look_again(self.context.tools, self.context.sink)?;
        let mut conntrack = Conntrack::open()?;
        let mut forgotten = 0;
        for entry in conntrack.stale(&udp_backends(&services(&now, self.playbook.to)))? {
            forgotten += usize::from(conntrack.delete(&entry)?);
        }
        steps::note(&mut self.journal, StageName::Settle.name(), json!({"forgotten": forgotten}))?;
        self.context.sink.finished(task, format!("{forgotten} forgotten"));
        Ok(())
    }

    /// The stages are done: the run waits to be confirmed, or is kept.
    fn end(mut self, removed: usize, others: Vec<String>) -> Result<Report> {
        let context = self.context;
        let shift = self.shift();
        match self.run.plan["confirm_within"].as_u64() {
            Some(seconds) => {
                confirm::wait_for(context, &mut self.run, Duration::from_secs(seconds))?;
            }
            None => {
                context.store.finish(&mut self.run, RunState::Done)?;
                boot_unit::remove()?;
                prune(context)?;
            }
        }
        let waits = self.run.state == RunState::Unconfirmed;
        Ok(Report {
            left: self.run.staged.as_ref().filter(|_| waits).map(|s| s.left()),
            run: self.run.id,
            snapshot: self.run.snapshot,
            from: shift.from,
            to: shift.to,
            removed,
            others,
        })
    }

    /// Undoes what was done; the error says both why and how that ended.
    fn undo(&mut self, cause: Error) -> Error {
        let context = self.context;
        context.sink.warning(format!("{cause}; undoing"));
        let _ = steps::failed(&mut self.journal, "migrate", &cause);
        match back::undo(context, &mut self.run, &mut self.journal, &self.base) {
            Ok(_) => Error { kind: Kind::RolledBack, ..cause }
                .hint("the node is as before; see the cause, and try again"),
            Err(e) => {
                let why = format!("{} (after: {cause})", e.cause);
                Error::new(Kind::NotRolledBack, e.object, why)
                    .hint(e.hint.unwrap_or_else(|| "`proxyshift rollback` tries again".into()))
            }
        }
    }

    /// The node as it was before its clean-up, if that has begun.
    fn cleaned_from(&self) -> Result<Option<NodeState>> {
        let id = self.run.staged.as_ref().and_then(|s| s.cleaned_from.clone());
        let load = |id: String| parsed(Snapshot::load(&self.context.store.find(&id)?.dir)?.files);
        id.map(load).transpose()
    }

    /// Closes an edit that was under way when everything was cut off, as the kernel shows it.
    fn close_open_edit(&mut self, edit: &Edit, place: &Place) -> Result<()> {
        let Some(base) = self.cleaned_from()? else { return Ok(()) };
        let now = look_again(self.context.tools, self.context.sink)?;
        match outcome(edit, &base, &now) {
            Outcome::Done => settle(&mut self.journal, place),
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
    fn asks_first(&self, entries: &[Entry], stage: &str) -> Option<String> {
        let name = StageName::find(stage)?;
        let begun =
            |command: &str| entries.iter().any(|e| e.edit["hook"].as_str() == Some(command));
        let hooks = [When::Before, When::After]
            .into_iter()
            .flat_map(|when| self.playbook.hooks.at(when, name))
            .filter(|hook| hook.again == Again::Ask)
            .map(|hook| hook.run.to_string());
        hooks.into_iter().find(|command| begun(command))
    }
}

/// The UDP services at addresses of their own, with their backends.
fn udp_backends(services: &Services) -> conntrack::Services {
    let udp = services.iter().filter(|(key, _)| key.protocol == Protocol::Udp);
    udp.filter_map(|(key, service)| {
        Some((SocketAddr::new(key.address()?, key.port), service.backends.clone()))
    })
    .collect()
}

/// Proves that what is not kube-proxy's is as in `base`, that every service is served in `mode`, and
/// that the probes answer.
///
/// # Errors
/// [`Kind::Kernel`], naming what is lost.
pub(super) fn prove(
    context: &Context<'_>,
    catalogue: &Catalogue,
    base: &NodeState,
    mode: Mode,
    shift: Shift,
    probes: &[Probe],
) -> Result<()> {
    let sink = context.sink;
    let task = "verifying against the kernel";
    sink.started(task);
    let now = look_again(context.tools, sink)?;
    let (gone, healing): (Vec<_>, Vec<_>) =
        lost(catalogue, base, &now).into_iter().partition(|l| l.for_good());
    for lost in &healing {
        sink.note(format!("not there now, its owner puts it back within {}: {lost}", lost.heals));
    }
    if let Some(first) = gone.first() {
        sink.finished(task, format!("{} rules of others are lost", gone.len()));
        let cause = "was there before, and is not in its place now";
        return Err(Error::new(Kind::Kernel, first.to_string(), cause));
    }
    sink.finished(task, "what is not kube-proxy's is all there, in the same order");
    // That every backend was there is known since the new mode took over; some come and go.
    let missing = parity(&services(base, shift.from), &services(&now, mode));
    let (backends, whole): (Vec<_>, Vec<_>) =
        missing.into_iter().partition(|m| matches!(m.what, What::Backend(_)));
    for backend in &backends {
        sink.note(backend.to_string());
    }
    if let Some(first) = whole.first() {
        let cause = "a service is not served as before";
        return Err(Error::new(Kind::Kernel, first.to_string(), cause));
    }
    let task = "asking the node's services again";
    sink.started(task);
    let (passed, failed) = probes::ask(probes.to_vec());
    sink.finished(task, format!("{} of {} answer", passed.len(), passed.len() + failed.len()));
    match failed.first() {
        None => Ok(()),
        Some((probe, e)) => Err(Error::new(
            Kind::Kernel,
            probe.to_string(),
            format!("answered before, and now: {e}"),
        )),
    }
}
