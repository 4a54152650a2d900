//! A node's state, parsed as a whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::state::cni::SubnetEnv;
use crate::state::ipset::IpSets;
use crate::state::ipvs::Ipvs;
use crate::state::links::{self, Link, PolicyRule, Route};
use crate::state::nft::{NftTable, NftTables};
use crate::state::ruleset::Ruleset;
use crate::state::tools::{self, Process, Tools};
use crate::state::{Backend, Files, RulesetId};

/// Everything known of a node at one moment. A part that was not there is empty; what only an
/// incomplete directory leaves out, and a node always has, is `None`.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The xtables rules, by family and backend.
    pub rulesets: BTreeMap<RulesetId, Ruleset>,
    /// Every nf_tables table, those of iptables-nft among them.
    pub nft: NftTables,
    /// The ipsets.
    pub ipsets: IpSets,
    /// The ipvs virtual servers.
    pub ipvs: Ipvs,
    /// The network links; empty if they were not captured, for a node has `lo`.
    pub links: Vec<Link>,
    /// The routes of all tables.
    pub routes: Vec<Route>,
    /// The routing rules.
    pub policy_rules: Vec<PolicyRule>,
    /// The programs, where they were captured.
    pub tools: Option<Tools>,
    /// The processes that own rules, where they were captured.
    pub processes: Option<Vec<Process>>,
    /// flannel's lease, where flannel wrote one.
    pub flannel: Option<SubnetEnv>,
    /// Every file of the state, with the text it was parsed from.
    pub files: Files,
}

impl NodeState {
    /// Parses each file of a state.
    ///
    /// # Errors
    /// The first file that is not what its name says.
    pub fn parse(files: Files) -> Result<NodeState> {
        let mut state = NodeState::default();
        for id in RulesetId::ALL {
            if let Some((name, text)) = files.get_key_value(&id.file()) {
                state.rulesets.insert(id, Ruleset::parse(name, text.clone())?);
            }
        }
        let text = |name| files.get_key_value(name).map(|(name, text)| (name.as_str(), &**text));
        if let Some((name, text)) = text("nft.json") {
            state.nft = NftTables::parse(name, text)?;
        }
        if let Some((name, text)) = text("ipset.save") {
            state.ipsets = IpSets::parse(name, text)?;
        }
        if let Some((name, text)) = text("ipvs.save") {
            state.ipvs = Ipvs::parse(name, text)?;
        }
        if let Some((name, text)) = text("addr.json") {
            state.links = links::parse_links(name, text)?;
        }
        if let Some((name, text)) = text("route.json") {
            state.routes = links::parse_routes(name, text)?;
        }
        if let Some((name, text)) = text("rule.json") {
            state.policy_rules = links::parse_rules(name, text)?;
        }
        if let Some((name, text)) = text("tools.txt") {
            state.tools = Some(Tools::parse(name, text)?);
        }
        if let Some((name, text)) = text("processes.json") {
            state.processes = Some(tools::parse_processes(name, text)?);
        }
        if let Some((name, text)) = text("files/run/flannel/subnet.env") {
            state.flannel = Some(SubnetEnv::parse(name, text)?);
        }
        state.files = files;
        Ok(state)
    }

    /// All of it but rules, sets and files: what is small on every node.
    pub fn without_rules(self) -> NodeState {
        let (rulesets, ipsets, files) = Default::default();
        NodeState { rulesets, ipsets, files, ..self }
    }

    /// The text of a captured configuration file, by its path on the node.
    pub fn file(&self, path: &str) -> Option<&str> {
        self.files.get(&format!("files{path}")).map(|text| &**text)
    }

    /// The nf_tables tables that are not iptables-nft's.
    pub fn native_tables(&self) -> Vec<&NftTable> {
        let xtables: BTreeSet<(String, String)> = self
            .rulesets
            .iter()
            .filter(|(id, _)| id.backend == Backend::Nft)
            .flat_map(|(id, r)| {
                r.tables.iter().map(|t| (id.family.nft().into(), t.name.to_string()))
            })
            .collect();
        self.nft.native(&xtables)
    }
}
