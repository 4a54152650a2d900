use ipnet::IpNet;
use serde_json::json;

use super::*;
use crate::state::nft::NftTables;

/// A table of one base chain at `forward`, `c`, whose rules are given as the JSON of their statements.
/// `more` are further objects.
fn table(family: &str, policy: &str, rules: &[Value], more: &[Value]) -> NftTable {
    hooked(family, "forward", 0, policy, rules, more)
}

fn hooked(
    family: &str,
    hook: &str,
    priority: i64,
    policy: &str,
    rules: &[Value],
    more: &[Value],
) -> NftTable {
    let mut objects = vec![json!({"chain": {"family": family, "table": "t", "name": "c",
        "type": "filter", "hook": hook, "prio": priority, "policy": policy}})];
    objects.extend(rules.iter().enumerate().map(|(i, rule)| of_chain(family, "c", i + 1, rule)));
    for object in more {
        let mut object = object.clone();
        for (_, body) in object.as_object_mut().unwrap() {
            body["family"] = family.into();
            body["table"] = "t".into();
        }
        objects.push(object);
    }
    let text = json!({ "nftables": objects }).to_string();
    NftTables::parse("nft.json", &text).unwrap().tables.remove(0)
}

fn of_chain(family: &str, chain: &str, handle: usize, statements: &Value) -> Value {
    json!({"rule": {"family": family, "table": "t", "chain": chain, "handle": handle,
        "expr": statements}})
}

fn rule(chain: &str, statements: Value) -> Value {
    of_chain("", chain, 99, &statements)
}

fn state(op: &str, states: Value) -> Value {
    json!({"match": {"op": op, "left": {"ct": {"key": "state"}}, "right": states}})
}

fn meta(key: &str, value: Value) -> Value {
    json!({"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}})
}

fn address(field: &str, value: Value) -> Value {
    json!({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": field}},
        "right": value}})
}

fn prefix(addr: &str, len: u8) -> Value {
    json!({"prefix": {"addr": addr, "len": len}})
}

fn accept() -> Value {
    json!({"accept": null})
}

fn drop_it() -> Value {
    json!({"drop": null})
}

fn invalid() -> Value {
    state("in", json!("invalid"))
}

fn from(network: &str) -> InvalidPackets {
    let network: IpNet = network.parse().unwrap();
    InvalidPackets { family: Family::of(network.addr()), side: Some(PacketSide::From(network)) }
}

/// The reach and text of each drop of packets from 10.9.0.0/24.
fn found(table: &NftTable) -> Vec<(DropReach, String)> {
    drops(table, &from("10.9.0.0/24")).into_iter().map(|drop| (drop.reach, drop.text)).collect()
}

fn reaches(policy: &str, rules: &[Value]) -> Vec<DropReach> {
    found(&table("inet", policy, rules, &[])).into_iter().map(|(reach, _)| reach).collect()
}

#[test]
fn each_form_of_the_state_is_read() {
    use DropReach::{Everything, Invalid};
    for (condition, expected) in [
        (state("in", json!("invalid")), Some(Invalid)),
        (state("==", json!({"set": ["invalid", "untracked"]})), Some(Invalid)),
        (state("in", json!(["invalid", "new"])), Some(Invalid)),
        (state("==", json!({"set": ["established", "related"]})), None),
        (state("in", json!("new")), None),
        (state("!=", json!("invalid")), None),
        // All but those of a connection: a firewall that is closed.
        (state("!=", json!({"|": ["established", "related"]})), Some(Everything)),
        (state("!", json!(["established", "related"])), Some(Everything)),
        (state("!=", json!({"set": ["established", "invalid"]})), None),
        (
            json!({"match": {"op": "==", "left": {"&": [{"ct": {"key": "state"}}, "invalid"]},
                "right": "invalid"}}),
            Some(Invalid),
        ),
        // An INVALID packet has no connection, so that it has none of its other properties.
        (json!({"match": {"op": "in", "left": {"ct": {"key": "status"}}, "right": "dnat"}}), None),
        (json!({"match": {"op": "!=", "left": {"ct": {"key": "mark"}}, "right": 1}}), None),
    ] {
        let expected: Vec<DropReach> = expected.into_iter().collect();
        let rules = [json!([condition, {"counter": {"packets": 1, "bytes": 2}}, drop_it()])];
        assert_eq!(reaches("accept", &rules), expected, "{condition}");
        let rejected = [json!([condition, {"reject": {"type": "tcp reset"}}])];
        assert_eq!(reaches("accept", &rejected), expected, "{condition}");
    }
}

#[test]
fn maps_lead_to_a_drop_by_their_elements() {
    let by_state = |data: Value| json!([{"vmap": {"key": {"ct": {"key": "state"}}, "data": data}}]);
    let anonymous = by_state(json!({"set": [["established", accept()], ["invalid", drop_it()]]}));
    let text = "ct state vmap { established : accept, invalid : drop }";
    let inet =
        |rule: &Value, more: &[Value]| table("inet", "accept", std::slice::from_ref(rule), more);
    assert_eq!(found(&inet(&anonymous, &[])), [(DropReach::Invalid, text.to_owned())]);
    let named = by_state(json!("@m"));
    let map = |elements: Value| json!({"map": {"name": "m", "type": "ct_state", "map": "verdict", "elem": elements}});
    assert_eq!(found(&inet(&named, &[map(json!([["invalid", drop_it()]]))])).len(), 1);
    assert_eq!(found(&inet(&named, &[map(json!([["new", drop_it()]]))])), []);
    assert!(needs_elements(&inet(&named, &[])) && needs_elements(&inet(&anonymous, &[])));
    // As felix sends packets to the chains of its pods.
    let dispatch = json!([{"vmap": {"key": {"meta": {"key": "iifname"}}, "data": "@m"}}]);
    let chains = [
        map(json!([["cali1", {"goto": {"target": "fw"}}]])),
        json!({"chain": {"name": "fw"}}),
        rule("fw", json!([invalid(), drop_it()])),
    ];
    let by_chain = inet(&dispatch, &chains);
    let drop = drops(&by_chain, &from("10.9.0.0/24")).remove(0);
    assert_eq!((&*drop.chain, &*drop.base, drop.handle), ("fw", "c", Some(99)));
    let enters = |name: &str| InvalidPackets {
        family: Family::Ipv4,
        side: Some(PacketSide::Enters(name.into())),
    };
    assert_eq!(drops(&by_chain, &enters("cali1")).len(), 1);
    assert_eq!(drops(&by_chain, &enters("eth0")), []);
    // kube-proxy's tables have no rule of INVALID packets, and maps of thousands of elements.
    let services = json!([state("in", json!("new")), {"jump": {"target": "fw"}}]);
    assert!(!needs_elements(&inet(&services, &[])));
}

#[test]
fn an_accept_before_the_drop_lets_them_pass() {
    let drop = json!([invalid(), drop_it()]);
    for (condition, passes) in [
        (address("saddr", prefix("10.9.0.0", 24)), true),
        (address("saddr", prefix("10.0.0.0", 8)), true),
        (address("saddr", json!({"set": [prefix("10.9.0.0", 16), "192.0.2.1"]})), true),
        (address("saddr", json!({"range": ["10.8.0.0", "10.9.0.255"]})), true),
        (address("saddr", prefix("10.9.0.0", 25)), false),
        (address("saddr", prefix("10.8.0.0", 24)), false),
        (address("daddr", prefix("10.9.0.0", 24)), false),
        (address("saddr", json!("@known")), false),
        (meta("iifname", json!("eth0")), false),
        (meta("nfproto", json!("ipv4")), true),
        (meta("nfproto", json!("ipv6")), false),
        (json!({"limit": {"rate": 3, "per": "second"}}), false),
        (json!({"xt": {"type": "match", "name": "mark"}}), false),
    ] {
        for states in [None, Some(invalid())] {
            let mut statements = vec![condition.clone()];
            statements.extend(states);
            statements.push(accept());
            let rules = [Value::Array(statements), drop.clone()];
            let expected = if passes { vec![] } else { vec![DropReach::Invalid] };
            assert_eq!(reaches("drop", &rules), expected, "{condition}");
        }
    }
    // A return from the base chain leaves them to its policy.
    let back = [json!([{"return": null}]), drop.clone()];
    assert_eq!(reaches("accept", &back), []);
    assert_eq!(reaches("drop", &back), [DropReach::Everything]);
}

#[test]
fn a_closed_chain_drops_what_nothing_accepts() {
    let established = json!([state("in", json!(["established", "related"])), accept()]);
    let loopback = json!([meta("iifname", json!("lo")), accept()]);
    let pods = json!([meta("iifname", json!("cni0")), accept()]);
    let mine = json!([address("saddr", prefix("10.9.0.0", 24)), accept()]);
    let closed = [established.clone(), loopback.clone()];
    assert_eq!(reaches("drop", &closed), [DropReach::Everything]);
    assert_eq!(reaches("accept", &closed), []);
    let rejects = [&closed[..], &[json!([{"reject": null}])]].concat();
    assert_eq!(reaches("accept", &rejects), [DropReach::Everything]);
    assert_eq!(reaches("drop", &[established.clone(), pods]), [DropReach::Unaccepted]);
    assert_eq!(reaches("drop", &[established, mine]), []);
    // What is dropped for another reason is no matter of INVALID packets.
    let port = json!({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}},
        "right": 22}});
    assert_eq!(reaches("accept", &[json!([port, drop_it()])]), []);
}

#[test]
fn jumps_lead_there_and_back() {
    let calls = |to: Value| [json!([to]), json!([accept()])];
    let chain = json!({"chain": {"name": "sub"}});
    let of = |rules: &[Value], body: Value| {
        found(&table("ip", "drop", rules, &[chain.clone(), rule("sub", body)])).len()
    };
    let jump = json!({"jump": {"target": "sub"}});
    let goto = json!({"goto": {"target": "sub"}});
    assert_eq!(of(&calls(jump.clone()), json!([invalid(), drop_it()])), 1);
    assert_eq!(of(&calls(jump.clone()), json!([accept()])), 0);
    assert_eq!(of(&calls(jump), json!([{"return": null}])), 0);
    // After a goto, the policy is next.
    assert_eq!(of(&calls(goto), json!([{"return": null}])), 1);
    let only_invalid = [json!([invalid(), {"jump": {"target": "sub"}}])];
    let text = &found(&table(
        "ip",
        "accept",
        &only_invalid,
        &[chain.clone(), rule("sub", json!([drop_it()]))],
    ));
    assert_eq!(text[..], [(DropReach::Invalid, "drop".to_owned())]);
}

#[test]
fn only_tables_and_hooks_that_they_pass_count() {
    let rules = [json!([invalid(), drop_it()])];
    let count = |family: &str, hook: &str, priority: i64, packets: &str| {
        drops(&hooked(family, hook, priority, "accept", &rules, &[]), &from(packets)).len()
    };
    let (v4, v6) = ("10.9.0.0/24", "fd00:9::/64");
    for (family, of_v4, of_v6) in [
        ("ip", 1, 0),
        ("ip6", 0, 1),
        ("inet", 1, 1),
        ("bridge", 1, 1),
        ("arp", 0, 0),
        ("netdev", 0, 0),
    ] {
        assert_eq!(
            (count(family, "forward", 0, v4), count(family, "forward", 0, v6)),
            (of_v4, of_v6)
        );
    }
    for (hook, priority, expected) in [
        ("prerouting", -150, 1),
        // Before conntrack nothing is known of a packet.
        ("prerouting", -300, 0),
        ("postrouting", 300, 1),
        ("input", 0, 0),
        ("output", 0, 0),
        ("ingress", 0, 0),
    ] {
        assert_eq!(count("inet", hook, priority, v4), expected, "{hook}");
    }
    assert_eq!(count("bridge", "input", 0, v4), 1);
    let closed = hooked("bridge", "forward", 0, "drop", &[], &[]);
    assert_eq!(drops(&closed, &from(v4)), [], "its frames may be others");
}
