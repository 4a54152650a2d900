//! The guard: a narrow exception for INVALID packets, kept in position.
//!
//! The guard is no run. It adds and removes one kind of rule, its own, so it needs no snapshot and
//! no journal. Its rules carry its comment, and it touches no rule without it.

mod cache;
mod exception;
mod position;
pub mod unit;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub use exception::{COMMENT, Exception};

use crate::apply::Kernel;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::guard::cache::Cache;
use crate::guard::cache::calico_state;
use crate::guard::position::CHAIN;
use crate::guard::position::Deviation;
use crate::guard::position::Position;
use crate::guard::position::TABLE;
use crate::guard::position::edit;
use crate::node::locks::LOCK_DIR;
use crate::node::locks::NodeLock;
use crate::node::tools::Tools;
use crate::owners::catalogue::Catalogue;
use crate::owners::liveness;
use crate::plan::change::Edit;
use crate::state::RulesetId;

/// The attempts to correct one rule set while others write to it.
const ATTEMPTS: usize = 20;

/// The longest delay before a signal is noticed.
const NAP: Duration = Duration::from_millis(50);

/// Calico's jump. felix inserts it above all other rules.
const CALICO_GATE: &str = "cali-FORWARD";

/// The guard's context and options.
#[derive(Clone, Copy)]
pub struct Guard<'a> {
    /// The external programs.
    pub tools: &'a Tools,
    /// The catalogue of owners.
    pub catalogue: &'a Catalogue,
    /// The receiver of events.
    pub sink: &'a dyn Sink,
    /// How long to wait for the xtables lock.
    pub lock_wait: Duration,
    /// The packets to accept.
    pub exceptions: &'a [Exception],
    /// Insert before the jump of a living Calico, again and again.
    pub contest: bool,
}

/// A rule in its position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardRule {
    /// Its rule set: `iptables-nft`.
    pub ruleset: String,
    /// Its text, from `-A` on.
    pub rule: String,
    /// The chain or verdict right behind it: the gate.
    pub before: String,
    /// What its packets bypass: chains, verdicts, and a policy that does not accept.
    pub bypasses: Vec<String>,
}

/// The result of the guard's work.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardReport {
    /// Whether anything had to be changed.
    pub changed: bool,
    /// The rules now in position.
    pub rules: Vec<GuardRule>,
}

impl Guard<'_> {
    /// Corrects the rules once, and leaves them there.
    ///
    /// # Errors
    /// [`Kind::Lock`] while another guard runs. [`Kind::Contested`] when a living Calico would undo
    /// the correction. Errors of reading or writing the rules.
    pub fn once(&self) -> Result<GuardReport> {
        let _lock = NodeLock::of_guard(Path::new(LOCK_DIR), "guard --once")?;
        self.correct_all(&mut Cache::default())
    }

    /// Previews the edits of [`Self::once`]. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::once`].
    pub fn intended(&self) -> Result<Vec<Edit>> {
        let mut cache = Cache::default();
        let mut edits = Vec::new();
        for id in RulesetId::ALL {
            let wanted = self.wanted(id);
            let Some(ruleset) = cache.read(self.tools, id)? else { continue };
            let Some(position) = Position::of(id, &ruleset, &wanted) else { continue };
            self.refuse_contest(id, &position)?;
            edits.extend(position.wrong.map(|(wrong, table)| edit(wrong, table)));
        }
        Ok(edits)
    }

    /// The rules that a rule set should have.
    fn wanted(&self, id: RulesetId) -> Vec<String> {
        self.exceptions.iter().flat_map(|e| e.rules(id.family)).collect()
    }

    /// Keeps the rules in position until a signal; then removes them, unless `leave`.
    ///
    /// # Errors
    /// As [`Self::once`]. After the first success, every error but [`Kind::Contested`] is a
    /// warning, and the guard attempts again.
    pub fn watch(&self, interval: Duration, leave: bool) -> Result<GuardReport> {
        let _lock = NodeLock::of_guard(Path::new(LOCK_DIR), "guard")?;
        let ended = ending()?;
        let kept = self.keep(interval, &ended);
        if leave {
            return kept;
        }
        let removed = self.remove_all();
        if let (Err(_), Err(left)) = (&kept, &removed) {
            self.sink.warning(format!("the exception may still be there: {left}"));
        }
        let changed = kept?.changed;
        removed.map(|()| GuardReport { changed, rules: Vec::new() })
    }

    fn keep(&self, interval: Duration, ended: &AtomicBool) -> Result<GuardReport> {
        let mut cache = Cache::default();
        let mut report = self.correct_all(&mut cache)?;
        let mut complaint = String::new();
        loop {
            pause(interval, ended);
            if ended.load(Ordering::Relaxed) {
                return Ok(report);
            }
            match self.correct_all(&mut cache) {
                Ok(now) => {
                    report = GuardReport { changed: report.changed || now.changed, ..now };
                    complaint.clear();
                }
                Err(e) if e.kind == Kind::Contested => return Err(e),
                Err(e) => {
                    // A failed request may have left replies in the socket.
                    cache = Cache::default();
                    let last = std::mem::replace(&mut complaint, e.to_string());
                    // The same error is logged once.
                    if complaint != last {
                        self.sink.warning(format!("{} {complaint}; trying again", clock::now()));
                    }
                }
            }
        }
    }

    /// Corrects each rule set that has changed since `cache` read it.
    fn correct_all(&self, cache: &mut Cache) -> Result<GuardReport> {
        let generation = cache.generation()?;
        let mut changed = false;
        for id in RulesetId::ALL {
            if cache.is_current(id, generation) {
                continue;
            }
            let (kept, corrected) = self.correct(cache, id, &self.wanted(id))?;
            self.log_bypassed(cache.kept(id), &kept);
            cache.store(id, kept);
            changed |= corrected;
        }
        // Writes since `generation`, ours or foreign, are read next time.
        cache.mark_current(generation);
        Ok(GuardReport { changed, rules: cache.all_kept() })
    }

    /// Corrects one rule set. Returns the rules now in position, and whether anything had to be
    /// changed.
    fn correct(
        &self,
        cache: &mut Cache,
        id: RulesetId,
        wanted: &[String],
    ) -> Result<(Vec<GuardRule>, bool)> {
        let (mut changed, mut fell_behind) = (false, false);
        for _ in 0..ATTEMPTS {
            let generation = cache.generation()?;
            let ruleset = cache.read(self.tools, id)?;
            let position = ruleset.as_ref().and_then(|r| Position::of(id, r, wanted));
            let (Some(ruleset), Some(position)) = (ruleset, position) else {
                return Ok((Vec::new(), changed));
            };
            if !wanted.is_empty() {
                self.refuse_contest(id, &position)?;
            }
            let Some((wrong, table)) = position.wrong else {
                return Ok((kept(id, position), changed));
            };
            match cache.verify_whole(id, &ruleset) {
                Err(e) if cache.generation()? == generation => return Err(e),
                // A foreign write between the save and the comparison: try again.
                Err(_) => continue,
                Ok(()) => {}
            }
            let kernel = Kernel::new(self.tools, self.lock_wait);
            match kernel.apply(&edit(wrong, table)) {
                Ok(applied) => {
                    changed = true;
                    let gate = position.gate.as_deref();
                    if let Some(done) = done(wrong, gate, fell_behind, wanted.is_empty()) {
                        self.sink.note(format!("{} {id} {TABLE} {CHAIN}: {done}", clock::now()));
                    }
                    for difference in applied.unexpected {
                        let text = format!("{} this changed too: {difference}", clock::now());
                        self.sink.warning(text);
                    }
                    fell_behind = wrong == Deviation::Behind;
                }
                Err(e) if e.kind == Kind::LostRace => {}
                Err(e) => return Err(e),
            }
        }
        let chain = format!("{id} {TABLE} {CHAIN}");
        Err(Error::new(Kind::LostRace, chain, "others write all the time"))
    }

    /// Refuses a position before the jump of a living Calico, which would insert it above again.
    fn refuse_contest(&self, id: RulesetId, position: &Position) -> Result<()> {
        if self.contest || position.gate.as_deref() != Some(CALICO_GATE) {
            return Ok(());
        }
        let Some(calico) = self.catalogue.component("calico") else { return Ok(()) };
        let state = calico_state(self.tools)?;
        let life = liveness::liveness(calico, &state);
        if life.is_gone() {
            return Ok(());
        }
        let cause = format!(
            "an exception would have to stand before {CALICO_GATE}, past every network policy, and \
             felix inserts that at the top again (Calico: {})",
            life.evidence()
        );
        let hint = format!(
            "let Calico itself accept such packets: `{}`; or --contest",
            crate::checks::felix_setting(&state)
        );
        Err(Error::new(Kind::Contested, format!("{id} {TABLE} {CHAIN}"), cause).hint(hint))
    }

    /// Logs the bypassed policies when they changed.
    fn log_bypassed(&self, before: Option<&[GuardRule]>, now: &[GuardRule]) {
        let bypasses = |kept: &[GuardRule]| kept.first().map(|k| k.bypasses.clone());
        if let Some(names) = bypasses(now).filter(|n| before.and_then(bypasses).as_ref() != Some(n))
        {
            let whose: Vec<String> = self.exceptions.iter().map(ToString::to_string).collect();
            self.sink.note(format!(
                "INVALID packets of {} bypass, in {}: {}",
                whose.join(", "),
                now[0].ruleset,
                names.join(", ")
            ));
        }
    }

    /// Removes all rules of the guard.
    fn remove_all(&self) -> Result<()> {
        let mut cache = Cache::default();
        for id in RulesetId::ALL {
            let mut attempts = ATTEMPTS;
            while let Err(e) = self.correct(&mut cache, id, &[]) {
                attempts -= 1;
                if attempts == 0 || !matches!(e.kind, Kind::LostRace | Kind::Busy | Kind::Lock) {
                    let hint = format!("its rules say \"{COMMENT}\": remove them by hand");
                    return Err(e.hint(hint));
                }
            }
        }
        Ok(())
    }
}

fn kept(id: RulesetId, position: Position) -> Vec<GuardRule> {
    let before = position.gate.unwrap_or_default();
    let rule = |text: crate::state::shared_str::StrSlice| GuardRule {
        ruleset: id.to_string(),
        rule: text.to_string(),
        before: before.clone(),
        bypasses: position.bypassed.clone(),
    };
    position.kept.into_iter().map(rule).collect()
}

/// The sentence of an edit; none for the first half of a move.
fn done(wrong: Deviation, gate: Option<&str>, fell_behind: bool, ending: bool) -> Option<String> {
    Some(match (wrong, gate) {
        (Deviation::Behind, _) => return None,
        (Deviation::Missing, gate) => {
            let gate = gate.unwrap_or_default();
            if fell_behind {
                format!("put the exception back before {gate}: it had fallen behind")
            } else {
                format!("put the exception in before {gate}: it was not there")
            }
        }
        (Deviation::Unwanted, _) if ending => "took the exception away".into(),
        (Deviation::Unwanted, None) => {
            "took the exception away: nothing there drops INVALID packets".into()
        }
        (Deviation::Unwanted, Some(_)) => {
            "took away rules of a guard that are not asked for, or there twice".into()
        }
    })
}

/// Makes the ending signals set a flag from now on.
fn ending() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, flag.clone())
            .map_err(|e| Error::new(Kind::Unexpected, "signal handler", e))?;
    }
    Ok(flag)
}

fn pause(interval: Duration, ended: &AtomicBool) {
    let until = Instant::now() + interval;
    while !ended.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(NAP));
    }
}
