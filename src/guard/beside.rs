//! Drops of INVALID packets beside filter FORWARD. An exception of the guard does not override them:
//! an accept ends the base chain that it is in, and a drop in any other one is final.

mod next_step;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::checks::gate_in;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::guard::Guard;
use crate::guard::beside::next_step::{before_rule, of_native};
use crate::guard::cache::Cache;
use crate::node::nfnetlink::KernelTable;
use crate::node::tools::{Tool, Tools};
use crate::owners::content::Reading;
use crate::state::nft::{NftTable, NftTables, is_identifier};
use crate::state::nft_path::{DropReach, InvalidPackets, NativeDrop, drops, needs_elements};
use crate::state::rule::Words;
use crate::state::ruleset::Ruleset;
use crate::state::{Backend, Family, RulesetId};

/// The built-in chains that forwarded packets pass besides filter FORWARD. In table raw no packet is
/// INVALID yet, and those of table nat see no INVALID packet.
const CHAINS: [(&str, &str); 4] = [
    ("mangle", "PREROUTING"),
    ("mangle", "FORWARD"),
    ("security", "FORWARD"),
    ("mangle", "POSTROUTING"),
];

/// The tables of these chains.
const OTHER_TABLES: [&str; 2] = ["mangle", "security"];

/// How much longer the guard waits between two looks than a look takes. A table of thousands of
/// services takes seconds.
const PACE: u32 = 10;

/// A drop that the guard cannot put its exception before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FinalDrop {
    /// The table: `nft inet firewalld`, `iptables-legacy mangle`.
    pub table: String,
    /// The chain that drops.
    pub chain: String,
    /// The rule's handle, if it is a rule of a native table.
    pub handle: Option<u64>,
    /// The rule, or `policy drop`.
    pub rule: String,
    /// The component that makes the table or chain, if it is known.
    pub owner: Option<String>,
    /// The exceptions whose packets it drops, or some of them.
    pub exceptions: Vec<String>,
    /// Whether it drops them; else a rule before may accept them all.
    pub certain: bool,
    /// What to do about it.
    pub next_step: String,
}

impl FinalDrop {
    /// True for the same drop, loaded anew or not.
    fn is_same(&self, other: &FinalDrop) -> bool {
        FinalDrop { handle: None, next_step: String::new(), ..self.clone() }
            == FinalDrop { handle: None, next_step: String::new(), ..other.clone() }
    }
}

impl std::fmt::Display for FinalDrop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let FinalDrop { table, chain, rule, .. } = self;
        let handle = self.handle.map_or(String::new(), |handle| format!("handle {handle}, "));
        let owner = self.owner.as_ref();
        let owner = owner.map_or("of an owner that is not known".into(), |o| format!("{o}'s"));
        write!(f, "`{rule}` in chain {chain} of table {table} ({handle}{owner})")
    }
}

/// What was found beside filter FORWARD.
#[derive(Debug, Default)]
pub(super) struct BesideForward {
    pub(super) drops: Vec<FinalDrop>,
    /// Tables that could not be read, each with the reason.
    unread: Vec<String>,
}

impl BesideForward {
    /// The error that no exception helps, if that is certain of a drop.
    pub(super) fn refusal(&self) -> Option<Error> {
        let certain: Vec<&FinalDrop> = self.drops.iter().filter(|drop| drop.certain).collect();
        let first = certain.first()?;
        let shown: Vec<String> = certain.iter().map(ToString::to_string).collect();
        let cause = format!(
            "INVALID packets of {} are dropped by {}, whatever an exception in filter FORWARD accepts: \
             an accept ends one base chain, and a drop in another is final",
            first.exceptions.join(", "),
            shown.join(" and by "),
        );
        let mut steps: Vec<&str> = Vec::new();
        for drop in &certain {
            if !steps.contains(&&*drop.next_step) {
                steps.push(&drop.next_step);
            }
        }
        Some(Error::new(Kind::Blocked, first.table.clone(), cause).hint(steps.join("; ")))
    }

    /// What is not known, or not certain, each as a sentence.
    pub(super) fn doubts(&self) -> Vec<String> {
        let doubtful = self.drops.iter().filter(|drop| !drop.certain);
        let doubtful = doubtful.map(|drop| {
            format!(
                "{drop} may drop INVALID packets of {} all the same: it takes what nothing before it \
                 accepts; {}",
                drop.exceptions.join(", "),
                drop.next_step
            )
        });
        let unread = self.unread.iter().map(|why| {
            format!("whether INVALID packets are dropped there too is not known: {why}")
        });
        doubtful.chain(unread).collect()
    }
}

/// What was found last, and when to look again.
#[derive(Default)]
pub(super) struct Observer {
    generation: Option<u32>,
    not_before: Option<Instant>,
    pub(super) last: BesideForward,
}

impl Observer {
    /// Looks for the first time. The guard begins only if its exception can help.
    ///
    /// # Errors
    /// [`Kind::Blocked`] for a drop that no exception overrides.
    pub(super) fn begin(guard: &Guard<'_>, cache: &mut Cache) -> Result<Observer> {
        let mut observer = Observer::default();
        let now = observer.observe_if_changed(guard, cache)?.unwrap_or_default();
        if let Some(refusal) = now.refusal() {
            return Err(refusal);
        }
        now.doubts().into_iter().for_each(|doubt| guard.sink.warning(doubt));
        observer.last = now;
        Ok(observer)
    }

    /// Looks again if anything can have changed, and reports what is new and what is gone.
    pub(super) fn observe(&mut self, guard: &Guard<'_>, cache: &mut Cache) -> Result<()> {
        let Some(now) = self.observe_if_changed(guard, cache)? else { return Ok(()) };
        let before = std::mem::replace(&mut self.last, now);
        let now = &self.last;
        let is_in = |all: &[FinalDrop], one: &FinalDrop| all.iter().any(|drop| drop.is_same(one));
        for drop in now.drops.iter().filter(|drop| drop.certain && !is_in(&before.drops, drop)) {
            guard.sink.warning(format!(
                "{} the exception does not help while {drop} drops INVALID packets of {}: an accept \
                 ends one base chain, and a drop in another is final; {}",
                clock::now(),
                drop.exceptions.join(", "),
                drop.next_step
            ));
        }
        let known = before.doubts();
        for doubt in now.doubts().into_iter().filter(|doubt| !known.contains(doubt)) {
            guard.sink.warning(format!("{} {doubt}", clock::now()));
        }
        for drop in before.drops.iter().filter(|drop| drop.certain && !is_in(&now.drops, drop)) {
            guard.sink.note(format!("{} {drop} is gone", clock::now()));
        }
        Ok(())
    }

    /// What is there now; none if it is what was there before, or if it is too early to look again.
    fn observe_if_changed(
        &mut self,
        guard: &Guard<'_>,
        cache: &mut Cache,
    ) -> Result<Option<BesideForward>> {
        let begin = Instant::now();
        if self.not_before.is_some_and(|time| begin < time) {
            return Ok(None);
        }
        let generation = cache.generation()?;
        // Of the legacy tables there is no generation.
        let is_same = self.not_before.is_some() && self.generation == generation;
        if is_same && !has_other_legacy_tables(cache)? {
            return Ok(None);
        }
        let found = beside(guard, cache)?;
        self.generation = generation;
        let took: Duration = begin.elapsed();
        self.not_before = Some(Instant::now() + took * PACE);
        Ok(Some(found))
    }
}

fn has_other_legacy_tables(cache: &mut Cache) -> Result<bool> {
    for family in Family::ALL {
        let id = RulesetId { family, backend: Backend::Legacy };
        for table in OTHER_TABLES {
            if cache.has_table(id, table)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Looks once at all that forwarded packets pass besides filter FORWARD.
fn beside(guard: &Guard<'_>, cache: &mut Cache) -> Result<BesideForward> {
    let mut found = BesideForward::default();
    for table in cache.native_tables()? {
        let KernelTable { family, name, .. } = table;
        match listed(guard.tools, &family.to_string(), &name) {
            Ok(Some(table)) => found.drops.extend(of_table(guard, &table)),
            Ok(None) => {}
            // A table that was deleted meanwhile drops nothing.
            Err(_) if !cache.native_tables()?.iter().any(|t| t.handle == table.handle) => {}
            Err(e) => found.unread.push(format!("table {family} {}: {e}", name.escape_debug())),
        }
    }
    for id in RulesetId::ALL {
        for table in OTHER_TABLES {
            match cache.read(guard.tools, id, table) {
                Ok(Some(ruleset)) => found.drops.extend(of_ruleset(guard, id, table, &ruleset)),
                Ok(None) => {}
                Err(e) => found.unread.push(format!("{id} {table}: {e}")),
            }
        }
    }
    Ok(found)
}

/// One native table in nft's JSON, with the elements of its sets if they matter; none if it is gone.
fn listed(tools: &Tools, family: &str, name: &str) -> Result<Option<NftTable>> {
    if !is_identifier(name) {
        return Err(Error::new(Kind::LossyCapture, "nft", "its name cannot be given to nft"));
    }
    let list = |options: &[&str]| {
        let arguments = [options, &["list", "table", family, name]].concat();
        let output = tools.command(Tool::Nft)?.args(arguments).run()?;
        let tables = NftTables::parse("nft -j", &output.stdout)?;
        let mut tables = tables.tables.into_iter();
        Ok::<_, Error>(tables.find(|table| table.family == family && table.name == name))
    };
    match list(&["-j", "-t"])? {
        Some(table) if needs_elements(&table) => list(&["-j"]),
        table => Ok(table),
    }
}

fn of_table(guard: &Guard<'_>, table: &NftTable) -> Vec<FinalDrop> {
    let owner = guard.catalogue.native_table(table).map(|(entry, _)| guard.catalogue.at(entry));
    let mut found: BTreeMap<_, Vec<(String, InvalidPackets)>> = BTreeMap::new();
    for exception in guard.exceptions {
        for packets in Family::ALL.into_iter().flat_map(|family| exception.packets(family)) {
            for drop in drops(table, &packets) {
                found.entry(drop).or_default().push((exception.to_string(), packets.clone()));
            }
        }
    }
    let of_drop = |(drop, of): (NativeDrop, Vec<(String, InvalidPackets)>)| {
        let mut exceptions: Vec<String> =
            of.iter().map(|(exception, _)| exception.clone()).collect();
        exceptions.dedup();
        FinalDrop {
            table: format!("nft {} {}", drop.family, drop.table),
            next_step: of_native(&drop, owner, of.iter().map(|(_, packets)| packets)),
            chain: drop.chain,
            handle: drop.handle,
            rule: drop.text,
            owner: owner.map(|owner| owner.name.clone()),
            exceptions,
            certain: drop.reach != DropReach::Unaccepted,
        }
    };
    found.into_iter().map(of_drop).collect()
}

/// The first rule that drops INVALID packets in each chain of a table of iptables, unless the
/// operator's own rules before it accept those of the exceptions.
fn of_ruleset(guard: &Guard<'_>, id: RulesetId, table: &str, ruleset: &Ruleset) -> Vec<FinalDrop> {
    let mut found = Vec::new();
    for (_, chain) in CHAINS.iter().filter(|(of, _)| *of == table) {
        let Some((at, gate)) = gate_in(ruleset, table, chain) else { continue };
        let rules = ruleset.table(table).and_then(|t| t.chain(chain)).map_or(&[][..], |c| &c.rules);
        let accepts = |wanted: &String| {
            let body = |words| Reading::of(words).body;
            let wanted = body(Words::of_rule(wanted));
            rules[..at].iter().any(|rule| body(ruleset.words(rule)) == wanted)
        };
        // No rule of prerouting can name the interface that a packet leaves by.
        let can_be = |rule: &String| *chain != "PREROUTING" || !rule.contains(" -o ");
        let mut exceptions = Vec::new();
        let mut missing = Vec::new();
        for exception in guard.exceptions {
            let wanted = exception.rules(id.family);
            let lacking: Vec<String> = wanted.into_iter().filter(|rule| !accepts(rule)).collect();
            if !lacking.is_empty() {
                exceptions.push(exception.to_string());
            }
            missing.extend(lacking.into_iter().filter(can_be));
        }
        if exceptions.is_empty() {
            continue;
        }
        let target = gate.target.as_deref().unwrap_or_default();
        let owner = guard.catalogue.owner_of_chain(table, target);
        found.push(FinalDrop {
            table: format!("{id} {table}"),
            chain: (*chain).to_owned(),
            handle: None,
            rule: ruleset.rule_text(gate).to_owned(),
            owner: owner.map(|owner| owner.name.clone()),
            exceptions,
            certain: true,
            next_step: before_rule(id, table, chain, at, &missing),
        });
    }
    found
}
