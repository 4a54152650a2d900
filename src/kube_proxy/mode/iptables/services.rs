//! Services, read from the chains of iptables mode: KUBE-SERVICES → KUBE-SVC-* → KUBE-SEP-* in nat,
//! and the rules in filter that refuse services without endpoints.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::chain_walk::{Walk, leads};
use crate::kube_proxy::mode::ServiceFilter;
use crate::kube_proxy::mode::rules::MARK_MASQ;
use crate::kube_proxy::reach::{NoEndpoint, Reach};
use crate::kube_proxy::services::{Location, ServiceKey, Services, StickyClients, protocol};
use crate::state::affinity::AffinityLists;
use crate::state::rule::{Term, Words};
use crate::state::ruleset::{Rule, Ruleset, Table};
use crate::state::{Family, NodeState};

/// The node's services that `wanted` accepts.
pub(super) fn read(state: &NodeState, wanted: &ServiceFilter<'_>) -> Services {
    let mut found = Services::new();
    for (id, ruleset) in &state.rulesets {
        for table in &ruleset.tables {
            match &*table.name {
                "nat" => translated(ruleset, table, id.family, wanted, &mut found),
                "filter" => refused(ruleset, table, id.family, wanted, &mut found),
                _ => continue,
            }
            let addresses = node_port_addresses(ruleset, table);
            let own = |key: &ServiceKey| key.location == Location::Node(id.family);
            for (_, service) in found.iter_mut().filter(|(key, _)| own(key)) {
                service.node_addresses.extend(&addresses);
            }
        }
    }
    found
}

/// Which endpoint each client of a service stays with: who is in the list of an endpoint that a rule
/// of the service asks, for no longer than that rule says. The first of these rules decides.
pub(super) fn sticky_clients(state: &NodeState, lists: &AffinityLists) -> StickyClients {
    let mut found = StickyClients::new();
    let all = state
        .rulesets
        .iter()
        .flat_map(|(id, ruleset)| ruleset.table("nat").map(|table| (id.family, ruleset, table)));
    for (family, ruleset, table) in all.filter(|_| !lists.recent.is_empty()) {
        for rule in rules(table, ["KUBE-SERVICES", "KUBE-NODEPORTS"]) {
            let Some(target) = rule.target.as_deref().filter(|t| leads(t)) else { continue };
            let Some(key) = key(&ruleset.words(rule).terms(), family) else { continue };
            for list in Walk::along(ruleset, table, target).lists {
                let clients = lists.recent.get(&list.name).into_iter().flatten();
                for client in clients.filter(|client| client.idle < list.timeout) {
                    let clients = found.entry(key).or_default();
                    clients.entry(client.address).or_insert(list.endpoint);
                }
            }
        }
    }
    found
}

/// Adds the services whose rules of the table nat lead to chains of endpoints.
fn translated(
    ruleset: &Ruleset,
    table: &Table,
    family: Family,
    wanted: &ServiceFilter<'_>,
    found: &mut Services,
) {
    // Up to 1.23, who is masqueraded is also written here, before the rule that leads on.
    let mut everyone = HashSet::new();
    for rule in rules(table, ["KUBE-SERVICES", "KUBE-NODEPORTS"]) {
        let marks = |to: &str| to == MARK_MASQ;
        let Some(target) = rule.target.as_deref().filter(|t| leads(t) || marks(t)) else {
            continue;
        };
        let words = ruleset.words(rule);
        let terms = words.terms();
        let Some(key) = key(&terms, family) else { continue };
        if marks(target) {
            if !terms.iter().any(|t| ["-s", "-i"].contains(&t.option)) {
                everyone.insert(key);
            }
            continue;
        }
        let name = name(words);
        if !wanted(&key, name.as_deref()) {
            continue;
        }
        let direct = match (everyone.contains(&key), is_external(&key, words)) {
            (true, _) => Reach::Everyone,
            (false, true) => Reach::Local { everywhere: None },
            (false, false) => Reach::Cluster,
        };
        let service = found.entry(key).or_default();
        service.name = service.name.take().or(name);
        Walk::along(ruleset, table, target).add_to(service, direct);
    }
}

/// Adds the services that the table filter refuses, or drops, for want of endpoints.
fn refused(
    ruleset: &Ruleset,
    table: &Table,
    family: Family,
    wanted: &ServiceFilter<'_>,
    found: &mut Services,
) {
    for rule in rules(table, ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"]) {
        let without = match rule.target.as_deref() {
            Some("REJECT") => NoEndpoint::Reject,
            Some("DROP") => NoEndpoint::Drop,
            _ => continue,
        };
        let words = ruleset.words(rule);
        let Some(key) = key(&words.terms(), family) else { continue };
        let name = name(words);
        if wanted(&key, name.as_deref()) {
            let service = found.entry(key).or_default();
            service.name = service.name.take().or(name);
            service.without = without;
        }
    }
}

/// The rules of two chains of a table.
fn rules<'a>(table: &'a Table, chains: [&str; 2]) -> impl Iterator<Item = &'a Rule> {
    let [one, other] = chains.map(|chain| table.chain(chain));
    one.into_iter().chain(other).flat_map(|chain| &chain.rules)
}

/// Whether a rule of KUBE-SERVICES or KUBE-NODEPORTS is for an address of the outside or of the node,
/// as its comment says.
fn is_external(key: &ServiceKey, words: Words<'_>) -> bool {
    key.address().is_none() || words.comments().first().is_some_and(|c| c.ends_with(" external IP"))
}

/// The addresses that NodePorts answer on; none if they answer on all of the node.
fn node_port_addresses(ruleset: &Ruleset, table: &Table) -> BTreeSet<IpAddr> {
    let rules = table.chain("KUBE-SERVICES").map_or(&[][..], |chain| &chain.rules);
    let jumps = rules.iter().filter(|r| r.target.as_deref() == Some("KUBE-NODEPORTS"));
    // The jump for all addresses of the node excludes ::1 in IPv6.
    let given = jumps.filter_map(|rule| ruleset.words(rule).value("-d"));
    given.filter(|(negated, _)| !negated).filter_map(|(_, address)| host(&address)).collect()
}

/// The endpoints of each KUBE-SVC chain, keyed by the service name in the chain's comments. Chains
/// that no rule jumps to count too, because a change of mode leaves such chains behind.
pub fn chains_by_name(state: &NodeState) -> BTreeMap<String, BTreeSet<SocketAddr>> {
    let mut found: BTreeMap<String, BTreeSet<SocketAddr>> = BTreeMap::new();
    for ruleset in state.rulesets.values() {
        let Some(table) = ruleset.table("nat") else { continue };
        for chain in table.chains.iter().filter(|c| c.name.starts_with("KUBE-SVC-")) {
            let Some(name) = chain.rules.iter().find_map(|r| name(ruleset.words(r))) else {
                continue;
            };
            let walk = Walk::along(ruleset, table, &chain.name);
            found.entry(name).or_default().extend(walk.backends);
        }
    }
    found
}

/// Whether NodePorts answer on 127.0.0.1 too, which the jump for all addresses of the node leaves out
/// where `localhostNodePorts` is false.
pub(super) fn serve_localhost(state: &NodeState) -> bool {
    let of_family = state.rulesets.iter().filter(|(id, _)| id.family == Family::Ipv4);
    let nats = of_family.filter_map(|(_, ruleset)| Some((ruleset, ruleset.table("nat")?)));
    let mut jumps = nats.flat_map(|(ruleset, nat)| {
        let rules = nat.chain("KUBE-SERVICES").into_iter().flat_map(|chain| &chain.rules);
        rules.filter(|r| r.target.as_deref() == Some("KUBE-NODEPORTS")).map(|r| ruleset.words(r))
    });
    jumps.any(|words| {
        words.value("-d").is_none_or(|(negated, to)| {
            !negated && host(&to).is_some_and(|address| address.is_loopback())
        })
    })
}

/// The service port that a rule of KUBE-SERVICES or KUBE-NODEPORTS serves. A rule without a
/// destination address serves the addresses of the node.
fn key(terms: &[Term<'_>], family: Family) -> Option<ServiceKey> {
    let value = |option| terms.iter().find(|t| t.option == option && !t.negated).map(Term::value);
    let location = match value("-d") {
        None => Location::Node(family),
        Some(text) => Location::Address(host(text)?),
    };
    let port = value("--dport")?.parse().ok()?;
    let protocol = protocol(value("-p")?)?;
    Some(ServiceKey { location, port, protocol })
}

/// The address of a single-host network such as `10.96.0.1/32`; `None` for a larger network.
pub(super) fn host(text: &str) -> Option<IpAddr> {
    match text.parse::<IpNet>() {
        Ok(net) => (net.prefix_len() == net.max_prefix_len()).then(|| net.addr()),
        Err(_) => text.parse().ok(),
    }
}

/// The service name in a rule's comment: `shop/web:http` of `shop/web:http cluster IP` or
/// `shop/web:http -> 10.0.0.1:80`.
fn name(words: Words<'_>) -> Option<String> {
    let comments = words.comments();
    let first = comments.first()?.split(' ').next()?;
    first.contains('/').then(|| first.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kube_proxy::mode::rules;
    use crate::kube_proxy::reach::PodSource;
    use crate::state::{Backend, RulesetId};

    /// A node with these rules in table nat, in chains that need not be declared.
    fn node(rules: &str) -> NodeState {
        let chains: BTreeSet<&str> = rules.lines().filter_map(|l| l.split(' ').nth(1)).collect();
        let declared: String = chains.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect();
        let text = format!("*nat\n{declared}{rules}COMMIT\n");
        let id = RulesetId { family: Family::Ipv4, backend: Backend::Legacy };
        let ruleset = Ruleset::parse("iptables-legacy.save", text.into()).unwrap();
        NodeState { rulesets: [(id, ruleset)].into(), ..NodeState::default() }
    }

    /// The services of these rules, each with its endpoints on this node and its reach, as one line.
    fn reaches(rules: &str) -> Vec<String> {
        let found = read(&node(rules), &|_, _| true);
        let last = |address: &SocketAddr| address.to_string().replace("10.244.", "");
        let all = |set: &BTreeSet<SocketAddr>| set.iter().map(last).collect::<Vec<_>>().join(" ");
        let line = |(key, service): (&ServiceKey, &crate::kube_proxy::services::ServicePort)| {
            let reach = match &service.reach {
                Reach::Local { everywhere: Some(everywhere) } => {
                    format!("Local, everywhere {}", all(everywhere))
                }
                reach => format!("{reach:?}"),
            };
            format!("{key} {}: {reach}, {:?}", all(&service.backends), service.without)
        };
        found.iter().map(line).collect()
    }

    /// The endpoints of a service, as all versions write them.
    const ENDPOINTS: &str = "-A KUBE-SEP-A -s 10.244.1.1/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination 10.244.1.1:80
-A KUBE-SEP-B -s 10.244.2.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination 10.244.2.2:80
-A KUBE-SVC-A -m comment --comment \"a/a-s x\" -m statistic --mode random -j KUBE-SEP-A
-A KUBE-SVC-A -m comment --comment \"a/a-s x\" -j KUBE-SEP-B
";

    #[test]
    fn up_to_1_23_more_than_one_rule_masquerades() {
        let to = |address: &str, kind: &str, rest: &str| {
            format!(
                "-A KUBE-SERVICES {rest} -d {address}/32 -p tcp -m comment --comment \"a/a-s {kind}\" \
                 -m tcp --dport 80 -j"
            )
        };
        let port = "-A KUBE-NODEPORTS -p tcp -m comment --comment a/a-s -m tcp --dport";
        let own = "-m addrtype --src-type LOCAL";
        let rules = [
            ENDPOINTS,
            // A ClusterIP of 1.20, which masquerades others here, and one that masquerades all.
            &to("10.96.0.1", "cluster IP", "! -s 10.244.0.0/16"),
            " KUBE-MARK-MASQ\n",
            &to("10.96.0.1", "cluster IP", ""),
            " KUBE-SVC-A\n",
            &to("10.96.0.2", "cluster IP", ""),
            " KUBE-MARK-MASQ\n",
            &to("10.96.0.2", "cluster IP", ""),
            " KUBE-SVC-A\n",
            // External IPs of both policies.
            &to("192.0.2.1", "external IP", ""),
            " KUBE-MARK-MASQ\n",
            &to("192.0.2.1", "external IP", ""),
            " KUBE-SVC-A\n",
            &to("192.0.2.2", "external IP", ""),
            " KUBE-SVC-A\n",
            // Load balancers of both policies, and one whose policy is Local without an endpoint here.
            &to("192.0.2.3", "loadbalancer IP", ""),
            " KUBE-FW-A\n-A KUBE-FW-A -j KUBE-MARK-MASQ\n-A KUBE-FW-A -j KUBE-SVC-A\n\
             -A KUBE-FW-A -j KUBE-MARK-DROP\n",
            &to("192.0.2.4", "loadbalancer IP", ""),
            " KUBE-FW-B\n-A KUBE-FW-B -s 198.51.100.0/24 -j KUBE-XLB-B\n\
             -A KUBE-FW-B -j KUBE-MARK-DROP\n-A KUBE-XLB-B -s 10.244.0.0/16 -j KUBE-SVC-A\n",
            &format!("-A KUBE-XLB-B {own} -j KUBE-MARK-MASQ\n-A KUBE-XLB-B {own} -j KUBE-SVC-A\n"),
            "-A KUBE-XLB-B -m comment --comment \"Balancing rule 0\" -j KUBE-SEP-A\n",
            &to("192.0.2.5", "loadbalancer IP", ""),
            " KUBE-FW-C\n-A KUBE-FW-C -j KUBE-XLB-C\n-A KUBE-FW-C -j KUBE-MARK-DROP\n",
            &format!("-A KUBE-XLB-C {own} -j KUBE-MARK-MASQ\n-A KUBE-XLB-C {own} -j KUBE-SVC-A\n"),
            "-A KUBE-XLB-C -m comment --comment \"a/a-s has no local endpoints\" -j KUBE-MARK-DROP\n",
            // NodePorts of both policies.
            &format!("{port} 30001 -j KUBE-MARK-MASQ\n{port} 30001 -j KUBE-SVC-A\n"),
            &format!("{port} 30002 -s 127.0.0.0/8 -j KUBE-MARK-MASQ\n{port} 30002 -j KUBE-XLB-B\n"),
        ]
        .concat();
        let both = "1.1:80 2.2:80";
        assert_eq!(
            reaches(&rules),
            [
                format!("10.96.0.1:80/tcp {both}: Cluster, Reject"),
                format!("10.96.0.2:80/tcp {both}: Everyone, Reject"),
                format!("192.0.2.1:80/tcp {both}: Everyone, Reject"),
                format!("192.0.2.2:80/tcp {both}: Local, everywhere {both}, Reject"),
                format!("192.0.2.3:80/tcp {both}: Everyone, Reject"),
                format!("192.0.2.4:80/tcp 1.1:80: Local, everywhere {both}, Reject"),
                format!("192.0.2.5:80/tcp : Local, everywhere {both}, Drop"),
                format!("node port 30001/tcp {both}: Everyone, Reject"),
                format!("node port 30002/tcp 1.1:80: Local, everywhere {both}, Reject"),
            ]
        );
    }

    #[test]
    fn pods_have_a_network_or_a_link() {
        let local = "-A KUBE-SERVICES -d 192.0.2.1/32 -p tcp -m comment --comment \"a/a-s \
                     external IP\" -m tcp --dport 80 -j KUBE-EXT-A\n\
                     -A KUBE-EXT-A -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ\n\
                     -A KUBE-EXT-A -m addrtype --src-type LOCAL -j KUBE-SVC-A\n\
                     -A KUBE-EXT-A -j KUBE-SVL-A\n-A KUBE-SVL-A -j KUBE-SEP-A\n";
        let others = "-d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n";
        let network = PodSource::Networks(vec!["10.244.0.0/16".parse().unwrap()]);
        let link = |name: &str| PodSource::Link(name.to_owned());
        for (rule, expected) in [
            (format!("-A KUBE-SVC-A ! -s 10.244.0.0/16 {others}"), network.clone()),
            (format!("-A KUBE-SVC-A ! -i cni0 {others}"), link("cni0")),
            (format!("-A KUBE-SVC-A ! -i veth+ {others}"), link("veth*")),
            ("-A KUBE-EXT-A -s 10.244.0.0/16 -j KUBE-SVC-A\n".to_owned(), network),
            ("-A KUBE-EXT-A -i veth+ -j KUBE-SVC-A\n".to_owned(), link("veth*")),
            (format!("-A KUBE-SVC-A {others}"), PodSource::Unknown),
        ] {
            let rules = format!("{ENDPOINTS}{rule}{local}");
            assert_eq!(rules::pods(&node(&rules), Family::Ipv4), expected, "{rule}");
            // What pods alone are led to is not for clients from outside.
            assert_eq!(
                reaches(&rules),
                ["192.0.2.1:80/tcp 1.1:80: Local, everywhere 1.1:80 2.2:80, Reject"],
                "{rule}"
            );
        }
    }

    #[test]
    fn node_ports_are_on_localhost_unless_the_jump_leaves_it_out() {
        for (jump, expected) in [
            ("-m addrtype --dst-type LOCAL", true),
            ("! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL", false),
            ("-d 10.0.0.1/32", false),
            ("-d 127.0.0.1/32", true),
        ] {
            let rules = format!("-A KUBE-SERVICES {jump} -j KUBE-NODEPORTS\n");
            assert_eq!(serve_localhost(&node(&rules)), expected, "{jump}");
        }
    }
}
