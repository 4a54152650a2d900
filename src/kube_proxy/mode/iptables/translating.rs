//! The rules of iptables mode that translate connections to some service ports, without those of all
//! others.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::services::host;
use crate::kube_proxy::services::{Location, ServiceKey, protocol};
use crate::state::rule::Words;
use crate::state::ruleset::{Chain, Rule, Ruleset, Table};
use crate::state::{Family, NodeState};

/// The chains of which each rule is for a service port, or jumps to the other.
const DISPATCHING: [&str; 2] = ["KUBE-SERVICES", "KUBE-NODEPORTS"];

/// The tables nat with kube-proxy's rules for `ports`.
pub(super) fn rules(state: &NodeState, ports: &BTreeSet<ServiceKey>) -> NodeState {
    let nats = state.rulesets.iter().filter_map(|(id, ruleset)| {
        let table = ruleset.table("nat").filter(|nat| nat.chain(DISPATCHING[0]).is_some())?;
        let text = Nat { ruleset, table, family: id.family, ports }.text();
        Some((*id, Ruleset::parse("nat", text.into()).ok()?))
    });
    NodeState { rulesets: nats.collect(), ..NodeState::default() }
}

struct Nat<'a> {
    ruleset: &'a Ruleset,
    table: &'a Table,
    family: Family,
    ports: &'a BTreeSet<ServiceKey>,
}

impl<'a> Nat<'a> {
    /// The table as iptables-restore reads it: the chains that built-in chains lead to.
    fn text(&self) -> String {
        let mut chains: Vec<&Chain> =
            self.table.chains.iter().filter(|chain| chain.is_built_in()).collect();
        let mut reached: BTreeSet<&str> = chains.iter().map(|chain| &*chain.name).collect();
        let (mut declared, mut appended) = (String::new(), String::new());
        while let Some(chain) = chains.pop() {
            let policy = if chain.is_built_in() { "ACCEPT" } else { "-" };
            // Writing to a string does not fail.
            let _ = writeln!(declared, ":{} {policy} [0:0]", chain.name);
            for rule in chain.rules.iter().filter(|rule| self.is_kept(chain, rule)) {
                let _ = writeln!(appended, "{}", self.ruleset.rule_text(rule));
                let target = rule.target.as_deref().and_then(|target| self.table.chain(target));
                chains.extend(target.filter(|target| reached.insert(&target.name)));
            }
        }
        format!("*nat\n{declared}{appended}COMMIT\n")
    }

    /// Of built-in chains kube-proxy's own jumps are kept, of those that dispatch the wanted ports.
    fn is_kept(&self, chain: &Chain, rule: &Rule) -> bool {
        if chain.is_built_in() {
            return rule.target.as_deref().is_some_and(|target| target.starts_with("KUBE-"));
        }
        !DISPATCHING.contains(&&*chain.name) || self.is_wanted(self.ruleset.words(rule))
    }

    /// Whether a rule is for no port, or may be for one of the wanted.
    fn is_wanted(&self, words: Words<'a>) -> bool {
        let Some((_, port)) = words.value("--dport") else { return true };
        let own_protocol = words.value("-p").and_then(|(_, name)| protocol(&name));
        let (Ok(port), Some(protocol)) = (port.parse(), own_protocol) else { return true };
        // A network is no service's: NodePorts on 127.0.0.0/8 have a rule of their own.
        let address = words.value("-d").filter(|(negated, _)| !negated);
        let location = match address.and_then(|(_, address)| host(&address)) {
            Some(address) => Location::Address(address),
            None => Location::Node(self.family),
        };
        self.ports.contains(&ServiceKey { location, port, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ipvs::Protocol;
    use crate::state::{Backend, RulesetId};

    const SAVE: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SEP-B - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:KUBE-SVC-B - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A PREROUTING -j DOCKER
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m tcp --dport 30001 -j KUBE-SVC-A
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30001 -j KUBE-SVC-A
-A KUBE-NODEPORTS -p tcp -m tcp --dport 30002 -j KUBE-SVC-B
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.1:80
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.1.2:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -d 10.96.0.2/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-B
-A KUBE-SERVICES -d 10.96.0.2/32 -p udp -m udp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-A ! -s 10.244.0.0/16 -p tcp -m tcp -j KUBE-MARK-MASQ
-A KUBE-SVC-A -j KUBE-SEP-A
-A KUBE-SVC-B -j KUBE-SEP-B
COMMIT
";

    #[test]
    fn what_the_wanted_ports_need_is_kept_and_nothing_else() {
        let id = RulesetId { family: Family::Ipv4, backend: Backend::Nft };
        let whole = Ruleset::parse("nat", SAVE.into()).unwrap();
        let lines: BTreeSet<String> = whole.lines().map(str::to_owned).collect();
        let state = NodeState { rulesets: [(id, whole)].into(), ..NodeState::default() };
        let port = |location, port| ServiceKey { location, port, protocol: Protocol::Tcp };
        let gone = |ports: [ServiceKey; 1]| {
            let kept = rules(&state, &ports.into());
            let kept: BTreeSet<String> = kept.rulesets[&id].lines().map(str::to_owned).collect();
            assert!(kept.is_subset(&lines), "{kept:?}");
            let gone = lines.difference(&kept).filter(|line| line.starts_with("-A"));
            let words = |line: &String| line.replace("-A ", "").replace(" -m tcp", "");
            gone.map(words).collect::<Vec<_>>().join("\n")
        };
        let others = "DOCKER -p tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80\n";
        let node_ports = "KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp --dport 30001 -j KUBE-SVC-A\n\
            KUBE-NODEPORTS -p tcp --dport 30001 -j KUBE-SVC-A\n\
            KUBE-NODEPORTS -p tcp --dport 30002 -j KUBE-SVC-B\n";
        let udp = "KUBE-SERVICES -d 10.96.0.2/32 -p udp -m udp --dport 80 -j KUBE-SVC-A\n";
        let rest = "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n\
            PREROUTING -j DOCKER";
        let b = "KUBE-SERVICES -d 10.96.0.2/32 -p tcp --dport 80 -j KUBE-SVC-B\n";
        let (own_b, sep_b) = (
            "KUBE-SVC-B -j KUBE-SEP-B\n",
            "KUBE-SEP-B -p tcp -j DNAT --to-destination 10.244.1.2:80\n",
        );
        assert_eq!(
            gone([port(Location::Address("10.96.0.1".parse().unwrap()), 80)]),
            [others, node_ports, sep_b, b, udp, own_b, rest].concat()
        );
        let a = "KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 80 -j KUBE-SVC-A\n";
        assert_eq!(
            gone([port(Location::Node(Family::Ipv4), 30001)]),
            [
                others,
                "KUBE-NODEPORTS -p tcp --dport 30002 -j KUBE-SVC-B\n",
                sep_b,
                a,
                b,
                udp,
                own_b,
                rest
            ]
            .concat()
        );
    }
}
