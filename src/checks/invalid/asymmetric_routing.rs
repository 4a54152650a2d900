//! Signs of asymmetric routing, in which the node gets the packets of only one direction of a
//! connection.

use std::collections::{BTreeMap, BTreeSet};

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::links::Route;
use crate::state::sysctl::Sysctls;

pub(super) const CHECK: Check = Check {
    id: "invalid.asymmetric-routing",
    title: "networks that this node reaches by two ways",
    severity: Severity::Info,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/95197",
};

/// The next hop of a route: its link, and its gateway if it has one.
type NextHop = (String, Option<String>);

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let routes = &facts.now.routes;
    if routes.is_empty() {
        return Verdict::Unknown("the routes are not in this state".into());
    }
    let mut hops: BTreeMap<(bool, &str), BTreeSet<NextHop>> = BTreeMap::new();
    for route in routes.iter().filter(|r| r.table == "main" && r.kind == "unicast") {
        // Link-local and multicast networks are left out, because every link has a route to each of
        // these networks.
        let local = |dst: &str| dst.starts_with("fe80:") || dst.starts_with("ff00:");
        if !local(&route.dst) {
            hops.entry((is_v6(route), &route.dst)).or_default().extend(next_hops(route));
        }
    }
    hops.retain(|_, hops| hops.len() > 1);
    if hops.is_empty() {
        return Verdict::Ok("each network by one way".into());
    }
    let sysctls = facts.now.sysctls();
    let mut strict = BTreeSet::new();
    let mut evidence = Vec::new();
    for ((_, dst), hops) in &hops {
        let shown = |(dev, gateway): &NextHop| match gateway {
            Some(gateway) => format!("{dev} via {gateway}"),
            None => dev.clone(),
        };
        let list: Vec<String> = hops.iter().map(shown).collect();
        evidence.push(format!("route.json: {dst} by {}", list.join(" and by ")));
        for (dev, _) in hops {
            match sysctls.as_ref().and_then(|s| rp_filter(s, dev)) {
                Some(1) => {
                    strict.insert(dev.clone());
                    evidence.push(format!("rp_filter of {dev} is 1 (strict)"));
                }
                Some(n) => evidence.push(format!("rp_filter of {dev} is {n}")),
                None => evidence.push(format!("rp_filter of {dev} is not in this state")),
            }
        }
    }
    let (effect, remedy) = if strict.is_empty() {
        (
            "packets of a connection that come by the other way are INVALID to conntrack wherever \
             it did not see the first ones",
            vec![
                "ip route get ADDRESS, here and on the other end: both ways must be the same one"
                    .to_owned(),
            ],
        )
    } else {
        (
            "packets that come in by the way that this node would not send by are dropped before \
             any rule sees them",
            strict.iter().map(|dev| format!("sysctl -w net.ipv4.conf.{dev}.rp_filter=2")).collect(),
        )
    };
    Verdict::Found(Found { evidence, effect: effect.into(), remedy, fix: Vec::new() })
}

fn is_v6(route: &Route) -> bool {
    let gateway = route.gateway.map(|g| g.is_ipv6());
    route.network().map(|n| n.addr().is_ipv6()).or(gateway).unwrap_or(false)
}

fn next_hops(route: &Route) -> Vec<NextHop> {
    let one = route.dev.clone().map(|dev| (dev, route.gateway.map(|g| g.to_string())));
    let hops = route.nexthops.as_ref().and_then(|h| h.as_array()).into_iter().flatten();
    let hops = hops.filter_map(|hop| {
        let gateway = hop["gateway"].as_str().map(str::to_owned);
        Some((hop["dev"].as_str()?.to_owned(), gateway))
    });
    one.into_iter().chain(hops).collect()
}

/// The rp_filter that holds for a link: the greater of the link's own value and that of `all`; 2 is
/// loose, 1 is strict.
fn rp_filter(sysctls: &Sysctls, dev: &str) -> Option<u8> {
    let value = |name: &str| -> Option<u8> {
        sysctls.get(&format!("net.ipv4.conf.{name}.rp_filter"))?.parse().ok()
    };
    // sysctl writes a slash for each dot in a link's name.
    Some(value("all")?.max(value(&dev.replace('.', "/"))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const NODE: &str = "docker-iptables-1.30";

    fn with_route(route: &str, rp_filter: &str) -> Verdict {
        let text = node(NODE).files["route.json"].to_string();
        let text = text.trim_end().trim_end_matches(']').to_owned();
        let state = Node::captured(NODE)
            .put("route.json", &format!("{text},{route}]"))
            .sysctl("net.ipv4.conf.docker0.rp_filter", Some(rp_filter))
            .state();
        verdict_of(&CHECK, &state)
    }

    #[test]
    fn found_with_two_ways_and_worse_when_strict() {
        let route = r#"{"dst": "10.9.4.0/24", "dev": "docker0", "gateway": "172.17.0.9"}"#;
        let Verdict::Found(found) = with_route(route, "0") else { panic!("not found") };
        let shown = "route.json: 10.9.4.0/24 by docker0 via 172.17.0.9 and by nl";
        assert_eq!(found.evidence[0], shown);
        let Verdict::Found(found) = with_route(route, "1") else { panic!("not found") };
        assert_eq!(found.remedy, ["sysctl -w net.ipv4.conf.docker0.rp_filter=2"]);
        let hops = r#"{"dst": "10.50.0.0/16", "nexthops": [{"dev": "docker0", "gateway": "a"},
            {"dev": "docker0", "gateway": "b"}]}"#;
        assert!(matches!(with_route(hops, "0"), Verdict::Found(_)));
    }

    #[test]
    fn ok_with_one_way_each_and_unknown_without_routes() {
        for name in [NODE, "canal-stale-flannel-1.20", "half-migrated-ipvs-1.20"] {
            let verdict = verdict_of(&CHECK, &node(name));
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
        // A default route of the other address family is not a second way to the same network.
        let v6 = r#"{"dst": "default", "dev": "docker0", "gateway": "fe80::1"}"#;
        assert!(matches!(with_route(v6, "0"), Verdict::Ok(_)));
        let state = Node::captured(NODE).remove("route.json").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
