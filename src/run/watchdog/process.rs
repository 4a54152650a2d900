//! The process of the watchdog. It only reads the run, and starts attempts to undo it. It ends when
//! the run is resolved, and not before: every failure is logged, and another attempt follows.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::node::environment::Variable;
use crate::node::locks::{LOCK_DIR, NodeLock};
use crate::run::late_runner;
use crate::run::watchdog::attempt::{self, Attempt, Ended};
use crate::run::watchdog::backoff::Backoff;
use crate::run::watchdog::partner::Partner;
use crate::run::watchdog::reading::RunReading;
use crate::run::watchdog::registry::WatchdogForm;
use crate::run::watchdog::report::Reporter;
use crate::run::watchdog::{Role, independence, registry, system_log, unit};
use crate::runtime::{ProcessId, is_stopped};
use crate::store::run::{Pending, Run, RunState};

/// For how long after the death of its runner a run may still be resumed before it is undone.
const GRACE: Duration = Duration::from_secs(30);

/// The pause between two times that the watchdog reads the run's state.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long a runner that is past its deadline may take to end after a signal.
const LAST_CHANCE: Duration = Duration::from_secs(20);

/// How long the second of two watchdogs leaves it to the first to act.
const PRECEDENCE: Duration = Duration::from_secs(5);

/// For how long attempts go on after the run was undone in part.
const GIVE_UP: Duration = Duration::from_secs(3600);

/// The longest pause between attempts to undo what is undone in part. Each may restart kube-proxy.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// Why an attempt is made after another one undid the run in part.
const PARTLY: &str = "an earlier attempt undid it only in part";

/// For how long the holder of the node's lock may be stopped, once the run is to be undone.
const STOPPED: Duration = Duration::from_secs(10);

/// What a watchdog is started with.
pub struct Watched<'a> {
    /// The store's directory.
    pub store: &'a Path,
    /// The run's id.
    pub id: &'a str,
    /// What the process is among the watchdogs of the run.
    pub role: Role,
    /// The process that started this one, if it is the second of two.
    pub first: Option<u32>,
    /// Where the process reports what it does.
    pub sink: &'a (dyn Sink + 'a),
}

/// Watches a run until it is resolved, and undoes it when that is necessary. `armed` is called when
/// the first of two processes is ready.
///
/// # Errors
/// [`Kind::Unexpected`] when signals cannot be ignored.
pub fn watch(watched: &Watched<'_>, armed: &dyn Fn(WatchdogForm)) -> Result<()> {
    independence::ignore_signals()?;
    // `setsid` fails in a process that leads a group already, as in the copy in memory.
    let _ = rustix::process::setsid();
    independence::raise_limits();
    independence::resist_oom();
    let outside = !watched.role.is_unit() && independence::leave_control_groups();
    independence::run_from_memory();
    let form = match (watched.role.is_unit(), outside) {
        (true, _) => WatchdogForm::Unit,
        (_, true) => WatchdogForm::Outside,
        (_, false) => WatchdogForm::Inside,
    };
    let mut watchdog = Watchdog::new(watched);
    if form == WatchdogForm::Unit {
        watchdog.use_log();
    }
    registry::add_own(watched.id, form);
    watchdog.partner.ready();
    if watched.role == Role::First {
        armed(form);
    }
    watchdog.watch();
    if form == WatchdogForm::Unit {
        unit::stop_timer(watched.id);
    }
    registry::remove_own(watched.id);
    Ok(())
}

/// What is to be done about a run.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Decision {
    /// The run is resolved.
    Nothing,
    /// The run may go on for this long.
    Wait(Duration),
    /// The run is to be undone, because of this.
    Undo(String),
    /// The run was undone in part, and is to be undone once more.
    UndoAgain,
}

/// What the watchdog knows of the run's runner.
#[derive(Debug, Clone, Copy)]
struct Runner {
    alive: bool,
    /// For how long it has been dead, as far as the watchdog knows.
    dead_for: Duration,
}

/// Decides what is to be done about `run`, `left` before its deadline. `attempted` is whether this
/// watchdog has attempted to undo the run.
fn decide(run: &Run, left: Duration, runner: Runner, attempted: bool) -> Decision {
    match run.state {
        RunState::UndonePartly if attempted => Decision::UndoAgain,
        RunState::Unconfirmed if left.is_zero() => {
            Decision::Undo("nobody confirmed it in time".into())
        }
        RunState::Running if left.is_zero() => {
            let stage = run.pending.as_ref().map(|pending| pending.stage.to_string());
            Decision::Undo(format!("its stage {} did not end in time", stage.unwrap_or_default()))
        }
        RunState::Running if !runner.alive && (attempted || runner.dead_for >= GRACE) => {
            Decision::Undo(format!("its process {} died and nobody resumed it", run.pid))
        }
        state if state.is_pending() && run.pending.is_some() => Decision::Wait(left),
        _ => Decision::Nothing,
    }
}

struct Watchdog<'a> {
    watched: &'a Watched<'a>,
    environment: Vec<Variable>,
    partner: Partner,
    reporter: Reporter<'a>,
    run: RunReading<'a>,
    /// Since when the runner has been dead.
    dead: Option<Instant>,
    /// Since when the run has been to be undone.
    due: Option<Instant>,
    /// Since when the run has been undone in part.
    partly: Option<Instant>,
    /// Since when the holder of the node's lock has been stopped.
    stopped: Option<Instant>,
    /// Whether this watchdog attempted to undo the run, and nobody else has acted on it since.
    attempted: bool,
    backoff: Backoff,
    /// When the next attempt may begin.
    next: Instant,
}

impl<'a> Watchdog<'a> {
    fn new(watched: &'a Watched<'a>) -> Watchdog<'a> {
        let kept = watched.role.is_unit().then(|| registry::kept_environment(watched.id));
        Watchdog {
            watched,
            environment: kept.unwrap_or_default(),
            partner: Partner::of(watched.role, watched.first),
            reporter: Reporter::new(watched.id, watched.sink),
            run: RunReading::of(watched.store, watched.id),
            dead: None,
            due: None,
            partly: None,
            stopped: None,
            attempted: false,
            backoff: Backoff::new(),
            next: Instant::now(),
        }
    }

    /// Reports to the log in the run's folder. Whoever is not started by systemd has it as standard
    /// error already.
    fn use_log(&self) {
        let path = log_path(self.watched.store, self.watched.id);
        if let Ok(log) = std::fs::File::options().append(true).create(true).open(path) {
            let _ = rustix::stdio::dup2_stderr(log);
        }
    }

    fn watch(&mut self) {
        loop {
            // Root may have lowered them since.
            independence::raise_limits();
            let decision = self.decide();
            match &decision {
                Decision::Nothing => return,
                // From here on only what is left of the run is undone, which one process does.
                Decision::UndoAgain => self.partner.notify_alive(),
                _ => self.partner.look_after(self.watched.store, self.watched.id),
            }
            match decision {
                Decision::Undo(why) if self.may_attempt() => self.undo(&why, false),
                Decision::UndoAgain if self.may_attempt() => self.undo(PARTLY, true),
                Decision::Wait(left) => sleep(INTERVAL.min(left)),
                _ => sleep(INTERVAL),
            }
        }
    }

    /// Reads the run, and decides.
    fn decide(&mut self) -> Decision {
        if !self.run.update(&mut self.reporter) {
            return Decision::Nothing;
        }
        // A run that cannot be read any more is undone all the same, if it can be.
        let Some(run) = &self.run.last else { return Decision::Wait(INTERVAL) };
        let alive = run.runner_is_alive();
        let died = run.state == RunState::Running && !alive;
        self.dead = died.then(|| self.dead.unwrap_or_else(Instant::now));
        let dead_for = self.dead.map_or(Duration::ZERO, |since| since.elapsed());
        let left = run.pending.as_ref().map_or(Duration::MAX, Pending::left);
        let decision = decide(run, left, Runner { alive, dead_for }, self.attempted);
        match &decision {
            Decision::Nothing => {}
            Decision::Wait(_) => (self.due, self.attempted) = (None, false),
            Decision::UndoAgain if self.partly.is_some_and(|since| since.elapsed() >= GIVE_UP) => {
                self.reporter.failure("given up", "is NOT undone, and nobody goes on with it");
                return Decision::Nothing;
            }
            Decision::Undo(_) | Decision::UndoAgain => {
                self.due.get_or_insert_with(Instant::now);
            }
        }
        decision
    }

    fn leaves_precedence(&self) -> bool {
        self.watched.role == Role::SecondUnit || self.partner.acts_first()
    }

    /// Whether an attempt may begin now.
    fn may_attempt(&self) -> bool {
        let waits = if self.leaves_precedence() { PRECEDENCE } else { Duration::ZERO };
        self.due.is_some_and(|since| since.elapsed() >= waits) && Instant::now() >= self.next
    }

    /// Undoes the run, in a process of its own.
    fn undo(&mut self, why: &str, again: bool) {
        if !self.attempted {
            system_log::log(&format!("run {}: {why}; rolling back", self.watched.id));
        }
        if !again {
            self.end_runner();
        }
        let Watched { store, id, .. } = *self.watched;
        let attempt = Attempt { store, id, why, again, environment: &self.environment };
        let partner = &mut self.partner;
        let ended = attempt::run(&attempt, &mut || partner.look_after(store, id));
        self.attempted = true;
        let pause = match ended {
            Ended::Undone => {
                system_log::log(&format!("run {id}: rolled back; the node is as before"));
                // Whatever can be read of it.
                if let Some(run) = &mut self.run.last {
                    run.state = RunState::RolledBack;
                }
                Duration::ZERO
            }
            // Somebody else resolved it, or it cannot be read.
            Ended::NothingToDo => self.backoff.next(),
            Ended::Failed(e) if e.kind == Kind::Lock => self.wait_for_lock(&e),
            Ended::Failed(e) => self.failed(&e),
        };
        self.next = Instant::now() + pause;
    }

    /// Ends a runner that is past its deadline.
    fn end_runner(&self) {
        let run = self.run.last.as_ref();
        let Some(run) = run.filter(|run| run.state == RunState::Running) else { return };
        let runner = ProcessId::of(run.pid).filter(|_| run.runner_is_alive());
        if let Some(runner) = runner {
            late_runner::end(runner, LAST_CHANCE, &registry::pids(self.watched.id));
        }
    }

    /// Another process holds the node's lock. It may resolve the run, unless it is stopped. Returns
    /// the pause before the next attempt.
    fn wait_for_lock(&mut self, error: &Error) -> Duration {
        let holder = NodeLock::holder(Path::new(LOCK_DIR)).and_then(|h| ProcessId::of(h.pid));
        let Some(holder) = holder.filter(|holder| is_stopped(holder.pid)) else {
            self.stopped = None;
            return INTERVAL;
        };
        if self.stopped.get_or_insert_with(Instant::now).elapsed() >= STOPPED {
            self.reporter.report(&format!("cannot be undone: {error}, and stopped; ending that"));
            late_runner::end(holder, LAST_CHANCE, &registry::pids(self.watched.id));
            self.stopped = None;
        }
        INTERVAL
    }

    /// Reports that an attempt failed. Returns the pause before the next.
    fn failed(&mut self, error: &Error) -> Duration {
        self.run.update(&mut self.reporter);
        let state = self.run.last.as_ref().map(|run| run.state);
        let partly = state == Some(RunState::UndonePartly);
        if partly && self.partly.is_none() {
            self.partly = Some(Instant::now());
            self.backoff = Backoff::up_to(LONGEST_PAUSE);
        }
        let pause = self.backoff.next();
        let limit = if partly { ", and others follow for an hour" } else { "" };
        let text = format!(
            "could NOT be rolled back: {error}. The next attempt begins in {} s{limit}. See \
             `proxyshift status`",
            pause.as_secs()
        );
        self.reporter.failure(&format!("{:?}", error.kind), &text);
        pause
    }
}

/// The log of the watchdogs of the run `id`.
pub(super) fn log_path(store: &Path, id: &str) -> PathBuf {
    store.join("runs").join(id).join("watchdog.log")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::stage::RunStage;
    use crate::store::run::{CleanupOptions, RunKind};

    const DEAD: Runner = Runner { alive: false, dead_for: GRACE };
    const ALIVE: Runner = Runner { alive: true, dead_for: Duration::ZERO };
    const LEFT: Duration = Duration::from_secs(9);

    fn run(state: RunState) -> Run {
        let tmp = tempfile::tempdir().unwrap();
        let store = crate::store::Store::open(Some(&tmp.path().join("store"))).unwrap();
        let kind = RunKind::Cleanup(CleanupOptions::default());
        let run = store.start(kind, "s").unwrap();
        Run { state, pending: Some(Pending::new(RunStage::Begun, LEFT)), ..run }
    }

    #[test]
    fn a_run_is_undone_when_it_is_late_or_abandoned() {
        let undone = |state, left, runner, attempted| {
            matches!(decide(&run(state), left, runner, attempted), Decision::Undo(_))
        };
        for state in [RunState::Running, RunState::Unconfirmed] {
            assert!(undone(state, Duration::ZERO, ALIVE, false));
            assert!(!undone(state, LEFT, ALIVE, true), "somebody acts on it, or may");
        }
        assert!(undone(RunState::Running, LEFT, DEAD, false));
        let now = Runner { dead_for: Duration::ZERO, ..DEAD };
        assert!(!undone(RunState::Running, LEFT, now, false), "it may be resumed");
        assert!(undone(RunState::Running, LEFT, now, true), "the attempt of this process died");
        assert!(!undone(RunState::Unconfirmed, LEFT, DEAD, true), "it was extended");
    }

    #[test]
    fn only_a_resolved_run_is_the_end() {
        let zero = Duration::ZERO;
        for state in [RunState::Done, RunState::RolledBack, RunState::Rebooted, RunState::Failed] {
            assert_eq!(decide(&run(state), zero, DEAD, true), Decision::Nothing);
        }
        let partly = run(RunState::UndonePartly);
        assert_eq!(decide(&partly, zero, DEAD, true), Decision::UndoAgain);
        // A person undid it, and knows.
        assert_eq!(decide(&partly, zero, DEAD, false), Decision::Nothing);
        assert_eq!(decide(&run(RunState::Unconfirmed), LEFT, DEAD, false), Decision::Wait(LEFT));
    }
}
