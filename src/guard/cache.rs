//! The guard's cache of the kernel, so that it reads no more than necessary.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};
use crate::guard::GuardRule;
use crate::guard::position::CHAIN;
use crate::guard::position::TABLE;
use crate::node::lossy_save::lossy;
use crate::node::nfnetlink::{Netfilter, TableFamily};
use crate::node::subsystems;
use crate::node::tools::{Tool, Tools};
use crate::node::{config_files, processes};
use crate::state::ruleset::Ruleset;
use crate::state::tools::render_processes;
use crate::state::{Backend, NodeState, RulesetId};

/// The rule sets after their last correction.
#[derive(Default)]
pub(super) struct Cache {
    netfilter: Option<Netfilter>,
    /// nf_tables' generation before the last read of all of them.
    generation: Option<u32>,
    kept: BTreeMap<RulesetId, Vec<GuardRule>>,
}

impl Cache {
    /// nf_tables' current generation; none where nf_tables is not in use.
    pub(super) fn generation(&mut self) -> Result<Option<u32>> {
        if self.netfilter.is_none() && subsystems::nf_tables() {
            self.netfilter = Some(Netfilter::open()?);
        }
        self.netfilter.as_mut().map(Netfilter::generation).transpose()
    }

    /// True when the rule set cannot have changed since the last read.
    pub(super) fn is_current(&self, id: RulesetId, generation: Option<u32>) -> bool {
        id.backend == Backend::Nft && self.generation.is_some() && self.generation == generation
    }

    /// Marks all rule sets as current at this generation.
    pub(super) fn mark_current(&mut self, generation: Option<u32>) {
        self.generation = generation;
    }

    /// The guard's rules in a rule set at the last read; none before the first.
    pub(super) fn kept(&self, id: RulesetId) -> Option<&[GuardRule]> {
        self.kept.get(&id).map(Vec::as_slice)
    }

    /// Stores the guard's rules in a rule set.
    pub(super) fn store(&mut self, id: RulesetId, kept: Vec<GuardRule>) {
        self.kept.insert(id, kept);
    }

    /// The guard's rules in all rule sets.
    pub(super) fn all_kept(&self) -> Vec<GuardRule> {
        self.kept.values().flatten().cloned().collect()
    }

    /// Reads the filter table from the kernel; none if it does not exist. Reading creates no table.
    pub(super) fn read(&mut self, tools: &Tools, id: RulesetId) -> Result<Option<Ruleset>> {
        if !self.has_table(id)? {
            return Ok(None);
        }
        let output = tools.command(Tool::Save(id))?.args(["-t", TABLE]).run()?;
        if let Some(refused) = lossy(&id.file(), &output.stdout, &output.stderr) {
            return Err(refused);
        }
        if output.stdout.trim().is_empty() {
            return Ok(None);
        }
        Ruleset::parse(&id.file(), output.stdout.into()).map(Some)
    }

    fn has_table(&mut self, id: RulesetId) -> Result<bool> {
        if id.backend == Backend::Legacy {
            let tables = subsystems::legacy_tables(id.family)?;
            return Ok(tables.is_some_and(|tables| tables.iter().any(|t| t == TABLE)));
        }
        self.generation()?;
        let Some(netfilter) = &mut self.netfilter else { return Ok(false) };
        let family = TableFamily::from(id.family);
        Ok(netfilter.tables()?.iter().any(|t| t.family == family && t.name == TABLE))
    }

    /// Verifies that the save has the whole chain, as positions are counted in it.
    ///
    /// # Errors
    /// [`Kind::LossyCapture`].
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

/// Captures as much of the node as shows whether Calico is alive.
pub(super) fn calico_state(tools: &Tools) -> Result<NodeState> {
    let processes = processes::find()?;
    let links = tools.command(Tool::Ip)?.args(["-j", "-d", "addr", "show"]).run()?.stdout;
    let (mut files, _) = config_files::read(&processes);
    files.insert("processes.json".into(), render_processes(&processes)?.into());
    files.insert("addr.json".into(), links.into());
    NodeState::parse(files)
}
