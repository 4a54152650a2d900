//! What each stage does to the node; each step is journaled.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::apply::kube_proxy::operate;
use crate::apply::{argv, conntrack, files, modules, sysctl};
use crate::error::{Error, Kind, Result};
use crate::event::{Outcome, Task};
use crate::interrupt;
use crate::kube_proxy::mode;
use crate::kube_proxy::running::configured;
use crate::kube_proxy::services::Services;
use crate::node::conntrack::{Conntrack, Services as UdpServices};
use crate::node::kube_proxy_controller::read_config;
use crate::node::live_facts;
use crate::node::modules::is_loaded;
use crate::node::observe::observe_tolerant;
use crate::node::sysctls;
use crate::owners::matcher::Ownership;
use crate::plan::change::{Change, Edit, Irreversible};
use crate::plan::leftovers::CleanupScope;
use crate::plan::playbook::{Clean, Converge, Means, Prepare, StageName, Switch, Upgrade};
use crate::run::change::{Changed, apply_and_verify};
use crate::run::migrate::proof::verify;
use crate::run::migrate::steps::{AFTER, BEFORE, write_private};
use crate::run::migrate::work::Execution;
use crate::run::migrate::{converge, drain, only_process};
use crate::run::payload::StepRef;
use crate::run::rehearsal::{Tried, rehearse};
use crate::run::snapshot::parse_snapshot;
use crate::run::snapshot::take_snapshot;
use crate::state::NodeState;
use crate::state::ipvs::Protocol;
use crate::state::kube_proxy::{ConfigSource, Controller, Mode};
use crate::state::stage::RunStage;
use crate::store::run::ConfiguredBy;
use crate::store::snapshots::Snapshot;

impl Execution<'_> {
    fn services_before(&self) -> Services {
        mode::of(self.modes().from).services(&self.base)
    }

    /// Loads modules and sets sysctls, now and for the next boot.
    pub(super) fn prepare(&mut self, prepare: &Prepare) -> Result<()> {
        let (sink, stage) = (self.context.sink, StageName::Prepare.name());
        let task = Task::Prepare;
        sink.started(&task);
        let known = live_facts::modules::read();
        let wanted = modules_for(&prepare.modules, self.configured_modules());
        let mut number = 0;
        for name in &wanted {
            if is_loaded(name, &known)? {
                continue;
            }
            number += 1;
            let step = StepRef::new(stage, number);
            let change = Irreversible::Module { name: name.clone() };
            step.begin::<Edit>(&mut self.journal, Change::Irreversible(change))?;
            modules::load(self.context.tools, name, &known)?;
            step.mark_done(&mut self.journal)?;
        }
        let loaded = number;
        for (name, to) in &prepare.sysctls {
            let from = sysctls::value_of(name)?;
            if from.as_deref() == Some(to) {
                continue;
            }
            number += 1;
            let step = StepRef::new(stage, number);
            let change = Change::Sysctl { name: name.clone(), from, to: to.clone() };
            step.begin::<Edit>(&mut self.journal, change)?;
            sysctl::set(name, to)?;
            step.mark_done(&mut self.journal)?;
        }
        let lasting = [
            (modules::BOOT_FILE, modules::boot_text(wanted.iter().map(String::as_str))),
            (sysctl::BOOT_FILE, sysctl::boot_text(&prepare.sysctls)),
        ];
        for (path, to) in lasting {
            let path = Path::new(path);
            let from = crate::node::files::read(path)?;
            if from.as_deref() == Some(&to) {
                continue;
            }
            number += 1;
            let step = StepRef::new(stage, number);
            let change =
                Change::File { path: path.into(), from: from.clone(), to: Some(to.clone()) };
            step.begin::<Edit>(&mut self.journal, change)?;
            files::persist(path, from.as_deref(), Some(&to))?;
            step.mark_done(&mut self.journal)?;
        }
        let settings = (number - loaded) as usize;
        sink.finished(&task, Outcome::Prepared { modules: wanted.len(), settings });
        Ok(())
    }

    /// The modules that the new mode needs by kube-proxy's configuration.
    fn configured_modules(&self) -> Vec<String> {
        let config = configured(&self.base);
        config.map(|config| mode::of(self.playbook.to).modules(&config)).unwrap_or_default()
    }

    /// Edits kube-proxy's settings and restarts it.
    pub(super) fn switch(&mut self, switch: &Switch) -> Result<()> {
        let (sink, stage) = (self.context.sink, StageName::Switch.name());
        let to = self.playbook.to;
        let task = Task::Switch { mode: to.to_string() };
        sink.started(&task);
        let (controller, source) = self.kube_proxy()?;
        let dir = self.context.store.run_dir(&self.run.id);
        let before = match fs::read_to_string(dir.join(BEFORE)) {
            Ok(text) => text,
            Err(_) => read_config(&source)?
                .ok_or_else(|| Error::new(Kind::NotFound, source.to_string(), "is gone"))?,
        };
        let ownership = Ownership::of(self.context.catalogue, &self.base);
        let edit = mode::of(to).config_edit(&self.base, &ownership);
        let after = source.edit(&before, &edit)?;
        if after == before && self.base_serves(to) {
            sink.finished(&task, Outcome::AlreadySwitched);
            return Ok(());
        }
        let now = observe_tolerant(self.context.tools, sink)?;
        self.later = Some(mode::of(self.modes().from).services(&now));
        drop(now);
        for (name, text) in [(BEFORE, &before), (AFTER, &after)] {
            write_private(&dir.join(name), text)?;
        }
        let step = StepRef::new(stage, 1);
        let change =
            Change::Configuration { source: source.clone(), controller: controller.clone() };
        step.begin::<Edit>(&mut self.journal, change)?;
        let (from, to) = (Some(before.as_str()), Some(after.as_str()));
        let pid = operate(&controller).configure(&source, from, to, switch.timeout)?;
        step.mark_done(&mut self.journal)?;
        let (file, controller) = (source.to_string(), controller.to_string());
        sink.finished(&task, Outcome::Switched { file, controller, pid });
        Ok(())
    }

    /// Who runs kube-proxy and where it is told its mode, as found before anything was changed.
    fn kube_proxy(&self) -> Result<(Controller, ConfigSource)> {
        let found = self.run.migration().and_then(|migration| migration.kube_proxy.clone());
        let ConfiguredBy { controller, source } = found.ok_or_else(|| {
            let cause = "does not say what restarts kube-proxy";
            Error::new(Kind::Store, format!("run {}", self.run.id), cause)
        })?;
        Ok((controller, source))
    }

    fn base_serves(&self, mode: Mode) -> bool {
        self.modes().from == mode
    }

    /// Has kube-proxy replaced by another version.
    pub(super) fn upgrade(&mut self, upgrade: &Upgrade) -> Result<()> {
        let sink = self.context.sink;
        let old = {
            let now = observe_tolerant(self.context.tools, sink)?;
            only_process(&now)?.pid
        };
        match &upgrade.by {
            Means::Command { run, .. } => {
                let task = Task::Upgrade { command: run.to_string() };
                sink.started(&task);
                argv::run(run, upgrade.timeout)?;
                sink.finished(&task, Outcome::Succeeded);
            }
            Means::Operator { ask } => {
                sink.warning(ask.clone());
                let task = Task::AwaitUpgrade;
                sink.started(&task);
                let start = Instant::now();
                loop {
                    let now = observe_tolerant(self.context.tools, sink)?;
                    if only_process(&now).is_ok_and(|p| p.pid != old) {
                        break;
                    }
                    if start.elapsed() > upgrade.timeout {
                        sink.finished(&task, Outcome::TimedOut);
                        let cause = format!("pid {old} still runs after {:?}", upgrade.timeout);
                        return Err(Error::new(Kind::Command, "kube-proxy", cause));
                    }
                    interrupt::check("waiting for the upgrade")?;
                    std::thread::sleep(Duration::from_secs(1));
                }
                sink.finished(&task, Outcome::Replaced);
            }
        }
        Ok(())
    }

    pub(super) fn converge(&mut self, converge: &Converge) -> Result<()> {
        let before = self.services_before();
        converge::wait(
            self.context,
            self.playbook.to,
            &before,
            self.later.as_ref(),
            converge.timeout,
            &|| interrupt::check("waiting for kube-proxy"),
        )
        .map(|_| ())
    }

    /// Removes what the old mode left, from a snapshot of its own.
    pub(super) fn clean(&mut self, clean: &Clean) -> Result<Changed> {
        let context = self.context;
        let wanted = CleanupScope::of_owner(&clean.leftovers_of);
        // Resumed, it goes back to where it began, and on from where it is.
        let begun = match self.clean_snapshot()? {
            Some(base) => (base, observe_tolerant(context.tools, context.sink)?),
            None => {
                let taken = take_snapshot(context, "before the stage clean")?;
                if let Some(pending) = &mut self.run.pending {
                    pending.clean_snapshot = Some(taken.snapshot.id.clone());
                }
                context.store.update(&self.run)?;
                rehearse(context, &taken, Tried::CleanUp)?;
                (taken.state.clone(), taken.state)
            }
        };
        let (base, now) = begun;
        let edits = wanted.edits(context.catalogue, &now)?;
        drop(now);
        if edits.is_empty() {
            context.sink.note("nothing is left over of the old mode");
            return Ok(Changed { objects: 0, others: Vec::new() });
        }
        drain::wait(context, &edits, clean.drain, &|| interrupt::check("draining"))?;
        let plan_again =
            || wanted.edits(context.catalogue, &observe_tolerant(context.tools, context.sink)?);
        apply_and_verify(
            context,
            &self.run,
            &mut self.journal,
            RunStage::CLEAN,
            &base,
            edits,
            &plan_again,
        )
    }

    /// Proves that what is not kube-proxy's is as before, and that the services answer.
    pub(super) fn verify(&mut self) -> Result<()> {
        verify(
            self.context,
            self.context.catalogue,
            &self.base,
            self.playbook.to,
            self.modes(),
            &self.probes,
        )
    }

    /// Forgets stale UDP connections to services.
    pub(super) fn settle(&mut self) -> Result<()> {
        let task = Task::Settle;
        self.context.sink.started(&task);
        let now = observe_tolerant(self.context.tools, self.context.sink)?;
        let mut conntrack = Conntrack::open()?;
        let mut cleared = 0;
        for entry in conntrack.stale(&udp_backends(&mode::of(self.playbook.to).services(&now)))? {
            cleared += usize::from(conntrack::delete(&mut conntrack, &entry)?);
        }
        let step = StepRef::new(StageName::Settle.name(), 1);
        step.note(&mut self.journal, Irreversible::Conntrack { cleared })?;
        self.context.sink.finished(&task, Outcome::Settled { deleted: cleared });
        Ok(())
    }

    /// The node as it was before its clean-up, if that has begun.
    pub(super) fn clean_snapshot(&self) -> Result<Option<NodeState>> {
        let id = self.run.pending.as_ref().and_then(|s| s.clean_snapshot.clone());
        let load =
            |id: String| parse_snapshot(Snapshot::load(&self.context.store.find(&id)?.dir)?.files);
        id.map(load).transpose()
    }
}

/// The modules that the playbook names, and those that are configured besides.
fn modules_for(named: &[String], configured: Vec<String>) -> Vec<String> {
    let mut modules = named.to_vec();
    modules.extend(configured.into_iter().filter(|module| !named.contains(module)));
    modules
}

/// The UDP services at addresses of their own, with their backends.
fn udp_backends(services: &Services) -> UdpServices {
    let udp = services.iter().filter(|(key, _)| key.protocol == Protocol::Udp);
    udp.filter_map(|(key, service)| {
        Some((SocketAddr::new(key.address()?, key.port), service.backends.clone()))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_that_is_configured_is_loaded_too() {
        let named = ["ip_vs".to_owned(), "ip_vs_rr".to_owned()];
        let with = |configured: &[&str]| {
            modules_for(&named, configured.iter().map(|m| (*m).to_owned()).collect())
        };
        assert_eq!(with(&["ip_vs_lc"]), ["ip_vs", "ip_vs_rr", "ip_vs_lc"]);
        assert_eq!(with(&["ip_vs_rr"]), named);
        assert_eq!(with(&[]), named);
    }
}
