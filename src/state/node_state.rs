//! The state of a node, parsed from all its files.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::state::accounting::AccountingObject;
use crate::state::cluster_facts::{self, CLUSTER, ClusterFacts};
use crate::state::cni::{SUBNET_ENV, SubnetEnv};
use crate::state::ipset::IpSets;
use crate::state::ipvs::VirtualServers;
use crate::state::links::{self, Link, PolicyRule, Route};
use crate::state::lookalikes::{self, Lookalike};
use crate::state::nft::{NftTable, NftTables};
use crate::state::nft_messages::TableMessages;
use crate::state::ruleset::Ruleset;
use crate::state::sysctl::Sysctls;
use crate::state::timeout_policy::TimeoutPolicy;
use crate::state::tools::{self, Process, ToolList};
use crate::state::{Backend, Files, RulesetId, multicall};

/// Everything that was captured of a node at one moment. A part is empty if the node had nothing of
/// it. A part that every node has is `None` if the directory is incomplete and lacks the part's
/// file.
#[derive(Debug, Clone, Default)]
pub struct NodeState {
    /// The xtables rules, keyed by address family and backend.
    pub rulesets: BTreeMap<RulesetId, Ruleset>,
    /// All nf_tables tables, including those that iptables-nft wrote.
    pub nft: NftTables,
    /// What native tables can be made of; none of a state that an older version captured.
    pub nft_messages: TableMessages,
    /// All ipsets of the node.
    pub ipsets: IpSets,
    /// The accounting objects that rules name; none of a state that an older version captured.
    pub accounting: Vec<AccountingObject>,
    /// The timeout policies that rules name; none of a state that an older version captured.
    pub timeout_policies: Vec<TimeoutPolicy>,
    /// All ipvs virtual servers of the node.
    pub ipvs: VirtualServers,
    /// The network links. Empty only if they were not captured, because every node has `lo`.
    pub links: Vec<Link>,
    /// The routes of all routing tables.
    pub routes: Vec<Route>,
    /// The routing rules (`ip rule`).
    pub policy_rules: Vec<PolicyRule>,
    /// The installed programs; none if they were not captured.
    pub tools: Option<ToolList>,
    /// The processes of components that own rules; none if they were not captured.
    pub processes: Option<Vec<Process>>,
    /// Processes that have the name of a component and do not count.
    pub lookalikes: Vec<Lookalike>,
    /// What the API server says of kube-proxy; none if it was not captured.
    pub cluster: Option<ClusterFacts>,
    /// flannel's networks and lease; none if flannel wrote no `subnet.env`.
    pub flannel: Option<SubnetEnv>,
    /// The text of every file that this state was parsed from.
    pub files: Files,
}

impl NodeState {
    /// Parses each file of a node state.
    ///
    /// # Errors
    /// [`crate::error::Kind::Parse`] for the first file that is not in the format that its name
    /// says.
    pub fn parse(files: Files) -> Result<NodeState> {
        let mut state = NodeState::default();
        for id in RulesetId::ALL {
            if let Some((name, text)) = files.get_key_value(&id.file()) {
                state.rulesets.insert(id, Ruleset::parse(name, text.clone())?);
            }
        }
        let text =
            |name: &str| files.get_key_value(name).map(|(name, text)| (name.as_str(), &**text));
        if let Some((name, text)) = text("nft.json") {
            state.nft = NftTables::parse(name, text)?;
        }
        if let Some((name, text)) = files.get_key_value("nft.messages") {
            state.nft_messages = TableMessages::parse(name, text.clone())?;
        }
        if let Some((name, text)) = text("ipset.save") {
            state.ipsets = IpSets::parse(name, text)?;
        }
        if let Some((name, text)) = text("nfacct.save") {
            state.accounting = AccountingObject::parse(name, text)?;
        }
        if let Some((name, text)) = text("cttimeout.save") {
            state.timeout_policies = TimeoutPolicy::parse(name, text)?;
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
        state.processes = match text("processes.json") {
            Some((_, tools::NOT_KNOWN)) => None,
            Some((name, text)) => {
                let mut processes = tools::parse_processes(name, text)?;
                for process in &mut processes {
                    process.name = multicall::name_of(&process.name, &process.args).to_owned();
                }
                Some(processes)
            }
            // A whole capture of version 0.1.0 has no list if it found no process.
            None => (state.tools.is_some() && !names_a_process(&files)).then(Vec::new),
        };
        if let Some((name, text)) = text("lookalikes.json") {
            state.lookalikes = lookalikes::parse(name, text)?;
        }
        if let Some((name, text)) = text(CLUSTER) {
            state.cluster = Some(cluster_facts::parse(name, text)?);
        }
        // A file that is there and was not kept has no text.
        let lease = format!("files{SUBNET_ENV}");
        let lease = text(&lease).filter(|(_, text)| !text.is_empty());
        if let Some((name, text)) = lease {
            state.flannel = Some(SubnetEnv::parse(name, text)?);
        }
        state.files = files;
        Ok(state)
    }

    /// This state without xtables rules, ipsets and files. What remains is small on every node.
    pub fn without_rules(self) -> NodeState {
        let (rulesets, ipsets, files) = Default::default();
        NodeState { rulesets, ipsets, files, ..self }
    }

    /// This state, with the processes, tools and configuration of `base`. A state that has only what
    /// the kernel holds does not show which owner is alive; `base` showed it at another moment.
    pub fn with_owners_of(mut self, base: &NodeState) -> NodeState {
        let shows_owners = |name: &String| {
            ["processes.json", "lookalikes.json", "tools.txt", CLUSTER].contains(&name.as_str())
                || name.starts_with("files/")
        };
        let files = base.files.iter().filter(|(name, _)| shows_owners(name));
        self.files.extend(files.map(|(name, text)| (name.clone(), text.clone())));
        NodeState {
            tools: base.tools.clone(),
            processes: base.processes.clone(),
            lookalikes: base.lookalikes.clone(),
            cluster: base.cluster.clone(),
            flannel: base.flannel.clone(),
            ..self
        }
    }

    /// The text of a captured configuration file; `path` is its path on the node.
    pub fn file(&self, path: &str) -> Option<&str> {
        self.files.get(&format!("files{path}")).map(|text| &**text)
    }

    /// The sysctls; `None` if they were not captured.
    pub fn sysctls(&self) -> Option<Sysctls> {
        const FILE: &str = "sysctl.txt";
        Sysctls::parse(FILE, self.files.get(FILE)?).ok()
    }

    /// The nf_tables tables that no iptables-nft wrote.
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

/// Whether a file is there that is captured only because an argument of kube-proxy names it. Then
/// kube-proxy ran, and a list of processes that is not there was lost.
fn names_a_process(files: &Files) -> bool {
    let mut configuration = files.iter().filter(|(name, _)| name.starts_with("files/"));
    configuration.any(|(_, text)| text.contains("kind: KubeProxyConfiguration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(files: &[(&str, &str)]) -> NodeState {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).into()));
        NodeState::parse(files.collect()).unwrap()
    }

    #[test]
    fn a_capture_without_a_list_of_processes_found_none() {
        let tools = ("tools.txt", "kernel 6.1\n");
        let config = ("files/c.conf", "apiVersion: a\nkind: KubeProxyConfiguration\n");
        assert_eq!(state(&[tools]).processes, Some(vec![]));
        assert_eq!(state(&[tools, config]).processes, None, "kube-proxy named that file");
        assert_eq!(state(&[("sysctl.txt", "a = 1\n")]).processes, None, "not all was captured");
        assert_eq!(state(&[("processes.json", "[]")]).processes, Some(vec![]));
        assert_eq!(state(&[tools, ("processes.json", "null\n")]).processes, None, "unseen");
    }

    #[test]
    fn owners_are_taken_over_and_objects_are_not() {
        let processes = r#"[{"pid": 7, "name": "kube-proxy", "args": ["kube-proxy"]}]"#;
        let save = |rule: &str| format!("*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT {rule}\nCOMMIT\n");
        let base = state(&[
            ("iptables-nft.save", &save("-j RETURN")),
            ("sysctl.txt", "a = 1\n"),
            ("processes.json", processes),
            ("files/etc/cni/net.d/a.conf", "{}"),
        ]);
        let (rules, sysctls) = (save("-j ACCEPT"), "a = 2\n");
        let now = state(&[("iptables-nft.save", &rules), ("sysctl.txt", sysctls)]);
        assert_eq!(now.processes, None);
        let now = now.with_owners_of(&base);
        assert_eq!(now.processes, base.processes);
        assert_eq!(now.file("/etc/cni/net.d/a.conf"), Some("{}"));
        let parsed_again = NodeState::parse(now.files.clone()).unwrap();
        assert_eq!(parsed_again.processes, base.processes);
        assert_eq!(
            (&*now.files["iptables-nft.save"], &*now.files["sysctl.txt"]),
            (&*rules, sysctls)
        );
        assert_eq!(now.fingerprint(), state(&[("iptables-nft.save", &rules)]).fingerprint());
    }
}
