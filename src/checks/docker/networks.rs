//! Docker's bridge networks, docker's options for them, and whether an earlier rule takes their
//! packets before docker's masquerade rule does.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use crate::checks::Facts;
use crate::owners::liveness::{self, Liveness};
use crate::state::ruleset::{Chain, Rule, Ruleset, Table};
use crate::state::{Family, NodeState, RulesetId};

/// Docker's name in the catalogue.
pub(super) const DOCKER: &str = "docker";
/// The file with docker's options.
const CONFIG: &str = "/etc/docker/daemon.json";

/// A bridge of docker, with its IPv4 network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BridgeNetwork {
    pub(super) name: String,
    pub(super) network: Ipv4Net,
    /// The links that the node's default routes lead through.
    default_links: Vec<String>,
}

impl BridgeNetwork {
    /// The masquerade rule that docker writes for the bridge.
    pub(super) fn masquerade(&self) -> String {
        format!("-A POSTROUTING -s {} ! -o {} -j MASQUERADE", self.network, self.name)
    }
}

/// When the checks of docker's masquerade rules apply, in words.
pub(super) const WHEN: &str =
    "there is a docker bridge with an IPv4 network, or the links are not known";

/// Whether the checks of docker's masquerade rules apply.
pub(super) fn applies(facts: &Facts<'_>) -> bool {
    facts.now.links.is_empty() || !bridges(facts.now).is_empty()
}

/// The data that a state lacks and that the checks of docker's masquerade rules need; `None` if the
/// state has all of it. Where docker writes `by_nftables`, the rules of iptables are not needed.
pub(super) fn missing(state: &NodeState, by_nftables: bool) -> Option<&'static str> {
    if state.links.is_empty() {
        return Some("the links are not in this state");
    }
    let lacks_rules = !by_nftables && v4(state).next().is_none();
    lacks_rules.then_some("the IPv4 rules are not in this state")
}

/// True if the state has neither rules of iptables for IPv4 nor native tables, so that none were
/// captured.
pub(super) fn no_rules(state: &NodeState) -> bool {
    v4(state).next().is_none() && state.native_tables().is_empty()
}

/// The bridges that have one of docker's names and an IPv4 network.
pub(super) fn bridges(state: &NodeState) -> Vec<BridgeNetwork> {
    let docker = |name: &str| {
        name == "docker0"
            || name == "docker_gwbridge"
            || name
                .strip_prefix("br-")
                .is_some_and(|id| id.len() == 12 && id.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let links = state.links.iter();
    let links = links.filter(|l| l.kind.as_deref() == Some("bridge") && docker(&l.name));
    let networks = links.flat_map(|l| l.networks().into_iter().map(|n| (l.name.clone(), n)));
    let default = state.routes.iter().filter(|r| r.dst == "default" || r.dst == "0.0.0.0/0");
    let out: Vec<String> = default.filter_map(|r| r.dev.clone()).collect();
    let v4 = |(name, net): (String, IpNet)| match net {
        IpNet::V4(network) if network.prefix_len() < 32 => {
            Some(BridgeNetwork { name, network, default_links: out.clone() })
        }
        _ => None,
    };
    networks.filter_map(v4).collect()
}

/// Whether docker is alive on the node.
pub(super) fn docker_liveness(facts: &Facts<'_>) -> Liveness {
    match facts.catalogue.component(DOCKER) {
        Some(component) => liveness::liveness(component, facts.now),
        None => Liveness::Unknown("docker is not in the catalogue".into()),
    }
}

/// The setting that stops docker from writing iptables rules, if it is set.
pub(super) fn no_iptables(state: &NodeState) -> Option<String> {
    disabled_by(state, "iptables")
}

/// The setting that stops docker from masquerading docker0, if it is set.
pub(super) fn no_masquerade(state: &NodeState) -> Option<String> {
    disabled_by(state, "ip-masq")
}

/// The file or command line that sets docker's option `option` to `false`.
fn disabled_by(state: &NodeState, option: &str) -> Option<String> {
    option_of(state, option).filter(|(value, _)| value == "false").map(|(_, shown)| shown)
}

/// The value of docker's option `option`, and the file or command line that sets it; none if neither
/// does.
pub(super) fn option_of(state: &NodeState, option: &str) -> Option<(String, String)> {
    let config = state.file(CONFIG).and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(value) = config.as_ref().and_then(|config| config.get(option)) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return Some((text, format!("{CONFIG}: \"{option}\": {value}")));
    }
    let dockerd = state.processes.iter().flatten().find(|p| p.name == "dockerd")?;
    let mut args = dockerd.args.iter();
    while let Some(arg) = args.next() {
        let Some(rest) = arg.strip_prefix("--").and_then(|flag| flag.strip_prefix(option)) else {
            continue;
        };
        let value = match (rest.strip_prefix('='), rest) {
            (Some(value), _) => value.to_owned(),
            (None, "") => args.next()?.clone(),
            _ => continue,
        };
        return Some((value.clone(), format!("dockerd --{option}={value}")));
    }
    None
}

/// True if the bridge is that of an internal network. Such a network is isolated on purpose: docker
/// drops all packets that come to the bridge's containers from other networks.
pub(super) fn is_internal(state: &NodeState, bridge: &BridgeNetwork) -> bool {
    v4(state).any(|(_, ruleset)| {
        let rules = ruleset.table("filter").into_iter().flat_map(Table::rules);
        rules.filter(|(c, ..)| c.name.starts_with("DOCKER-")).any(|(_, _, rule)| {
            let words = ruleset.words(rule);
            let is = |option: &str, wanted: (bool, &str)| {
                words.value(option).is_some_and(|(n, v)| (n, &*v) == wanted)
            };
            rule.target.as_deref() == Some("DROP")
                && is("-s", (true, &bridge.network.to_string()))
                && is("-o", (false, &bridge.name))
        })
    })
}

/// The IPv4 rulesets of both backends, each with its id.
pub(super) fn v4(state: &NodeState) -> impl Iterator<Item = (RulesetId, &Ruleset)> {
    let v4 = state.rulesets.iter().filter(|(id, _)| id.family == Family::Ipv4);
    v4.map(|(id, ruleset)| (*id, ruleset))
}

/// The chain nat POSTROUTING of a ruleset, with its table.
pub(super) fn postrouting(ruleset: &Ruleset) -> Option<(&Table, &Chain)> {
    let nat = ruleset.table("nat")?;
    Some((nat, nat.chain("POSTROUTING")?))
}

/// True if the rule masquerades, or translates by SNAT, packets that leave the bridge's network.
pub(super) fn translates(ruleset: &Ruleset, rule: &Rule, bridge: &BridgeNetwork) -> bool {
    let words = ruleset.words(rule);
    let from = match words.value("-s") {
        Some((false, net)) => net.parse::<Ipv4Net>().is_ok_and(|n| n.contains(&bridge.network)),
        _ => false,
    };
    let away = match words.value("-o") {
        None => true,
        Some((negated, link)) => negated && link == bridge.name,
    };
    let narrow = |option: &str| {
        !matches!(option, "-s" | "-o" | "-j" | "--random-fully" | "--to-source" | "--comment")
    };
    let narrower = words.terms().iter().any(|t| narrow(t.option) && t.value() != "comment");
    matches!(rule.target.as_deref(), Some("MASQUERADE" | "SNAT")) && from && away && !narrower
}

/// Whether a rule matches none, some or all of the packets that a bridge's containers send to other
/// networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    /// Only some of the packets: those to some destinations, or those selected by a match that
    /// [`takes`] does not evaluate.
    Some,
    All,
}

/// True if no later nat rule sees the packets that the bridge's containers send to other networks,
/// or those of one protocol, because this rule accepts them or returns.
pub(super) fn ends(ruleset: &Ruleset, table: &Table, rule: &Rule, bridge: &BridgeNetwork) -> bool {
    if takes(ruleset, rule, bridge) != Takes::All {
        return false;
    }
    match rule.target.as_deref() {
        Some("RETURN" | "ACCEPT") => true,
        Some(target) => table.chain(target).is_some_and(|c| accepts(ruleset, table, c, bridge, 0)),
        None => false,
    }
}

/// True if the chain accepts every packet that the bridge's containers send to other networks, or
/// every such packet of one protocol.
fn accepts(
    r: &Ruleset,
    table: &Table,
    chain: &Chain,
    bridge: &BridgeNetwork,
    depth: usize,
) -> bool {
    // The kernel refuses loops of chains, but a captured file may contain such a loop.
    if depth > 8 {
        return false;
    }
    let leads =
        |target: &str| table.chain(target).is_some_and(|c| accepts(r, table, c, bridge, depth + 1));
    for rule in chain.rules.iter().filter(|rule| takes(r, rule, bridge) == Takes::All) {
        match rule.target.as_deref() {
            Some("ACCEPT") => return true,
            Some("RETURN" | "MASQUERADE" | "SNAT") => return false,
            Some(target) if leads(target) => return true,
            _ => {}
        }
    }
    false
}

fn takes(ruleset: &Ruleset, rule: &Rule, bridge: &BridgeNetwork) -> Takes {
    let mut takes = Takes::All;
    for term in ruleset.words(rule).terms() {
        let value = term.value();
        let not = term.negated;
        let one = match term.option {
            "-s" => of_source(value, not, bridge),
            "-d" => of_destination(value, not),
            // Packets that leave through the bridge (`-o BRIDGE`) go to the bridge's containers,
            // not to other networks.
            "-o" if !not && value == bridge.name => Takes::Nothing,
            "-o" if !not && !bridge.default_links.iter().any(|w| w == value) => Takes::Some,
            "-o" | "-p" | "--comment" | "-j" | "-g" => Takes::All,
            // `-m` with the name of a protocol, or `-m comment`, excludes no packet by itself.
            "-m" if ["comment", "tcp", "udp", "sctp"].contains(&value) => Takes::All,
            "--random-fully" | "--to-source" => Takes::All,
            _ => Takes::Some,
        };
        takes = match (takes, one) {
            (Takes::Nothing, _) | (_, Takes::Nothing) => Takes::Nothing,
            (Takes::Some, _) | (_, Takes::Some) => Takes::Some,
            _ => Takes::All,
        };
    }
    takes
}

fn of_source(value: &str, not: bool, bridge: &BridgeNetwork) -> Takes {
    let Some(net) = network(value) else { return Takes::Some };
    let (covers, within) = (net.contains(&bridge.network), bridge.network.contains(&net));
    match (covers, within, not) {
        (true, _, false) | (false, false, true) => Takes::All,
        (true, _, true) | (false, false, false) => Takes::Nothing,
        _ => Takes::Some,
    }
}

fn of_destination(value: &str, not: bool) -> Takes {
    match network(value) {
        Some(net) if net.prefix_len() == 0 && !not => Takes::All,
        // `! -d NETWORK` excludes one network, so the rule still matches nearly all packets.
        Some(net) if not && net.prefix_len() > 0 => Takes::All,
        _ => Takes::Some,
    }
}

fn network(value: &str) -> Option<Ipv4Net> {
    let host = |_| value.parse::<Ipv4Addr>().map(Ipv4Net::from);
    value.parse::<Ipv4Net>().or_else(host).ok()
}
