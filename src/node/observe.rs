//! Captures the live node, parses the capture, and compares it with the kernel's rules.

use std::collections::{BTreeMap, HashSet};
use std::num::TryFromIntError;
use std::thread;

use crate::error::{Error, Kind, Result};
use crate::event::Sink;
use crate::node::capture::{Extent, capture_beside_rules, capture_reporting};
use crate::node::nfnetlink::Netfilter;
use crate::node::subsystems;
use crate::node::tools::Tools;
use crate::state::ruleset::{Ruleset, Table};
use crate::state::shared_str::StrArena;
use crate::state::shared_str::StrSlice;
use crate::state::{Backend, Family, NodeState, RulesetId};

/// How often a capture is repeated because other programs write.
const TRIES: usize = 5;

/// Captures the node, and verifies that the saves of nft tables hold every rule that the kernel
/// has.
///
/// # Errors
/// [`Kind::LossyCapture`], naming the chain whose save is lossy; [`Kind::Unstable`] when other
/// programs write all the time; the errors of [`capture_reporting`].
pub fn observe(tools: &Tools, sink: &dyn Sink) -> Result<NodeState> {
    match capture_verified(tools, Extent::Whole, sink)? {
        Observation::Whole(state) => Ok(state),
        Observation::Moving(_, object) => {
            let cause = "others write to the tables all the time, so that no look at them is whole";
            Err(Error::new(Kind::Unstable, object, cause)
                .hint("find the writer with `nft monitor`"))
        }
    }
}

/// Captures all of the node that is neither a rule nor a set, where these cannot be read.
///
/// # Errors
/// As [`capture_beside_rules`].
pub fn observe_beside_rules(tools: &Tools, sink: &dyn Sink) -> Result<NodeState> {
    capture_beside_rules(tools, sink).and_then(NodeState::parse)
}

/// As [`observe`], but captures only `extent`, and succeeds even if other programs write all the
/// time, because such writes must not prevent the verification or rollback of a run that has
/// changed something. Each save is still the state at one moment, because iptables-nft-save
/// restarts after a write; but saves of tables that kept changing are not compared with the kernel.
///
/// # Errors
/// As [`observe`], without [`Kind::Unstable`].
pub fn observe_tolerant(tools: &Tools, extent: Extent, sink: &dyn Sink) -> Result<NodeState> {
    match capture_verified(tools, extent, sink)? {
        Observation::Whole(state) | Observation::Moving(state, _) => Ok(state),
    }
}

/// A captured state, and whether all of it was compared with the kernel.
enum Observation {
    Whole(NodeState),
    /// Other programs wrote during every try. The text is the last object that differed from the
    /// kernel.
    Moving(NodeState, String),
}

fn capture_verified(tools: &Tools, extent: Extent, sink: &dyn Sink) -> Result<Observation> {
    let mut tries = TRIES;
    loop {
        let mut netfilter = if subsystems::nf_tables() { Some(Netfilter::open()?) } else { None };
        let generation = netfilter.as_mut().map(Netfilter::generation).transpose()?;
        // In parallel, because both the capture and the dump of the kernel's chains take long on a
        // large node, mostly in the kernel.
        let (state, kernel) = thread::scope(|scope| {
            let kernel = scope.spawn(|| netfilter.as_mut().map(kernel_chains));
            (capture_reporting(tools, extent, sink).and_then(NodeState::parse), kernel.join())
        });
        let mut moved =
            || Ok(netfilter.as_mut().map(Netfilter::generation).transpose()? != generation);
        let state = match state {
            // A save may look lossy while its table is being written, and a table may go while it is
            // read.
            Err(_) if tries > 1 && moved()? => {
                tries -= 1;
                continue;
            }
            state => state?,
        };
        let kernel =
            kernel.map_err(|_| Error::new(Kind::Unexpected, "nf_tables", "cannot be read"))?;
        let (Some(netfilter), Some(kernel)) = (netfilter.as_mut(), kernel) else {
            return Ok(Observation::Whole(state));
        };
        tries -= 1;
        match kernel.and_then(|kernel| verify_against_kernel(&kernel, &state)) {
            Ok(()) => return Ok(Observation::Whole(state)),
            Err(e) if Some(netfilter.generation()?) == generation => return Err(e),
            // Another program wrote between the save and the dump, so the difference does not show
            // that the save is lossy.
            Err(e) if tries == 0 => return Ok(Observation::Moving(state, e.object)),
            Err(_) => {}
        }
    }
}

/// A summary of the kernel's chains in the tables that iptables-nft writes, keyed by family and
/// table.
type KernelChains = BTreeMap<(Family, String), Vec<ChainSummary>>;

struct ChainSummary {
    name: StrSlice,
    rules: u32,
    /// The index of the chain's first rule that iptables-nft cannot have written.
    native: Option<u32>,
}

fn kernel_chains(netfilter: &mut Netfilter) -> Result<KernelChains> {
    let mut kernel = KernelChains::new();
    for table in netfilter.tables()? {
        let Some(family) = table.family.address_family() else { continue };
        if !subsystems::XTABLES.contains(&table.name.as_str()) {
            continue;
        }
        // Only the names are kept, because the kernel's list of chains takes more memory than its
        // names.
        let mut names = StrArena::default();
        netfilter.chains(family, &table.name)?.iter().for_each(|chain| names.push(&chain.name));
        let chains = names.texts().map_err(too_large)?.map(|name| {
            let rules = netfilter.rules(family, &table.name, &name)?;
            let native = (0..).zip(&rules).find(|(_, rule)| rule.native).map(|(at, _)| at);
            let rules = u32::try_from(rules.len()).map_err(too_large)?;
            Ok(ChainSummary { name, rules, native })
        });
        let chains = chains.collect::<Result<_>>()?;
        kernel.insert((family, table.name), chains);
    }
    Ok(kernel)
}

fn too_large(e: TryFromIntError) -> Error {
    Error::new(Kind::Unexpected, "nf_tables", e)
}

/// Compares each save of an iptables-nft table with the kernel, chain by chain.
fn verify_against_kernel(kernel: &KernelChains, state: &NodeState) -> Result<()> {
    for (id, ruleset) in state.rulesets.iter().filter(|(id, _)| id.backend == Backend::Nft) {
        for table in &ruleset.tables {
            let chains = kernel.get(&(id.family, table.name.to_string()));
            verify_table(chains.map_or(&[], |c| c), *id, ruleset, table)?;
        }
    }
    Ok(())
}

fn verify_table(
    chains: &[ChainSummary],
    id: RulesetId,
    ruleset: &Ruleset,
    table: &Table,
) -> Result<()> {
    let lossy = |chain: &str, cause: String| {
        Error::new(Kind::LossyCapture, format!("{id} {} {chain}", table.name), cause)
            .hint("see the rule with `nft list chain`; move it to a table of its own")
    };
    for chain in chains {
        let saved = table.chain(&chain.name).map(|c| &c.rules[..]);
        if let Some(native) = chain.native {
            let text = saved.and_then(|s| s.get(native as usize)).map(|r| ruleset.rule_text(r));
            let cause = format!(
                "a native nft rule, which iptables-save cannot say whole: `{}`",
                text.unwrap_or_default()
            );
            return Err(lossy(&chain.name, cause));
        }
        let kernel = chain.rules as usize;
        let saved = saved.map_or(0, <[_]>::len);
        if kernel != saved {
            let cause = format!("the kernel holds {kernel} rules, its save {saved}");
            return Err(lossy(&chain.name, cause));
        }
    }
    if chains.iter().filter(|c| table.chain(&c.name).is_some()).count() == table.chains.len() {
        return Ok(());
    }
    let known: HashSet<&str> = chains.iter().map(|c| c.name.as_str()).collect();
    if let Some(chain) = table.chains.iter().find(|c| !known.contains(&*c.name)) {
        let built_in = chain.is_built_in() && chain.rules.is_empty();
        if !built_in {
            return Err(lossy(&chain.name, "saved, but the kernel does not have it".into()));
        }
    }
    Ok(())
}
