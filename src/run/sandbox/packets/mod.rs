//! Sends packets through the bridge and through kube-proxy's own rules, and compares what becomes of
//! them.
//!
//! Both are loaded into a namespace of their own, kube-proxy's rules only for the service ports that
//! are tried: no filter of the node takes part, as it does not tell the two apart. Conntrack says of
//! each connection where it goes and with which source, so nobody has to answer.

mod cases;
mod network;
mod observe;
mod wire;

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::apply;
use crate::error::{Error, Kind, Result};
use crate::kube_proxy::bridge::{Bridge, PodSource};
use crate::kube_proxy::mode;
use crate::kube_proxy::services::{Location, ServiceKey};
use crate::node;
use crate::node::tools::{Tool, Tools};
use crate::run::sandbox::links::uplink;
use crate::run::sandbox::load::load;
use crate::run::sandbox::packet_probe::in_namespace;
use crate::state::kube_proxy::{IPVS_LINK, Mode};
use crate::state::{Family, NodeState};
use cases::{Case, Surroundings, cases, chosen};
use network::NODE;
use observe::{CaseObserver, CaseWays};
use wire::Senders;

/// How many connections of each case are tried while kube-proxy's own rules and the bridge are both
/// there.
const BESIDE: usize = 2;

/// The link of pods, where their addresses tell them.
const POD_LINK: &str = "ps-pod";

/// Packets to send, and kube-proxy's rules for them.
pub struct Trial {
    /// kube-proxy's rules for the service ports that are tried, and nothing else.
    rules: NodeState,
    cases: Vec<Case>,
    around: Vec<Surroundings>,
    pod_link: String,
    /// What is not tried, and why.
    untried: Vec<String>,
}

/// What came of a trial.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CarriedPackets {
    /// How many kinds of connections, a client to a frontend each, go as by kube-proxy's rules.
    pub carried: usize,
    /// How many were to be tried.
    pub all: usize,
    /// What could not be tried, and why.
    pub untried: Vec<String>,
}

impl Trial {
    /// The packets that show what the bridges of a node in this mode do, each from a kind of client to
    /// a kind of frontend.
    pub fn of(state: &NodeState, mode: Mode, bridges: &[Bridge]) -> Trial {
        let mut trial = Trial {
            rules: NodeState::default(),
            cases: Vec::new(),
            around: Vec::new(),
            pod_link: pod_link(bridges),
            untried: Vec::new(),
        };
        let mut ports: BTreeSet<ServiceKey> = BTreeSet::new();
        for bridge in bridges {
            let own = own_addresses(state, bridge.family);
            let Some(around) = Surroundings::of(bridge, own) else {
                trial.untried.push(format!("{}: no network is free", bridge.family));
                continue;
            };
            for one in chosen(bridge, &around.own) {
                let (frontend, _) = one;
                let locations =
                    [Location::Address(frontend.address), Location::Node(bridge.family)];
                ports.extend(locations.map(|location| ServiceKey {
                    location,
                    port: frontend.port,
                    protocol: frontend.protocol,
                }));
                trial.cases.extend(cases(bridge, &around, one));
            }
            trial.around.push(around);
        }
        match mode::of(mode).translating_rules(state, &ports) {
            Some(rules) => trial.rules = rules,
            None => {
                trial.cases.clear();
                trial.untried.push(format!("{mode} mode translates by more than rules"));
            }
        }
        trial
    }

    /// How many rules and objects of kube-proxy's are loaded.
    pub fn rules(&self) -> usize {
        let xtables: usize = self.rules.rulesets.values().map(|ruleset| ruleset.rule_count()).sum();
        xtables + self.rules.nft.tables.iter().map(|table| table.objects.len()).sum::<usize>()
    }

    /// The bridges as far as they are tried, as scripts of [`Bridge::script`]. The table of all frontends
    /// is of the same chains, and takes seconds to load where they are many.
    pub fn scripts(&self, bridges: &[Bridge]) -> Vec<(Family, String)> {
        let attempted: BTreeSet<_> = self.cases.iter().map(|case| case.frontend).collect();
        let part = |bridge: &Bridge| {
            let kept = bridge.frontends.iter().filter(|(frontend, _)| attempted.contains(frontend));
            let frontends =
                kept.map(|(frontend, backends)| (*frontend, backends.clone())).collect();
            let (pods, mark) = (bridge.pods.clone(), bridge.mark);
            (bridge.family, Bridge { family: bridge.family, mark, pods, frontends }.script())
        };
        bridges.iter().map(part).collect()
    }

    /// Sends the packets by kube-proxy's rules, by these with the bridges, and by the bridges alone.
    /// `bridges` are those of [`Trial::scripts`].
    ///
    /// # Errors
    /// [`Kind::Rehearsal`], naming the frontend and the client, if a packet goes elsewhere by the
    /// bridges than by kube-proxy's rules; or if the bridges translate while these are there.
    pub fn run(&self, bridges: &[(Family, String)], tools: &Tools) -> Result<CarriedPackets> {
        let all = self.cases.len();
        let nothing = |untried| CarriedPackets {
            carried: 0,
            all,
            untried: [&self.untried[..], untried].concat(),
        };
        if self.cases.is_empty() {
            return Ok(nothing(&[]));
        }
        network::make(&self.around, &self.pod_link, tools)?;
        let found = in_namespace(NODE, || self.observe(bridges, tools))?;
        network::remove(tools)?;
        match found? {
            Observed::Cases { by_rules, by_bridge, beside } => {
                self.judge(&by_rules, &by_bridge, &beside)
            }
            Observed::Nothing(cause) => Ok(nothing(&[cause])),
        }
    }

    /// Runs in the namespace of the node.
    fn observe(&self, bridges: &[(Family, String)], tools: &Tools) -> Result<Observed> {
        let unsupported = load(&self.rules, tools)?.into_names();
        if let Some(first) = unsupported.first() {
            return Ok(Observed::Nothing(format!("this kernel does not load {first}")));
        }
        self.keep_conntrack(tools)?;
        network::set_sysctls();
        let mut observer = CaseObserver::new(Senders::open()?, &self.around, self.cases.len())?;
        if let Some(cause) = observer.cannot_be() {
            return Ok(Observed::Nothing(cause));
        }
        let expected: Vec<_> = self.cases.iter().map(|case| case.expected.clone()).collect();
        let by_rules = observer.all(&self.cases, &expected)?;
        for (_, script) in bridges {
            apply::bridge::load(tools, script)?;
        }
        // What kube-proxy does not translate is no sign of a bridge that stands before it.
        let translated = self
            .cases
            .iter()
            .zip(&by_rules)
            .map(|(case, found)| !found.ways.is_empty() && !case.is_left_alone(&found.ways));
        let is_translated: Vec<bool> = translated.collect();
        observer.some(&self.cases, |at| if is_translated[at] { BESIDE } else { 0 })?;
        let mut beside = Vec::new();
        for (family, _) in bridges {
            beside.push((*family, node::bridge::translated(tools, *family)?.packets));
        }
        self.remove_rules(tools)?;
        let expected: Vec<_> = by_rules.iter().map(|found| found.ways.clone()).collect();
        let by_bridge = observer.all(&self.cases, &expected)?;
        Ok(Observed::Cases { by_rules, by_bridge, beside })
    }

    /// Keeps conntrack in each family, also where no rule translates: else a bridge that lacks a family
    /// could not be told from packets that do not pass.
    fn keep_conntrack(&self, tools: &Tools) -> Result<()> {
        let table = |around: &Surroundings| {
            format!(
                "table {} ps-conntrack {{\n chain watch {{\n type filter hook prerouting priority 0;\n \
                 ct state new accept\n}}\n}}\n",
                around.family.nft()
            )
        };
        let script: String = self.around.iter().map(table).collect();
        tools.command(Tool::Nft)?.args(["-f", "-"]).stdin(script).run().map(drop)
    }

    /// Removes kube-proxy's rules from the namespace.
    fn remove_rules(&self, tools: &Tools) -> Result<()> {
        for id in self.rules.rulesets.keys() {
            tools.command(Tool::Restore(*id))?.stdin("*nat\nCOMMIT\n").run()?;
        }
        for table in &self.rules.nft.tables {
            let words = ["delete", "table", &table.family, &table.name];
            tools.command(Tool::Nft)?.args(words).run()?;
        }
        Ok(())
    }

    fn judge(
        &self,
        by_rules: &[CaseWays],
        by_bridge: &[CaseWays],
        beside: &[(Family, u64)],
    ) -> Result<CarriedPackets> {
        let mut untried = BTreeSet::new();
        let (mut carried, mut all) = (0, self.cases.len());
        for (case, (rules, bridge)) in self.cases.iter().zip(by_rules.iter().zip(by_bridge)) {
            let nobody_saw = rules.ways.is_empty() && bridge.ways.is_empty();
            if nobody_saw && !case.expected.is_empty() {
                untried.insert(format!("{}: this kernel translates none of it", case.frontend));
            } else if case.is_left_alone(&rules.ways) {
                untried.insert(format!("{case}: kube-proxy leaves it alone, the bridge does not"));
            } else if case.is_elsewhere(&rules.ways) {
                all -= 1;
            } else if rules.ways != bridge.ways {
                let cause = format!("goes to {bridge}, and by kube-proxy's rules to {rules}");
                return Err(differs(case, cause));
            } else if case.has_affinity && rules.stays() && !bridge.stays() {
                let cause = "a client does not stay with its endpoint, as by kube-proxy's rules";
                return Err(differs(case, cause.into()));
            } else {
                carried += 1;
            }
        }
        if let Some((family, packets)) = beside.iter().find(|(_, packets)| *packets > 0) {
            let object = format!("the bridge of {family}");
            let cause = format!("translates {packets} connections that kube-proxy's rules are for");
            return Err(Error::new(Kind::Rehearsal, object, cause).hint("nothing was changed"));
        }
        let untried = self.untried.iter().cloned().chain(untried).collect();
        Ok(CarriedPackets { carried, all, untried })
    }
}

/// What was found of the cases, in their order.
enum Observed {
    Cases {
        by_rules: Vec<CaseWays>,
        by_bridge: Vec<CaseWays>,
        /// How many connections the bridge of each family translated while kube-proxy's rules were
        /// there.
        beside: Vec<(Family, u64)>,
    },
    /// Nothing can be found, for this reason.
    Nothing(String),
}

fn differs(case: &Case, cause: String) -> Error {
    let object = format!("the bridge: {case}");
    Error::new(Kind::Rehearsal, object, cause).hint("nothing was changed")
}

/// The name of a link whose clients are pods to kube-proxy.
fn pod_link(bridges: &[Bridge]) -> String {
    let named = bridges.iter().find_map(|bridge| match &bridge.pods {
        PodSource::Link(name) => Some(name.as_str()),
        _ => None,
    });
    match named.map(|name| (name, name.strip_suffix('*'))) {
        None => POD_LINK.to_owned(),
        Some((name, None)) => name.to_owned(),
        Some((_, Some(beginning))) => format!("{beginning}0"),
    }
}

/// The addresses of the node in a family, that of its uplink first. Without those that every namespace
/// has, and those of services.
fn own_addresses(state: &NodeState, family: Family) -> Vec<IpAddr> {
    let links = state.links.iter().filter(|link| link.name != IPVS_LINK);
    let first = uplink(state).map(|uplink| uplink.name);
    let (of_uplink, others): (Vec<_>, Vec<_>) =
        links.partition(|link| Some(&link.name) == first.as_ref());
    let all = of_uplink.into_iter().chain(others).flat_map(|link| &link.addresses);
    let own = all.map(ipnet::IpNet::addr).filter(|address| match address {
        IpAddr::V4(a) => !a.is_loopback(),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
    });
    let mut found = BTreeSet::new();
    own.filter(|address| Family::of(*address) == family && found.insert(*address)).collect()
}
