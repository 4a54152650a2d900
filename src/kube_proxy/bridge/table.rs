//! The table as a script for `nft -f`.
//!
//! nft's JSON cannot load maps of addresses with ports (1.0.6), so the bridge is text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::SocketAddr;

use ipnet::IpNet;

use super::choice::{EndpointChoice, shared};
use super::{Backends, Bridge, Frontend, NoEndpoint, PodSource, Reach, TABLE, Translated};
use crate::state::Family;

/// The priority of the chains that translate: behind kube-proxy's, docker's and portmap's, which have
/// -100.
const TRANSLATE: i32 = -95;

/// The priority of the chain that masquerades: behind kube-proxy's own, which has 100.
const MASQUERADE: i32 = 105;

pub(super) fn script(bridge: &Bridge, translated: Translated) -> String {
    let family = bridge.family.nft();
    let choices: BTreeMap<Frontend, EndpointChoice> = bridge
        .frontends
        .iter()
        .filter(|(_, backends)| is_ordinary(backends))
        .map(|(frontend, backends)| (*frontend, EndpointChoice::of(backends)))
        .collect();
    // What is special is often so at several addresses: a NodePort at each of the node.
    let mut special: BTreeMap<String, usize> = BTreeMap::new();
    let mut elements = Vec::new();
    let mut entrances = BTreeSet::new();
    for (frontend, backends) in &bridge.frontends {
        let chain = match choices.get(frontend) {
            Some(choice) => {
                let entrance = Entrance::of(backends, *choice);
                entrances.insert(entrance);
                entrance.chain()
            }
            None if is_refused(backends) => backends.without.chain().to_owned(),
            None => {
                let number = special.len();
                let rules = special_rules(bridge, *frontend, backends);
                format!("special-{}", special.entry(rules).or_insert(number))
            }
        };
        elements.push(format!("{} : goto {chain}", frontend.key()));
    }
    let entrances: String = entrances.into_iter().map(|e| e.text(bridge)).collect();
    let chains =
        special.iter().map(|(rules, number)| format!("chain special-{number} {{\n{rules}}}\n"));
    let chains: String = chains.collect();
    let refused = [NoEndpoint::Reject, NoEndpoint::Drop]
        .map(|without| format!("chain {} {{\n {}\n}}\n", without.chain(), without.verdict()));
    let refused = refused.concat();
    let Translated { packets, bytes } = translated;
    format!(
        "table {family} {TABLE}\ndelete table {family} {TABLE}\ntable {family} {TABLE} {{\n\
         comment \"serves while kube-proxy changes its mode\"\ncounter translated {{ packets {packets} bytes {bytes} }}\n\
         {refused}{}{entrances}{chains}{}{}}}\n",
        shared(bridge, &choices),
        dispatch(bridge, &elements),
        masquerade(bridge)
    )
}

/// Whether the frontend has endpoints, the same ones for everybody, so that it shares its chains.
fn is_ordinary(backends: &Backends) -> bool {
    !backends.endpoints.is_empty()
        && backends.source_ranges.is_empty()
        && !matches!(backends.reach, Reach::Local { .. })
}

/// Whether nobody gets an endpoint, and everybody the same answer.
fn is_refused(backends: &Backends) -> bool {
    let elsewhere = match &backends.reach {
        Reach::Local { everywhere } => everywhere.as_ref(),
        _ => None,
    };
    backends.endpoints.is_empty()
        && backends.source_ranges.is_empty()
        && elsewhere.is_none_or(BTreeSet::is_empty)
}

/// The chain before a choice, which marks connections that are to be masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entrance {
    marks_everyone: bool,
    choice: EndpointChoice,
}

impl Entrance {
    fn of(backends: &Backends, choice: EndpointChoice) -> Entrance {
        Entrance { marks_everyone: backends.reach == Reach::Everyone, choice }
    }

    fn chain(self) -> String {
        let marks = if self.marks_everyone { "everyone" } else { "others" };
        format!("mark-{marks}-{}", self.choice.chain())
    }

    fn text(self, bridge: &Bridge) -> String {
        let mark = marking(bridge, self.marks_everyone);
        format!("chain {} {{\n{mark} goto {}\n}}\n", self.chain(), self.choice.chain())
    }
}

/// The rule that marks everyone's connections, or those of clients that are no pods.
fn marking(bridge: &Bridge, everyone: bool) -> String {
    let mark = format!("meta mark set meta mark or {:#x}", bridge.mark);
    match (everyone, pods(bridge, "!= ")) {
        (true, _) => format!(" {mark}\n"),
        (false, Some(others)) => format!(" {others} {mark}\n"),
        (false, None) => String::new(),
    }
}

/// The match of connections by pods; with `!= ` as `sign`, of all others.
fn pods(bridge: &Bridge, sign: &str) -> Option<String> {
    match &bridge.pods {
        PodSource::Networks(networks) => {
            let networks = of_family(bridge, networks)?;
            Some(format!("{} saddr {sign}{networks}", bridge.family.nft()))
        }
        PodSource::Link(name) => Some(format!("iifname {sign}\"{name}\"")),
        PodSource::AllButNode => {
            // The node is what this matches, and pods are not it.
            let sign = if sign.is_empty() { "!= " } else { "" };
            Some(format!("fib saddr type {sign}local"))
        }
        PodSource::Unknown => None,
    }
}

/// Those of the networks that are of the bridge's family, as a set; none if none is.
fn of_family(bridge: &Bridge, networks: &[IpNet]) -> Option<String> {
    let is_ipv6 = bridge.family == Family::Ipv6;
    let own = networks.iter().filter(|net| net.addr().is_ipv6() == is_ipv6);
    let own: Vec<String> = own.map(|net| net.trunc().to_string()).collect();
    (!own.is_empty()).then(|| format!("{{ {} }}", own.join(", ")))
}

/// The rules of a frontend that shares no chain with other services.
fn special_rules(bridge: &Bridge, frontend: Frontend, backends: &Backends) -> String {
    let family = bridge.family.nft();
    let mut rules = String::new();
    if !backends.source_ranges.is_empty() {
        // Ranges of the other family alone let nobody in.
        let ranges = of_family(bridge, &backends.source_ranges);
        let denied = ranges.map_or(String::new(), |ranges| format!("{family} saddr != {ranges} "));
        let _ = writeln!(rules, " {denied}drop");
    }
    // The rules that lead those whom `matched` matches to one of the endpoints.
    let lead = |matched: &str, endpoints: &BTreeSet<SocketAddr>| {
        if endpoints.is_empty() {
            return format!(" {matched}{}\n", backends.without.verdict());
        }
        let begin = format!(" {matched}meta l4proto {}", frontend.protocol);
        let staying = EndpointChoice::statement_of_clients(bridge.family, endpoints, backends);
        let staying = staying.map_or(String::new(), |staying| format!("{begin} {staying}\n"));
        let dnat = EndpointChoice::statement(bridge.family, endpoints, backends.has_affinity);
        format!("{staying}{begin} counter name translated {dnat}\n")
    };
    match &backends.reach {
        Reach::Cluster => rules += &marking(bridge, false),
        Reach::Everyone => rules += &marking(bridge, true),
        Reach::Local { everywhere } => {
            let everywhere = everywhere.as_ref().unwrap_or(&backends.endpoints);
            if let Some(pods) = pods(bridge, "") {
                rules += &lead(&format!("{pods} "), everywhere);
            }
            let mark = format!("meta mark set meta mark or {:#x}", bridge.mark);
            rules += &lead(&format!("fib saddr type local {mark} "), everywhere);
        }
    }
    rules + &lead("", &backends.endpoints)
}

/// The map of all frontends, and the chains that translate. The map's counters tell which frontends
/// the bridge serves.
fn dispatch(bridge: &Bridge, elements: &[String]) -> String {
    let family = bridge.family.nft();
    let elements = match elements {
        [] => String::new(),
        elements => format!(" elements = {{ {} }}\n", elements.join(",\n")),
    };
    let hook = |hook: &str| {
        format!(
            "chain {hook} {{\n type nat hook {hook} priority {TRANSLATE}; policy accept;\n \
             {family} daddr . meta l4proto . th dport vmap @frontends\n}}\n"
        )
    };
    format!(
        "map frontends {{\n type {} . inet_proto . inet_service : verdict;\n counter\n{elements}}}\n\
         {}{}",
        bridge.address_type(),
        hook("prerouting"),
        hook("output")
    )
}

/// The chain that masquerades what is marked, and what comes back to the endpoint that sent it.
fn masquerade(bridge: &Bridge) -> String {
    let (family, mark) = (bridge.family.nft(), bridge.mark);
    let endpoints = bridge.frontends.values().flat_map(|backends| {
        let elsewhere = match &backends.reach {
            Reach::Local { everywhere } => everywhere.as_ref(),
            _ => None,
        };
        backends.endpoints.iter().chain(elsewhere.into_iter().flatten())
    });
    let own = endpoints.map(|endpoint| format!("{0} . {0}", endpoint.ip()));
    let own: Vec<String> = own.collect::<BTreeSet<String>>().into_iter().collect();
    let elements = match &own[..] {
        [] => String::new(),
        own => format!(" elements = {{ {} }}\n", own.join(",\n")),
    };
    let kind = bridge.address_type();
    format!(
        "set hairpins {{\n type {kind} . {kind};\n{elements}}}\n\
         chain postrouting {{\n type nat hook postrouting priority {MASQUERADE}; policy accept;\n \
         {family} saddr . {family} daddr @hairpins masquerade fully-random\n \
         meta mark and {mark:#x} == 0 return\n \
         meta mark set meta mark xor {mark:#x}\n \
         masquerade fully-random\n}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ipvs::Protocol;

    fn frontend(address: &str) -> Frontend {
        Frontend { address: address.parse().unwrap(), protocol: Protocol::Tcp, port: 80 }
    }

    fn backends(endpoints: &[&str], reach: Reach) -> Backends {
        Backends {
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            reach,
            has_affinity: false,
            clients: BTreeMap::new(),
            source_ranges: Vec::new(),
            without: NoEndpoint::Reject,
        }
    }

    fn bridge(frontends: &[(&str, Backends)]) -> Bridge {
        Bridge {
            family: Family::Ipv4,
            mark: 0x4000,
            pods: PodSource::Networks(vec!["10.244.0.0/16".parse().unwrap()]),
            frontends: frontends.iter().map(|(at, b)| (frontend(at), b.clone())).collect(),
        }
    }

    #[test]
    fn ordinary_frontends_share_maps_and_chains() {
        let two = ["10.244.0.1:8080", "10.244.0.2:8080"];
        let script = bridge(&[
            ("10.96.0.1", backends(&two, Reach::Cluster)),
            ("10.96.0.2", backends(&two, Reach::Cluster)),
            ("10.96.0.3", backends(&two[..1], Reach::Everyone)),
        ])
        .script();
        let count = |text: &str| script.matches(text).count();
        assert_eq!(count("chain one-of-"), 2, "{script}");
        assert_eq!(count("map endpoint-"), 2, "{script}");
        assert_eq!(count("chain special-"), 0, "{script}");
        assert!(script.contains("10.96.0.2 . tcp . 80 : goto mark-others-one-of-2"), "{script}");
        assert!(script.contains("10.96.0.3 . tcp . 80 : goto mark-everyone-one-of-1"), "{script}");
        assert!(script.contains("10.96.0.3 . tcp . 80 : 10.244.0.1 . 8080"), "{script}");
    }

    #[test]
    fn others_are_marked_by_what_pods_are_not() {
        for (pods, others) in [
            (PodSource::Link("veth*".into()), "iifname != \"veth*\" meta mark set"),
            (PodSource::AllButNode, "fib saddr type local meta mark set"),
            (PodSource::Unknown, "chain mark-others-one-of-1 {\n goto one-of-1\n}"),
        ] {
            let one = bridge(&[("10.96.0.1", backends(&["10.244.0.1:80"], Reach::Cluster))]);
            let script = Bridge { pods, ..one }.script();
            assert!(script.contains(others), "{script}");
        }
    }

    #[test]
    fn what_is_special_has_a_chain_of_its_own() {
        let everywhere = ["10.244.0.1:8080", "10.244.9.2:8080"].map(|e| e.parse().unwrap());
        let local = Reach::Local { everywhere: Some(everywhere.into()) };
        let ranged = Backends {
            source_ranges: vec!["192.0.2.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()],
            ..backends(&["10.244.0.1:8080"], Reach::Everyone)
        };
        let script = bridge(&[
            ("10.96.0.1", Backends { without: NoEndpoint::Drop, ..backends(&[], local) }),
            ("10.96.0.2", ranged),
            ("10.96.0.3", backends(&[], Reach::Cluster)),
            ("10.96.0.4", backends(&[], Reach::Local { everywhere: None })),
        ])
        .script();
        let chain = |number: usize| {
            let begin = script.find(&format!("chain special-{number} {{")).expect("a chain");
            script[begin..].split_once("\n}").expect("its end").0.to_owned()
        };
        assert!(chain(0).contains("fib saddr type local meta mark set"), "{script}");
        assert!(chain(0).ends_with("\n drop"), "{script}");
        assert!(chain(1).contains("\n ip saddr != { 192.0.2.0/24 } drop\n"), "{script}");
        assert!(script.contains("10.96.0.3 . tcp . 80 : goto without-endpoint"), "{script}");
        assert!(script.contains("10.96.0.4 . tcp . 80 : goto without-endpoint"), "{script}");
        assert!(script.contains("10.244.9.2 . 10.244.9.2"), "hairpins of all endpoints: {script}");
        // A NodePort is so at each address of the node.
        let local = Reach::Local { everywhere: None };
        let same =
            ["10.0.0.1", "10.0.0.2"].map(|at| (at, backends(&["10.244.0.1:80"], local.clone())));
        let script = bridge(&same).script();
        assert_eq!(script.matches("chain special-").count(), 1, "{script}");
        assert_eq!(script.matches("goto special-0").count(), 2, "{script}");
    }

    #[test]
    fn who_stays_with_an_endpoint_that_is_still_there_is_led_to_it() {
        let two = ["10.244.0.1:8080", "10.244.0.2:8080"];
        let clients = [("10.244.1.1", two[1]), ("10.244.1.2", "10.244.0.9:8080")];
        let clients = clients.map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
        let sticky = |reach| Backends {
            has_affinity: true,
            clients: clients.into(),
            ..backends(&two, reach)
        };
        let script = bridge(&[
            ("10.96.0.1", sticky(Reach::Cluster)),
            ("10.96.0.2", Backends { has_affinity: false, ..sticky(Reach::Cluster) }),
            ("10.96.0.3", sticky(Reach::Local { everywhere: None })),
            (
                "10.96.0.4",
                Backends {
                    source_ranges: vec!["192.0.2.0/24".parse().unwrap()],
                    has_affinity: false,
                    ..sticky(Reach::Everyone)
                },
            ),
        ])
        .script();
        let led = " elements = { 10.244.1.1 . 10.96.0.1 . tcp . 80 : goto to-endpoint-1 }\n";
        assert!(script.contains(led), "{script}");
        let first = "chain one-of-2-by-client {\n ip saddr . ip daddr . meta l4proto . th dport vmap \
                     @sticky\n jhash";
        assert!(script.contains(first), "{script}");
        assert!(script.contains("chain one-of-2 {\n numgen"), "{script}");
        let own = "ip saddr { 10.244.1.1 } counter name translated dnat ip addr . port to ip saddr map \
                   { 10.244.1.1 : 10.244.0.2 . 8080 }\n";
        assert_eq!(script.matches(own).count(), 3, "pods, the node and all others: {script}");
        // Nobody stays yet.
        let none = Backends { clients: BTreeMap::new(), ..sticky(Reach::Cluster) };
        assert!(!bridge(&[("10.96.0.1", none)]).script().contains("sticky"));
    }
}
