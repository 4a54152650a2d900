//! The host's own firewall: chains that drop what no rule accepts, and whether rules that are not
//! kube-proxy's accept a kind of traffic before that.

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::Facts;
use crate::owners::component::KUBE_PROXY;
use crate::state::RulesetId;
use crate::state::ipvs::Protocol;
use crate::state::nft::NftTable;
use crate::state::rule::Term;
use crate::state::ruleset::{Chain, Rule, Ruleset, Table};

/// The greatest depth to which chains are followed.
const DEPTH: usize = 4;

/// Options of a rule that are no condition.
const NO_CONDITION: [&str; 6] = ["-m", "--comment", "-j", "-g", "--reject-with", "-c"];

/// Where packets pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetfilterHook {
    /// Packets to the node itself.
    Input,
    /// Packets through the node.
    Forward,
}

impl NetfilterHook {
    /// The chain that iptables has there.
    fn chain(self) -> &'static str {
        match self {
            NetfilterHook::Input => "INPUT",
            NetfilterHook::Forward => "FORWARD",
        }
    }

    fn nft(self) -> &'static str {
        match self {
            NetfilterHook::Input => "input",
            NetfilterHook::Forward => "forward",
        }
    }
}

/// A built-in chain that drops or rejects what none of its first rules accepts.
pub(super) struct ClosedChain<'a> {
    pub(super) id: RulesetId,
    pub(super) ruleset: &'a Ruleset,
    pub(super) table: &'a Table,
    pub(super) chain: &'a Chain,
    /// How many of the chain's rules come before it closes; packets reach no other.
    open: usize,
}

/// A kind of new connections. A part that is none may be anything.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Traffic {
    pub(super) source: Option<IpNet>,
    pub(super) destination: Option<IpNet>,
    pub(super) port: Option<(Protocol, u16)>,
}

/// Whether rules that are not kube-proxy's accept some traffic. The string shows a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Acceptance {
    Accepted(String),
    /// A pod network accepts by conditions whose extent the rules do not show, such as a mark.
    Unclear(String),
    Dropped,
}

/// The closed chains of iptables, in both backends and families.
pub(super) fn closed_chains<'a>(facts: &Facts<'a>, hook: NetfilterHook) -> Vec<ClosedChain<'a>> {
    let closed = |(id, ruleset): (&RulesetId, &'a Ruleset)| {
        let table = ruleset.table("filter")?;
        let chain = table.chain(hook.chain())?;
        let last = chain.rules.iter().position(|rule| closes(ruleset, rule));
        let open =
            last.or((chain.policy.as_deref() == Some("DROP")).then_some(chain.rules.len()))?;
        Some(ClosedChain { id: *id, ruleset, table, chain, open })
    };
    facts.now.rulesets.iter().filter_map(closed).collect()
}

/// Whether a rule drops or rejects every packet that reaches it.
fn closes(ruleset: &Ruleset, rule: &Rule) -> bool {
    matches!(rule.target.as_deref(), Some("DROP" | "REJECT"))
        && conditions(&ruleset.words(rule).terms()).next().is_none()
}

/// The terms of a rule that a packet must fulfil.
fn conditions<'t, 'a>(terms: &'t [Term<'a>]) -> impl Iterator<Item = &'t Term<'a>> {
    terms.iter().filter(|term| !NO_CONDITION.contains(&term.option))
}

impl ClosedChain<'_> {
    /// What closes the chain, as evidence.
    pub(super) fn shown(&self) -> String {
        let (id, name) = (self.id, &self.chain.name);
        match self.chain.rules.get(self.open) {
            Some(rule) if self.open + 1 == self.chain.rules.len() => {
                format!("{id} filter, last rule: {}", self.ruleset.rule_text(rule))
            }
            Some(rule) => format!("{id} filter: {}", self.ruleset.rule_text(rule)),
            None => {
                let packets = self.chain.counters.map_or(0, |counters| counters.packets);
                let counted = match packets {
                    0 => String::new(),
                    packets => format!(", which dropped {packets} packets"),
                };
                format!("{id} filter: the policy of {name} is DROP{counted}")
            }
        }
    }

    /// The program that writes such rules: `iptables-nft`.
    pub(super) fn tool(&self) -> String {
        format!("{}-{}", self.id.family.tool(), self.id.backend)
    }

    /// The rules that packets reach before the chain closes.
    fn rules(&self) -> &[Rule] {
        &self.chain.rules[..self.open]
    }

    /// Whether packets reach the chain `target` before this one closes.
    pub(super) fn leads_to(&self, target: &str) -> bool {
        self.rules().iter().any(|rule| rule.target.as_deref() == Some(target))
    }

    /// Whether rules of others accept new connections of this kind.
    pub(super) fn accepts(&self, facts: &Facts<'_>, traffic: &Traffic) -> Acceptance {
        let rules = self.accepting(facts);
        let fits = |rule: &&AcceptingRule<'_>| {
            rule.conditions.iter().all(|condition| traffic.fulfils(condition))
        };
        if let Some(rule) = rules.iter().find(fits) {
            return Acceptance::Accepted(rule.text.to_owned());
        }
        let unclear = rules.iter().find(|rule| rule.of_pod_network && !rule.is_plain());
        unclear.map_or(Acceptance::Dropped, |rule| Acceptance::Unclear(rule.text.to_owned()))
    }

    /// Whether rules of others accept the packets of every established connection.
    pub(super) fn accepts_replies(&self, facts: &Facts<'_>) -> bool {
        self.accepting(facts)
            .iter()
            .any(|rule| rule.conditions.iter().all(|term| has_state(term, "ESTABLISHED")))
    }

    /// The rules of others that accept, of this chain and of those that it leads to.
    fn accepting(&self, facts: &Facts<'_>) -> Vec<AcceptingRule<'_>> {
        let mut found = Vec::new();
        self.collect(facts, self.chain, self.open, &[], &mut found, DEPTH);
        found
    }

    fn collect<'s>(
        &'s self,
        facts: &Facts<'_>,
        chain: &'s Chain,
        open: usize,
        before: &[Term<'s>],
        found: &mut Vec<AcceptingRule<'s>>,
        depth: usize,
    ) {
        for (position, rule) in chain.rules.iter().take(open).enumerate() {
            let Some(target) = rule.target.as_deref() else { continue };
            let owner = facts.ownership.rule(self.id, &self.table.name, &chain.name, position);
            let owner = owner.map_or("", |owner| owner.name);
            let next = self.table.chain(target).filter(|_| depth > 0);
            if owner == KUBE_PROXY || (target != "ACCEPT" && next.is_none()) {
                continue;
            }
            let terms = self.ruleset.words(rule).terms();
            let own = conditions(&terms).cloned();
            let conditions: Vec<Term<'_>> = before.iter().cloned().chain(own).collect();
            if let Some(next) = next {
                self.collect(facts, next, next.rules.len(), &conditions, found, depth - 1);
                continue;
            }
            let of_pod_network = facts.catalogue.component(owner).is_some_and(|c| c.cni);
            let text = self.ruleset.rule_text(rule);
            found.push(AcceptingRule { conditions, of_pod_network, text });
        }
    }
}

/// A rule that accepts, with its own conditions and those of the jumps to it.
struct AcceptingRule<'a> {
    conditions: Vec<Term<'a>>,
    of_pod_network: bool,
    text: &'a str,
}

impl AcceptingRule<'_> {
    /// Whether all conditions are of a kind that [`Traffic::fulfils`] can decide.
    fn is_plain(&self) -> bool {
        let plain = ["-s", "-d", "-p", "--dport", "--dports", "--ctstate", "--state"];
        self.conditions.iter().all(|term| !term.negated && plain.contains(&term.option))
    }
}

/// Whether a condition of a rule holds for every packet in conntrack's state `state`.
fn has_state(term: &Term<'_>, state: &str) -> bool {
    ["--ctstate", "--state"].contains(&term.option)
        && !term.negated
        && term.value().split(',').any(|named| named == state)
}

impl Traffic {
    /// Whether every such connection fulfils the condition as it begins.
    fn fulfils(&self, condition: &Term<'_>) -> bool {
        let lies_in = |network: Option<IpNet>| {
            let within: Option<IpNet> = condition.value().parse().ok();
            within.zip(network).is_some_and(|(within, network)| within.contains(&network))
        };
        let fits = |ports: &str| {
            let (first, last) = ports.split_once(':').unwrap_or((ports, ports));
            let range = first.parse::<u16>().ok().zip(last.parse::<u16>().ok());
            let port = self.port.map(|(_, port)| port);
            range.zip(port).is_some_and(|((first, last), port)| (first..=last).contains(&port))
        };
        if condition.negated {
            return false;
        }
        match condition.option {
            "-s" => lies_in(self.source),
            "-d" => lies_in(self.destination),
            "-p" => {
                self.port.is_some_and(|(protocol, _)| protocol.to_string() == condition.value())
            }
            "--dport" => fits(condition.value()),
            "--dports" => condition.value().split(',').any(fits),
            _ => has_state(condition, "NEW"),
        }
    }
}

/// A base chain of a native table that drops what its rules do not accept.
pub(super) struct ClosedNativeChain {
    /// What closes it, as evidence.
    pub(super) shown: String,
    /// Whether a rule of it accepts more than established connections and those of `lo`. What it
    /// accepts is not judged here.
    pub(super) accepts_some: bool,
}

/// The closed chains of native tables that are not kube-proxy's.
pub(super) fn closed_native_chains(
    facts: &Facts<'_>,
    hook: NetfilterHook,
) -> Vec<ClosedNativeChain> {
    let text = |object: &Map<String, Value>, key: &str| {
        object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let mut found = Vec::new();
    for table in facts.now.native_tables() {
        for chain in table.of_kind("chain").filter(|c| text(c, "hook") == hook.nft()) {
            let name = text(chain, "name");
            let shown = |what: &str| format!("nft table {} {}: {what}", table.family, table.name);
            let rules = || table.of_kind("rule").filter(|rule| text(rule, "chain") == name);
            let last = rules().last().and_then(|rule| rule.get("expr")?.as_array());
            let shown = if text(chain, "policy") == "drop" {
                shown(&format!("the policy of {name} is drop"))
            } else if last.is_some_and(|parts| parts.iter().all(ends_or_counts)) {
                shown(&format!("the last rule of {name} drops or rejects everything"))
            } else {
                continue;
            };
            let accepts_some = accepts_some(table, &name);
            found.push(ClosedNativeChain { shown, accepts_some });
        }
    }
    found
}

/// Whether a part of a rule drops, rejects, counts or logs. A rule of such parts alone closes its
/// chain, if it ends it.
fn ends_or_counts(part: &Value) -> bool {
    ["drop", "reject", "counter", "log"].iter().any(|key| part.get(key).is_some())
}

/// Whether a rule of the chain accepts, or leads to a chain that may, anything but established
/// connections and those of `lo`.
fn accepts_some(table: &NftTable, chain: &str) -> bool {
    let is_narrow = |part: &Value| {
        let left = &part["match"]["left"];
        left["ct"]["key"] == "state" && !part["match"]["right"].to_string().contains("new")
            || left["meta"]["key"].as_str().is_some_and(|key| key.starts_with("iif"))
                && part["match"]["right"] == "lo"
    };
    let leads = ["accept", "jump", "goto", "vmap", "queue"];
    table.of_kind("rule").filter(|rule| rule.get("chain").is_some_and(|c| c == chain)).any(|rule| {
        let parts = rule.get("expr").and_then(Value::as_array).map_or(&[][..], |parts| parts);
        parts.iter().any(|part| leads.iter().any(|key| part.get(key).is_some()))
            && !parts.iter().any(is_narrow)
    })
}

/// The evidence that firewalld runs.
pub(super) fn firewalld(facts: &Facts<'_>) -> Option<String> {
    let mut processes = facts.now.processes.iter().flatten();
    let process = processes.find(|p| p.name == "firewalld")?;
    Some(format!("firewalld runs (process {})", process.pid))
}

/// The pod networks that kube-proxy's configuration names.
pub(super) fn pod_networks(facts: &Facts<'_>) -> Vec<IpNet> {
    facts.settings.iter().flat_map(|s| s.cluster_cidrs.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given};

    const FILE: &str = "iptables-nft.save";
    const PODS: &str = "192.168.64.0/20";

    /// The judgement about new connections to pods, in a closed FORWARD with these rules.
    fn accepted(rules: &str) -> (Acceptance, bool) {
        let save = format!("*filter\n:FORWARD DROP [0:0]\n:MINE - [0:0]\n{rules}COMMIT\n");
        let state = Node::captured("docker-iptables-1.30").put(FILE, &save).state();
        given(&state).facts(|facts| {
            let chains = closed_chains(facts, NetfilterHook::Forward);
            let traffic =
                Traffic { destination: Some(PODS.parse().unwrap()), ..Traffic::default() };
            (chains[0].accepts(facts, &traffic), chains[0].accepts_replies(facts))
        })
    }

    #[test]
    fn rules_accept_what_fulfils_all_their_conditions() {
        for (rules, expected) in [
            ("-A FORWARD -j ACCEPT\n", true),
            ("-A FORWARD -d 192.168.0.0/16 -j ACCEPT\n", true),
            ("-A FORWARD -d 192.168.64.0/24 -j ACCEPT\n", false),
            ("-A FORWARD -s 192.168.0.0/16 -j ACCEPT\n", false),
            ("-A FORWARD ! -d 10.0.0.0/8 -j ACCEPT\n", false),
            ("-A FORWARD -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT\n", true),
            ("-A FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT\n", false),
            ("-A FORWARD -i docker0 -j ACCEPT\n", false),
            ("-A FORWARD -m comment --comment \"-d x\" -j MINE\n-A MINE -j ACCEPT\n", true),
            ("-A FORWARD -i eth1 -j MINE\n-A MINE -j ACCEPT\n", false),
            ("-A MINE -j ACCEPT\n", false),
            ("-A FORWARD -j DROP\n-A FORWARD -j ACCEPT\n", false),
            ("-A FORWARD -p tcp -j DROP\n-A FORWARD -j ACCEPT\n", true),
        ] {
            let found = accepted(rules).0;
            assert_eq!(matches!(found, Acceptance::Accepted(_)), expected, "{rules}: {found:?}");
        }
        assert!(accepted("-A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT\n").1);
        assert!(!accepted("-A FORWARD -d 10.0.0.0/8 -j ACCEPT\n").1);
        let calico = "-A FORWARD -m comment --comment \"cali:S93hcgKJrXEqnTfs\" \
                      -m mark --mark 0x10000/0x10000 -j ACCEPT\n";
        assert!(matches!(accepted(calico).0, Acceptance::Unclear(_)));
    }

    #[test]
    fn ports_are_accepted_alone_in_lists_and_in_ranges() {
        let accepted = |rule: &str| {
            let save = format!("*filter\n:INPUT DROP [0:0]\n-A INPUT {rule} -j ACCEPT\nCOMMIT\n");
            let state = Node::captured("docker-iptables-1.30").put(FILE, &save).state();
            given(&state).facts(|facts| {
                let traffic = Traffic { port: Some((Protocol::Tcp, 30080)), ..Traffic::default() };
                let chains = closed_chains(facts, NetfilterHook::Input);
                matches!(chains[0].accepts(facts, &traffic), Acceptance::Accepted(_))
            })
        };
        for rule in [
            "-p tcp -m tcp --dport 30080",
            "-p tcp -m tcp --dport 30000:32767",
            "-p tcp -m multiport --dports 22,30000:31000",
            "-p tcp -m conntrack --ctstate NEW",
        ] {
            assert!(accepted(rule), "{rule}");
        }
        for rule in ["-p udp --dport 30080", "-p tcp --dport 30081", "-s 10.0.0.0/8 -p tcp"] {
            assert!(!accepted(rule), "{rule}");
        }
    }

    #[test]
    fn native_chains_close_by_policy_or_by_their_last_rule() {
        let closed = |chain: &str, rules: &str| {
            let table = r#"{"table": {"family": "inet", "name": "f"}}"#;
            let chain = format!(
                r#"{{"chain": {{"family": "inet", "table": "f", "name": "fwd", "hook": "forward",
                   "type": "filter", "prio": 0, {chain}}}}}"#
            );
            let rules = rules.split('\n').filter(|r| !r.is_empty()).map(|expr| {
                format!(
                    r#",{{"rule": {{"family": "inet", "table": "f", "chain": "fwd", "expr": [{expr}]}}}}"#
                )
            });
            let text =
                format!(r#"{{"nftables": [{table}, {chain}{}]}}"#, rules.collect::<String>());
            let state = Node::captured("docker-iptables-1.30").put("nft.json", &text).state();
            given(&state).facts(|facts| {
                let chains = closed_native_chains(facts, NetfilterHook::Forward);
                assert!(closed_native_chains(facts, NetfilterHook::Input).is_empty());
                chains.first().map(|chain| chain.accepts_some)
            })
        };
        let (drop, open) = (r#""policy": "drop""#, r#""policy": "accept""#);
        let established = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}},
            "right": ["established", "related"]}}, {"accept": null}"#
            .replace('\n', " ");
        let jump = r#"{"jump": {"target": "x"}}"#;
        assert_eq!(closed(drop, ""), Some(false));
        assert_eq!(closed(drop, &established), Some(false));
        assert_eq!(closed(drop, jump), Some(true));
        assert_eq!(closed(open, jump), None);
        assert_eq!(closed(open, r#"{"counter": {}}, {"reject": {}}"#), Some(false));
    }
}
