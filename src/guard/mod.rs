//! The guard: a narrow exception for INVALID packets, kept where it must stand.
//!
//! It is no run: one kind of rule, its own, goes in and comes out, so there is no snapshot and no
//! journal. Its rules carry their own comment, and it never touches one that does not.

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
use crate::guard::cache::Seen;
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

/// How often one rule set is set right anew while others write to it.
const TRIES: usize = 20;

/// How long a signal may wait to be seen.
const NAP: Duration = Duration::from_millis(50);

/// Calico's jump, which felix inserts above all others.
const CALICO_GATE: &str = "cali-FORWARD";

/// What the guard needs and is told.
#[derive(Clone, Copy)]
pub struct Guard<'a> {
    /// The programs.
    pub tools: &'a Tools,
    /// Who owns what.
    pub catalogue: &'a Catalogue,
    /// Where events go.
    pub sink: &'a dyn Sink,
    /// How long to wait for the xtables lock.
    pub lock_wait: Duration,
    /// Whose INVALID packets are let through.
    pub exceptions: &'a [Exception],
    /// Stand before the jump of a living Calico, again and again.
    pub contest: bool,
}

/// A rule that stands where it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Its rule set: `iptables-nft`.
    pub ruleset: String,
    /// Its text, from `-A` on.
    pub rule: String,
    /// The chain or verdict that it stands before.
    pub before: String,
    /// What its packets pass by: chains, verdicts, and a policy that does not accept.
    pub bypasses: Vec<String>,
}

/// What the guard did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether anything had to be changed.
    pub changed: bool,
    /// The rules that stand now.
    pub rules: Vec<Kept>,
}

impl Guard<'_> {
    /// Sets the rules right once, and leaves them.
    ///
    /// # Errors
    /// [`Kind::Lock`] while another guard is at work; [`Kind::Contested`] when a living Calico would
    /// undo it; what reading or writing the rules fails with.
    pub fn once(&self) -> Result<Report> {
        let _lock = NodeLock::of_guard(Path::new(LOCK_DIR), "guard --once")?;
        self.set_right(&mut Seen::default())
    }

    /// The edits that [`Self::once`] would make now; nothing is changed.
    ///
    /// # Errors
    /// As [`Self::once`].
    pub fn intended(&self) -> Result<Vec<Edit>> {
        let (mut seen, mut edits) = (Seen::default(), Vec::new());
        for id in RulesetId::ALL {
            let wanted = self.wanted(id);
            let Some(ruleset) = seen.read(self.tools, id)? else { continue };
            let Some(standing) = Position::of(id, &ruleset, &wanted) else { continue };
            self.may_stand(id, &standing)?;
            edits.extend(standing.wrong.map(|(wrong, table)| edit(wrong, table)));
        }
        Ok(edits)
    }

    /// The rules that should stand in a rule set.
    fn wanted(&self, id: RulesetId) -> Vec<String> {
        self.exceptions.iter().flat_map(|e| e.rules(id.family)).collect()
    }

    /// Keeps the rules right until a signal ends it; then takes them away, unless `leave`.
    ///
    /// # Errors
    /// As [`Self::once`]. Once the rules stood, an error is only a warning, and it tries again, but
    /// for [`Kind::Contested`].
    pub fn watch(&self, interval: Duration, leave: bool) -> Result<Report> {
        let _lock = NodeLock::of_guard(Path::new(LOCK_DIR), "guard")?;
        let ended = ending()?;
        let kept = self.keep(interval, &ended);
        if leave {
            return kept;
        }
        let taken = self.take_away();
        if let (Err(_), Err(left)) = (&kept, &taken) {
            self.sink.warning(format!("the exception may still be there: {left}"));
        }
        let changed = kept?.changed;
        taken.map(|()| Report { changed, rules: Vec::new() })
    }

    fn keep(&self, interval: Duration, ended: &AtomicBool) -> Result<Report> {
        let mut seen = Seen::default();
        let mut report = self.set_right(&mut seen)?;
        let mut complaint = String::new();
        loop {
            pause(interval, ended);
            if ended.load(Ordering::Relaxed) {
                return Ok(report);
            }
            match self.set_right(&mut seen) {
                Ok(now) => {
                    report = Report { changed: report.changed || now.changed, ..now };
                    complaint.clear();
                }
                Err(e) if e.kind == Kind::Contested => return Err(e),
                Err(e) => {
                    // What failed half-way may have left its answers in the socket.
                    seen = Seen::default();
                    let again = std::mem::replace(&mut complaint, e.to_string());
                    // Logged once, not with every look.
                    if complaint != again {
                        self.sink.warning(format!("{} {complaint}; trying again", clock::now()));
                    }
                }
            }
        }
    }

    /// Sets each rule set right that has changed since it was `seen`.
    fn set_right(&self, seen: &mut Seen) -> Result<Report> {
        let generation = seen.generation()?;
        let mut changed = false;
        for id in RulesetId::ALL {
            if seen.is_settled(id, generation) {
                continue;
            }
            let (kept, mended) = self.mend(seen, id, &self.wanted(id))?;
            self.tell_bypassed(seen.kept(id), &kept);
            seen.settle(id, kept);
            changed |= mended;
        }
        // What was written meanwhile, by us or others, is looked at next time.
        seen.looked(generation);
        Ok(Report { changed, rules: seen.all_kept() })
    }

    /// Sets one rule set right; says what stands now, and whether anything had to be changed.
    fn mend(&self, seen: &mut Seen, id: RulesetId, wanted: &[String]) -> Result<(Vec<Kept>, bool)> {
        let (mut changed, mut fell_behind) = (false, false);
        for _ in 0..TRIES {
            let generation = seen.generation()?;
            let ruleset = seen.read(self.tools, id)?;
            let standing = ruleset.as_ref().and_then(|r| Position::of(id, r, wanted));
            let (Some(ruleset), Some(standing)) = (ruleset, standing) else {
                return Ok((Vec::new(), changed));
            };
            if !wanted.is_empty() {
                self.may_stand(id, &standing)?;
            }
            let Some((wrong, table)) = standing.wrong else {
                return Ok((kept(id, standing), changed));
            };
            match seen.is_whole(id, &ruleset) {
                Err(e) if seen.generation()? == generation => return Err(e),
                // Someone wrote between the save and the comparison: that proves nothing.
                Err(_) => continue,
                Ok(()) => {}
            }
            let kernel = Kernel::new(self.tools, self.lock_wait);
            match kernel.apply(&edit(wrong, table)) {
                Ok(applied) => {
                    changed = true;
                    let gate = standing.gate.as_deref();
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
        let place = format!("{id} {TABLE} {CHAIN}");
        Err(Error::new(Kind::LostRace, place, "others write all the time"))
    }

    /// Refuses to stand before the jump of a Calico that would insert it above again.
    fn may_stand(&self, id: RulesetId, standing: &Position) -> Result<()> {
        if self.contest || standing.gate.as_deref() != Some(CALICO_GATE) {
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

    /// Says which policies are bypassed, when that is news.
    fn tell_bypassed(&self, before: Option<&[Kept]>, now: &[Kept]) {
        let bypasses = |kept: &[Kept]| kept.first().map(|k| k.bypasses.clone());
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

    /// Takes every rule of the guard away.
    fn take_away(&self) -> Result<()> {
        let mut seen = Seen::default();
        for id in RulesetId::ALL {
            let mut tries = TRIES;
            while let Err(e) = self.mend(&mut seen, id, &[]) {
                tries -= 1;
                if tries == 0 || !matches!(e.kind, Kind::LostRace | Kind::Busy | Kind::Lock) {
                    let hint = format!("its rules say \"{COMMENT}\": remove them by hand");
                    return Err(e.hint(hint));
                }
            }
        }
        Ok(())
    }
}

fn kept(id: RulesetId, standing: Position) -> Vec<Kept> {
    let before = standing.gate.unwrap_or_default();
    let rule = |text: crate::state::shared_str::StrSlice| Kept {
        ruleset: id.to_string(),
        rule: text.to_string(),
        before: before.clone(),
        bypasses: standing.bypassed.clone(),
    };
    standing.kept.into_iter().map(rule).collect()
}

/// What an edit did, in words; nothing for the first half of putting the rules back.
fn done(wrong: Deviation, gate: Option<&str>, fell_behind: bool, ending: bool) -> Option<String> {
    Some(match (wrong, gate) {
        (Deviation::Behind, _) => return None,
        (Deviation::Missing, gate) => {
            let gate = gate.unwrap_or_default();
            match fell_behind {
                true => format!("put the exception back before {gate}: it had fallen behind"),
                false => format!("put the exception in before {gate}: it was not there"),
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

/// From here on, a signal that would end the program only sets the flag.
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
