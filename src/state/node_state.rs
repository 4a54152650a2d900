//! A node's state, parsed as a whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::state::cni::SubnetEnv;
use crate::state::ipset::IpSets;
use crate::state::ipvs::VirtualServers;
use crate::state::links::{self, Link, PolicyRule, Route};
use crate::state::nft::{NftTable, NftTables};
use crate::state::ruleset::Ruleset;
use crate::state::tools::{self, Process, ToolList};
use crate::state::{Backend, Files, RulesetId};

/// Everything captured of a node at one moment. A part that did not exist is empty. A part that
/// every node has is `None` if an incomplete directory omits it.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The xtables rules, by family and backend.
    pub rulesets: BTreeMap<RulesetId, Ruleset>,
    /// Every nf_tables table, those of iptables-nft among them.
    pub nft: NftTables,
    /// The ipsets.
    pub ipsets: IpSets,
    /// The ipvs virtual servers.
    pub ipvs: VirtualServers,
    /// The network links; empty if they were not captured, since a node has `lo`.
    pub links: Vec<Link>,
    /// The routes of all tables.
    pub routes: Vec<Route>,
    /// The routing rules.
    pub policy_rules: Vec<PolicyRule>,
    /// The programs, if captured.
    pub tools: Option<ToolList>,
    /// The processes that own rules, if captured.
    pub processes: Option<Vec<Process>>,
    /// flannel's lease, if flannel wrote one.
    pub flannel: Option<SubnetEnv>,
    /// Every file of the state, with its text.
    pub files: Files,
}

impl NodeState {
    /// Parses each file of a state.
    ///
    /// # Errors
    /// The first file that is not in the format of its name.
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
            state.ipvs = VirtualServers::parse(name, text)?;
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
            state.tools = Some(ToolList::parse(name, text)?);
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

    /// Everything but rules, sets and files: small on every node.
    pub fn without_rules(self) -> NodeState {
        let (rulesets, ipsets, files) = Default::default();
        NodeState { rulesets, ipsets, files, ..self }
    }

    /// The text of a captured configuration file, by its path on the node.
    pub fn file(&self, path: &str) -> Option<&str> {
        self.files.get(&format!("files{path}")).map(|text| &**text)
    }

    /// The nf_tables tables without iptables-nft's.
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
