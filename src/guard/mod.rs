//! The guard: keeps a narrow exception for INVALID packets in front of the rules that drop them.
//!
//! The guard is not a run. It only adds and removes its own rules, so it needs no snapshot and no
//! journal. Each of its rules carries the guard's comment, and it touches no rule without that
//! comment.

mod beside;
mod cache;
mod exception;
mod position;
pub mod unit;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

pub use beside::FinalDrop;
pub use exception::{COMMENT, Exception};

use crate::apply::Kernel;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::guard::beside::Observer;
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

/// How often the correction of one ruleset is attempted while other programs write to it.
const ATTEMPTS: usize = 20;

/// How long the guard sleeps at a time; a signal is noticed after at most this long.
const NAP: Duration = Duration::from_millis(50);

/// The chain to which Calico's rule in FORWARD jumps. felix inserts this rule above all others.
const CALICO_GATE: &str = "cali-FORWARD";

/// What the guard works with, and its options.
#[derive(Clone, Copy)]
pub struct Guard<'a> {
    /// The external programs.
    pub tools: &'a Tools,
    /// The catalogue of owners, which says how to tell whether Calico is alive.
    pub catalogue: &'a Catalogue,
    /// The receiver of events.
    pub sink: &'a dyn Sink,
    /// How long to wait for the xtables lock.
    pub lock_wait: Duration,
    /// The INVALID packets to accept.
    pub exceptions: &'a [Exception],
    /// Whether to insert the guard's rules before the jump of a living Calico, and to do so anew
    /// each time that Calico moves its jump above the guard's rules.
    pub contest: bool,
}

/// One of the guard's rules that is in position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardRule {
    /// The ruleset that has the rule, such as `iptables-nft`.
    pub ruleset: String,
    /// The rule text, from `-A` on.
    pub rule: String,
    /// The chain or verdict that is the target of the gate. The gate is the first rule that leads
    /// to a drop of INVALID packets; the guard's rules are before it.
    pub before: String,
    /// What the accepted packets bypass: chains, verdicts, and the FORWARD policy if that is not
    /// ACCEPT.
    pub bypasses: Vec<String>,
}

/// Whether the guard changed its rules, and which of them are in position now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuardReport {
    /// Whether any rule had to be added, moved or removed.
    pub changed: bool,
    /// The guard's rules that are in position now.
    pub rules: Vec<GuardRule>,
    /// What drops, or may drop, packets of the exceptions all the same.
    pub overruled_by: Vec<FinalDrop>,
}

/// One ruleset after its correction.
#[derive(Default)]
struct Corrected {
    /// The guard's rules that are in position.
    kept: Vec<GuardRule>,
    /// Whether one of its rules drops INVALID packets.
    drops_invalid: bool,
    /// Whether anything had to be changed.
    changed: bool,
}

impl Guard<'_> {
    /// Corrects the guard's rules once, and leaves them in the kernel.
    ///
    /// # Errors
    /// [`Kind::Lock`] while another guard runs. [`Kind::Blocked`] for a drop that no exception
    /// overrides. [`Kind::Contested`] when a living Calico would undo the correction. Otherwise the
    /// errors of reading or writing rules.
    pub fn once(&self) -> Result<GuardReport> {
        let _lock = NodeLock::of_guard(Path::new(LOCK_DIR), "guard --once")?;
        let mut cache = Cache::default();
        let observer = Observer::begin(self, &mut cache)?;
        let report = self.correct_all(&mut cache)?;
        Ok(GuardReport { overruled_by: observer.last.drops, ..report })
    }

    /// The edits that [`Self::once`] would make. Changes nothing.
    ///
    /// # Errors
    /// As [`Self::once`].
    pub fn intended(&self) -> Result<Vec<Edit>> {
        let mut cache = Cache::default();
        Observer::begin(self, &mut cache)?;
        cache.read_dropping(self.tools)?;
        let mut edits = Vec::new();
        for id in RulesetId::ALL {
            let (wanted, beside_gate) = (self.wanted(id), cache.drops_beside(id));
            let Some(ruleset) = cache.read(self.tools, id, TABLE)? else { continue };
            let Some(position) = Position::of(id, &ruleset, &wanted, beside_gate) else { continue };
            self.refuse_contest(id, &position)?;
            edits.extend(position.wrong.map(|(wrong, table)| edit(wrong, table)));
        }
        Ok(edits)
    }

    /// The guard's rules that a ruleset should have.
    fn wanted(&self, id: RulesetId) -> Vec<String> {
        self.exceptions.iter().flat_map(|e| e.rules(id.family)).collect()
    }

    /// Keeps the guard's rules in position until a signal arrives. Then removes them, unless
    /// `leave` is set.
    ///
    /// # Errors
    /// As [`Self::once`], until the rules were in position once. From then on only
    /// [`Kind::Contested`] is an error; any other failure is reported as a warning, and the guard
    /// tries again. A drop that no exception overrides is reported when it comes and when it goes.
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
        removed.map(|()| GuardReport { changed, ..GuardReport::default() })
    }

    fn keep(&self, interval: Duration, ended: &AtomicBool) -> Result<GuardReport> {
        let mut cache = Cache::default();
        let mut observer = Observer::begin(self, &mut cache)?;
        let mut report = self.correct_all(&mut cache)?;
        let mut complaint = String::new();
        loop {
            pause(interval, ended);
            if ended.load(Ordering::Relaxed) {
                return Ok(GuardReport { overruled_by: observer.last.drops, ..report });
            }
            let corrected = self.correct_all(&mut cache);
            match corrected.and_then(|now| observer.observe(self, &mut cache).map(|()| now)) {
                Ok(now) => {
                    report = GuardReport { changed: report.changed || now.changed, ..now };
                    complaint.clear();
                }
                Err(e) if e.kind == Kind::Contested => return Err(e),
                Err(e) => {
                    // A failed request may have left replies in the netlink socket, so a new socket
                    // is opened.
                    cache = Cache::default();
                    let last = std::mem::replace(&mut complaint, e.to_string());
                    // An error that repeats itself is reported once.
                    if complaint != last {
                        self.sink.warning(format!("{} {complaint}; trying again", clock::now()));
                    }
                }
            }
        }
    }

    /// Corrects each ruleset that has changed since `cache` read it.
    fn correct_all(&self, cache: &mut Cache) -> Result<GuardReport> {
        let generation = cache.generation()?;
        cache.read_dropping(self.tools)?;
        let mut changed = false;
        let mut corrected_with = BTreeMap::new();
        // Twice, because a ruleset may have to be corrected for what the one after it drops.
        for id in RulesetId::ALL.into_iter().chain(RulesetId::ALL) {
            let beside_gate = cache.drops_beside(id);
            let was = corrected_with.insert(id, beside_gate);
            if was == Some(beside_gate)
                || was.is_none() && cache.is_current(id, generation, beside_gate)
            {
                continue;
            }
            let corrected = self.correct(cache, id, &self.wanted(id), beside_gate)?;
            self.log_bypassed(cache.kept(id), &corrected.kept);
            changed |= corrected.changed;
            cache.store(id, corrected.kept, corrected.drops_invalid);
            cache.store_beside(id, beside_gate);
        }
        // The generation from before the reads is recorded, so anything that was written since
        // then, by us or by others, is read next time.
        cache.mark_current(generation);
        Ok(GuardReport { changed, rules: cache.all_kept(), ..GuardReport::default() })
    }

    /// Corrects one ruleset.
    fn correct(
        &self,
        cache: &mut Cache,
        id: RulesetId,
        wanted: &[String],
        beside_gate: bool,
    ) -> Result<Corrected> {
        let (mut changed, mut fell_behind) = (false, false);
        for _ in 0..ATTEMPTS {
            let generation = cache.generation()?;
            let ruleset = cache.read(self.tools, id, TABLE)?;
            let position = ruleset.as_ref().and_then(|r| Position::of(id, r, wanted, beside_gate));
            let (Some(ruleset), Some(position)) = (ruleset, position) else {
                return Ok(Corrected { changed, ..Corrected::default() });
            };
            if !wanted.is_empty() {
                self.refuse_contest(id, &position)?;
            }
            let drops_invalid = position.drops_invalid;
            let Some((wrong, table)) = position.wrong else {
                return Ok(Corrected { kept: kept(id, position), drops_invalid, changed });
            };
            match cache.verify_whole(id, &ruleset) {
                Err(e) if cache.generation()? == generation => return Err(e),
                // Another program wrote between the save and the comparison with the kernel: try
                // again.
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

    /// Returns an error if the guard's rules would have to stand above the jump of a Calico that
    /// still runs, because Calico would move its jump to the top again. `contest` allows it.
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

    /// Reports what the guard's rules bypass, if that changed.
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

    /// Removes all rules of the guard from all rulesets.
    fn remove_all(&self) -> Result<()> {
        let mut cache = Cache::default();
        for id in RulesetId::ALL {
            let mut attempts = ATTEMPTS;
            while let Err(e) = self.correct(&mut cache, id, &[], false) {
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

/// What to report about an edit. None for the edit that removes rules behind the gate, because the
/// next edit, which adds these rules before the gate, is reported.
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

/// Makes SIGHUP, SIGINT and SIGTERM set the returned flag instead of ending the program.
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
