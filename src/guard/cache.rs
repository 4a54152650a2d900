//! What the guard remembers of the kernel's rules, so that it reads no ruleset that cannot have
//! changed.

use std::collections::BTreeMap;

use crate::checks::first_gate;
use crate::error::{Error, Kind, Result};
use crate::guard::GuardRule;
use crate::guard::position::CHAIN;
use crate::guard::position::TABLE;
use crate::node::capture::with_escapes;
use crate::node::lossy_save::lossy;
use crate::node::nfnetlink::{KernelTable, Netfilter, TableFamily};
use crate::node::subsystems;
use crate::node::tools::{Tool, Tools};
use crate::node::{config_files, processes};
use crate::state::lookalikes;
use crate::state::ruleset::Ruleset;
use crate::state::tools::render_processes;
use crate::state::{Backend, NodeState, RulesetId};

/// The guard's rules in each ruleset, as of the last correction of that ruleset.
#[derive(Default)]
pub(super) struct Cache {
    netfilter: Option<Netfilter>,
    /// The nf_tables generation just before all rulesets were last read.
    generation: Option<u32>,
    kept: BTreeMap<RulesetId, Vec<GuardRule>>,
    /// Whether each ruleset had a rule that drops INVALID packets.
    dropping: BTreeMap<RulesetId, bool>,
    /// Whether each ruleset was corrected beside one of the other backend that drops INVALID packets.
    beside: BTreeMap<RulesetId, bool>,
}

impl Cache {
    /// The current nf_tables generation; none where nf_tables is not in use.
    pub(super) fn generation(&mut self) -> Result<Option<u32>> {
        if self.netfilter.is_none() && subsystems::nf_tables() {
            self.netfilter = Some(Netfilter::open()?);
        }
        self.netfilter.as_mut().map(Netfilter::generation).transpose()
    }

    /// True if the ruleset cannot have changed since it was last corrected, and the other backend's
    /// ruleset has a gate or none as it had then. That is known only of an nft ruleset, as long as the
    /// generation is the same.
    pub(super) fn is_current(
        &self,
        id: RulesetId,
        generation: Option<u32>,
        beside_gate: bool,
    ) -> bool {
        id.backend == Backend::Nft
            && self.generation.is_some()
            && self.generation == generation
            && self.beside.get(&id) == Some(&beside_gate)
    }

    /// Records that all rulesets were read and corrected at this generation.
    pub(super) fn mark_current(&mut self, generation: Option<u32>) {
        self.generation = generation;
    }

    /// The guard's rules in a ruleset when it was last read; none if it was not read yet.
    pub(super) fn kept(&self, id: RulesetId) -> Option<&[GuardRule]> {
        self.kept.get(&id).map(Vec::as_slice)
    }

    /// Remembers which of the guard's rules are in position in a ruleset, and whether that drops INVALID
    /// packets.
    pub(super) fn store(&mut self, id: RulesetId, kept: Vec<GuardRule>, drops_invalid: bool) {
        self.kept.insert(id, kept);
        self.dropping.insert(id, drops_invalid);
    }

    /// Reads whether each ruleset drops INVALID packets, if it was not read yet. Else an exception in the
    /// first one would be taken away for a moment, until the other one is read.
    pub(super) fn read_dropping(&mut self, tools: &Tools) -> Result<()> {
        for id in RulesetId::ALL {
            if !self.dropping.contains_key(&id) {
                let ruleset = self.read(tools, id, TABLE)?;
                let drops_invalid = ruleset.is_some_and(|r| first_gate(&r).is_some());
                self.dropping.insert(id, drops_invalid);
            }
        }
        Ok(())
    }

    /// Remembers that a ruleset was corrected beside one that drops INVALID packets, or beside none.
    pub(super) fn store_beside(&mut self, id: RulesetId, beside_gate: bool) {
        self.beside.insert(id, beside_gate);
    }

    /// Whether the other backend's ruleset of the family dropped INVALID packets when it was last read.
    pub(super) fn drops_beside(&self, id: RulesetId) -> bool {
        let beside = |other: &RulesetId| other.family == id.family && *other != id;
        self.dropping.iter().any(|(other, drops)| *drops && beside(other))
    }

    /// The guard's rules that are in position, of all rulesets.
    pub(super) fn all_kept(&self) -> Vec<GuardRule> {
        self.kept.values().flatten().cloned().collect()
    }

    /// Reads a table of a ruleset from the kernel; none if the table does not exist. Reading does not
    /// create the table.
    pub(super) fn read(
        &mut self,
        tools: &Tools,
        id: RulesetId,
        table: &str,
    ) -> Result<Option<Ruleset>> {
        if !self.has_table(id, table)? {
            return Ok(None);
        }
        let output = tools.command(Tool::Save(id))?.args(["-t", table]).run()?;
        if let Some(refused) = lossy(&id.file(), &output.stdout, &output.stderr) {
            return Err(refused);
        }
        if output.stdout.trim().is_empty() {
            return Ok(None);
        }
        Ruleset::parse(&id.file(), output.stdout.into()).map(Some)
    }

    /// The tables of nf_tables that iptables-nft did not write.
    pub(super) fn native_tables(&mut self) -> Result<Vec<KernelTable>> {
        self.generation()?;
        let Some(netfilter) = &mut self.netfilter else { return Ok(Vec::new()) };
        let mut tables = netfilter.tables()?;
        tables.retain(|table| {
            table.family.address_family().is_none() || !subsystems::XTABLES.contains(&&*table.name)
        });
        Ok(tables)
    }

    /// Whether a ruleset has this table.
    pub(super) fn has_table(&mut self, id: RulesetId, table: &str) -> Result<bool> {
        if id.backend == Backend::Legacy {
            let tables = subsystems::legacy_tables(id.family)?;
            return Ok(tables.is_some_and(|tables| tables.iter().any(|t| t == table)));
        }
        self.generation()?;
        let Some(netfilter) = &mut self.netfilter else { return Ok(false) };
        let family = TableFamily::from(id.family);
        Ok(netfilter.tables()?.iter().any(|t| t.family == family && t.name == table))
    }

    /// Verifies that iptables-nft-save printed every rule of the FORWARD chain, because a rule's
    /// position is counted in that output.
    ///
    /// # Errors
    /// [`Kind::LossyCapture`] if rules are missing from the output.
    pub(super) fn verify_whole(&mut self, id: RulesetId, ruleset: &Ruleset) -> Result<()> {
        let Some(netfilter) = self.netfilter.as_mut().filter(|_| id.backend == Backend::Nft) else {
            return Ok(());
        };
        let saved = ruleset.table(TABLE).and_then(|t| t.chain(CHAIN)).map_or(0, |c| c.rules.len());
        let rules = netfilter.rules(id.family, TABLE, CHAIN)?;
        if rules.len() == saved && !rules.iter().any(|r| r.native) {
            return Ok(());
        }
        let cause = "it holds a native nft rule, so that iptables-save does not say it whole";
        Err(Error::new(Kind::LossyCapture, format!("{id} {TABLE} {CHAIN}"), cause)
            .hint("see the rule with `nft list chain`; move it to a table of its own"))
    }
}

/// Captures only the part of the node that shows whether Calico is alive: processes, configuration
/// files and links.
pub(super) fn calico_state(tools: &Tools) -> Result<NodeState> {
    let found = processes::find()?;
    let links = tools.command(Tool::Ip)?.args(["-j", "-d", "addr", "show"]).lossy();
    let links = with_escapes(&links.run()?.stdout).into_owned();
    let (mut files, _) = config_files::read(&found.components);
    files.insert("processes.json".into(), render_processes(&found.processes())?.into());
    files.insert("lookalikes.json".into(), lookalikes::render(&found.lookalikes)?.into());
    files.insert("addr.json".into(), links.into());
    NodeState::parse(files)
}
