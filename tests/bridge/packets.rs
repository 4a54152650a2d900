//! Packets through the bridge and through kube-proxy's own rules, as a rehearsal sends them.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::{Duration, Instant};

use proxyshift::error::{Error, Kind};
use proxyshift::kube_proxy::bridge::{Backends, Bridge, Frontend, PodSource, Reach};
use proxyshift::node::tools::Tools;
use proxyshift::run::sandbox::packets::{CarriedPackets, Trial};
use proxyshift::state::ipvs::Protocol;
use proxyshift::state::{Family, NodeState};
use serde_json::{Value, json};

use crate::common::{in_namespace, in_user_namespace, node::Proxyshift};
use crate::nodes::Node;
use crate::{Mode, captured, nodes};

fn carried(state: &NodeState, mode: Mode) -> CarriedPackets {
    let bridges = Bridge::of(state, mode);
    let trial = Trial::of(state, mode, &bridges);
    trial.run(&trial.scripts(&bridges), &Tools::find()).expect("the same packets")
}

/// Every captured node's bridges carry packets as the rules of the node do.
#[test]
fn the_bridge_of_each_captured_node_carries_packets() {
    if !in_namespace("packets::the_bridge_of_each_captured_node_carries_packets") {
        return;
    }
    for name in nodes::names() {
        let state = nodes::state(&nodes::files(&name));
        for (mode, _) in captured(&name) {
            let start = Instant::now();
            let CarriedPackets { carried, all, untried } = carried(&state, mode);
            println!("{name} {mode}: {carried} of {all} in {:?}, {untried:?}", start.elapsed());
            if mode == Mode::Ipvs {
                assert_eq!(untried, ["ipvs mode translates by more than rules"], "{name}");
            } else if captured(&name).iter().any(|(other, _)| *other == Mode::Ipvs) {
                // Rules of both modes lead to KUBE-MARK-MASQ, and ipsets are not loaded.
                assert_eq!(carried, 0, "{name}: {untried:?}");
            } else if name.ends_with("1.20") || name.contains("-1.20-") {
                let alone = "198.51.100.7:9000/tcp from the node";
                assert!(untried.len() == 1 && untried[0].starts_with(alone), "{untried:?}");
                assert_eq!(carried + 1, all, "{name}");
            } else {
                assert_eq!((carried, &untried[..]), (all, &[][..]), "{name} in {mode} mode");
            }
            assert!(mode == Mode::Ipvs || all > 15, "{name}: {all}");
        }
    }
}

/// Who is no root of the machine has the same packets.
#[test]
fn packets_are_carried_in_a_user_namespace() {
    if in_user_namespace("packets::packets_are_carried_in_a_user_namespace") {
        let state = nodes::state(&nodes::files("iptables-1.37"));
        let CarriedPackets { carried, all, untried } = carried(&state, Mode::Iptables);
        assert_eq!((carried, &untried[..]), (all, &[][..]));
    }
}

/// What the node's filters drop decides nothing: translation is compared.
#[test]
fn filters_of_the_node_take_no_part() {
    if in_namespace("packets::filters_of_the_node_take_no_part") {
        let save = "iptables-nft.save";
        let node = Node::captured("iptables-1.37");
        let state = node.replace(save, "*filter\n:INPUT ACCEPT", "*filter\n:INPUT DROP");
        let state = state.replace(save, ":FORWARD ACCEPT", ":FORWARD DROP").state();
        let CarriedPackets { carried, all, untried } = carried(&state, Mode::Iptables);
        assert_eq!((carried, &untried[..]), (all, &[][..]));
    }
}

/// The bridges with another one in a family, and what is said of it.
struct Broken {
    what: &'static str,
    bridges: Vec<(Family, String)>,
    object: &'static str,
    cause: &'static str,
}

/// A bridge that leads anything elsewhere is refused, by the name of what it leads.
#[test]
fn broken_bridges_are_refused() {
    if !in_namespace("packets::broken_bridges_are_refused") {
        return;
    }
    let (name, mode) = ("iptables-1.34", Mode::Iptables);
    let state = nodes::state(&nodes::files(name));
    let whole = Bridge::of(&state, mode);
    assert_eq!(whole.len(), 2, "both families");
    let trial = Trial::of(&state, mode, &whole);
    let tools = Tools::find();
    let changed = |change: &dyn Fn(&mut Bridge)| {
        let mut bridges = whole.clone();
        bridges.iter_mut().for_each(change);
        assert_ne!(bridges, whole);
        trial.scripts(&bridges)
    };
    let rewritten = |from: &str, to: &str| {
        let change = |(family, script): (Family, String)| {
            assert!(script.contains(from), "{script}");
            (family, script.replace(from, to))
        };
        trial.scripts(&whole).into_iter().map(change).collect::<Vec<_>>()
    };
    let each = |change: &dyn Fn(Frontend, &mut Backends)| {
        changed(&|bridge| bridge.frontends.iter_mut().for_each(|(f, b)| change(*f, b)))
    };
    let dns = |frontend: &Frontend| frontend.port == 53 && frontend.protocol == Protocol::Udp;
    let broken = [
        Broken {
            what: "an endpoint is missing",
            bridges: each(&|f, b| {
                if dns(&f) {
                    b.endpoints.pop_last();
                }
            }),
            object: "10.96.0.10:53/udp",
            cause: "by kube-proxy's rules to",
        },
        Broken {
            what: "a port is wrong",
            bridges: each(&|f, b| {
                if dns(&f) {
                    let all = b.endpoints.iter().map(|e| (e.ip(), e.port() + 1).into());
                    b.endpoints = all.collect();
                }
            }),
            object: "10.96.0.10:53/udp",
            cause: ":54",
        },
        Broken {
            what: "nobody is masqueraded",
            bridges: changed(&|bridge| {
                let all = ["0.0.0.0/0", "::/0"].map(|net| net.parse().expect("a network"));
                bridge.pods = PodSource::Networks(all.into());
            }),
            object: "from the node",
            cause: "masqueraded",
        },
        Broken {
            what: "a pod that is led back to itself is not masqueraded",
            bridges: rewritten("@hairpins masquerade fully-random", "@hairpins accept"),
            object: "from its own endpoint",
            cause: "masqueraded",
        },
        Broken {
            what: "the policy Local is ignored",
            bridges: each(&|_, b| {
                if let Reach::Local { everywhere } = &b.reach {
                    b.endpoints.extend(everywhere.iter().flatten());
                    b.reach = Reach::Everyone;
                }
            }),
            object: "203.0.113.50:443/tcp from outside",
            cause: "by kube-proxy's rules to",
        },
        Broken {
            what: "a service is missing",
            bridges: changed(&|bridge| bridge.frontends.retain(|f, _| !dns(f))),
            object: "10.96.0.10:53/udp",
            cause: "goes to nowhere",
        },
        Broken {
            what: "a family is empty",
            bridges: trial.scripts(&whole[..1]),
            object: "[fd00:",
            cause: "goes to nowhere",
        },
        Broken {
            what: "source ranges are ignored",
            bridges: each(&|_, b| b.source_ranges.clear()),
            object: "203.0.113.50:443/tcp",
            cause: "by kube-proxy's rules to nowhere",
        },
        Broken {
            what: "affinity is ignored",
            bridges: each(&|_, b| b.has_affinity = false),
            object: "10.96.1.2:8000/tcp",
            cause: "does not stay",
        },
        Broken {
            what: "it stands before kube-proxy's rules",
            bridges: rewritten("priority -95", "priority -105"),
            object: "the bridge of ipv4",
            cause: "that kube-proxy's rules are for",
        },
    ];
    for Broken { what, bridges, object, cause } in broken {
        let error: Error = trial.run(&bridges, &tools).expect_err(what);
        println!("{what}: {error}");
        assert_eq!(error.kind, Kind::Rehearsal, "{what}");
        assert!(error.object.contains(object) && error.cause.contains(cause), "{what}: {error}");
    }
    let CarriedPackets { carried, all, .. } =
        trial.run(&trial.scripts(&whole), &tools).expect("whole");
    assert_eq!(carried, all);
}

/// A rehearsal sends the packets, and ends with exit code 3 where one goes astray.
#[test]
fn rehearsals_send_packets() {
    if !in_namespace("packets::rehearsals_send_packets") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let rehearse = |name: &str, files: &proxyshift::state::Files, code: i32| {
        let dir = std::path::Path::new("/run/nodes").join(name);
        for (file, text) in files {
            let path = dir.join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
            std::fs::write(path, &**text).expect("a file");
        }
        let words = format!("rehearse --to nftables -o json --snapshot {}", dir.display());
        proxyshift.expect(code, &words)
    };
    let mut files = nodes::files("iptables-1.37");
    let proofs = rehearse("whole", &files, 0).json()["proofs"].to_string();
    let carried = "packets as kube-proxy's rules do, and none beside these";
    assert!(proofs.contains(carried), "{proofs}");

    // The kernel takes the first rule that translates, and never sees the other, of which the bridge
    // does not know that.
    let save = "iptables-nft.save";
    let text = files[save].to_string();
    let rule = |line: &&str| line.contains("-A KUBE-SEP-") && line.contains("kube-dns:dns\"");
    let first = text.lines().filter(rule).find(|line| line.contains("DNAT")).expect("a rule");
    let (way, _) = first.split_once("--to-destination ").expect("a translation");
    let more = format!("{first}\n{way}--to-destination 192.168.70.1:53");
    nodes::replace(&mut files, save, first, &more);
    let ended = rehearse("broken", &files, 3);
    let said = format!("{}{}", ended.out, ended.err);
    assert!(said.contains("192.168.70.1:53"), "{said}");
    assert!(said.contains("the bridge: 10.96.0.10:53/udp from "), "{said}");
}

/// How long the packets may take on a large node, beside other tests.
const LIMIT: Duration = Duration::from_secs(30);

const SERVICES: usize = 5000;
const ENDPOINTS: usize = 5;

fn of_large(state: &NodeState, mode: Mode) {
    let bridges = Bridge::of(state, mode);
    let frontends: BTreeSet<&Frontend> = bridges.iter().flat_map(|b| b.frontends.keys()).collect();
    assert_eq!(frontends.len(), SERVICES, "{mode}");
    let start = Instant::now();
    let trial = Trial::of(state, mode, &bridges);
    let chosen = start.elapsed();
    let result = trial.run(&trial.scripts(&bridges), &Tools::find()).expect("the same packets");
    let took = start.elapsed();
    println!(
        "{SERVICES} services of {ENDPOINTS} in {mode} mode: {} of {} packets in {took:?}, of which \
         {chosen:?} to choose them; {} rules loaded",
        result.carried,
        result.all,
        trial.rules()
    );
    assert_eq!((result.carried, &result.untried[..]), (result.all, &[][..]));
    assert!(result.all > 5 && trial.rules() < 200, "{result:?}, {}", trial.rules());
    assert!(took < LIMIT, "{took:?}");
}

fn address(a: u8, number: usize) -> String {
    format!("10.{}.{}.{}", usize::from(a) + (number >> 16), (number >> 8) & 255, number & 255)
}

#[test]
fn a_large_node_of_iptables_mode_is_tried_in_time() {
    if !in_namespace("packets::a_large_node_of_iptables_mode_is_tried_in_time") {
        return;
    }
    let (mut chains, mut rules) = (String::new(), String::new());
    for service in 0..SERVICES {
        let _ = writeln!(chains, ":KUBE-SVC-{service} - [0:0]");
        let at = format!("-d {}/32 -p tcp -m tcp --dport 80", address(96, service + 1));
        let _ = writeln!(rules, "-A KUBE-SERVICES {at} -j KUBE-SVC-{service}");
        let _ = writeln!(rules, "-A KUBE-SVC-{service} ! -s 10.128.0.0/9 {at} -j KUBE-MARK-MASQ");
        for endpoint in 0..ENDPOINTS {
            let own = format!("{service}-{endpoint}");
            let left = ENDPOINTS - endpoint;
            let random = format!(
                "-m statistic --mode random --probability 0.{:010}",
                10_usize.pow(10) / left
            );
            let random = if left > 1 { &random } else { "" };
            let pod = address(128, service * ENDPOINTS + endpoint + 256);
            let _ = writeln!(chains, ":KUBE-SEP-{own} - [0:0]");
            let _ = writeln!(rules, "-A KUBE-SVC-{service} {random} -j KUBE-SEP-{own}");
            let _ = writeln!(rules, "-A KUBE-SEP-{own} -s {pod}/32 -j KUBE-MARK-MASQ");
            let to = format!("-p tcp -m tcp -j DNAT --to-destination {pod}:8080");
            let _ = writeln!(rules, "-A KUBE-SEP-{own} {to}");
        }
    }
    let save = format!(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :POSTROUTING ACCEPT [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
         :KUBE-SERVICES - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n{rules}COMMIT\n"
    );
    let state = Node::captured("iptables-1.37").remove("ip6tables-nft.save");
    of_large(&state.put("iptables-nft.save", &save).state(), Mode::Iptables);
}

#[test]
fn a_large_node_of_nftables_mode_is_tried_in_time() {
    if !in_namespace("packets::a_large_node_of_nftables_mode_is_tried_in_time") {
        return;
    }
    let object = |kind: &str, name: &str, mut body: Value| {
        body["family"] = json!("ip");
        body[if kind == "table" { "name" } else { "table" }] = json!("kube-proxy");
        match kind {
            "table" => {}
            "rule" => body["chain"] = json!(name),
            _ => body["name"] = json!(name),
        }
        json!({ kind: body })
    };
    let rule = |chain: &str, expr: Value| object("rule", chain, json!({"expr": expr}));
    let field =
        |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
    let hook = |name: &str, prio: i32| {
        let body = json!({"type": "nat", "hook": name, "prio": prio, "policy": "accept"});
        object("chain", &format!("nat-{name}"), body)
    };
    let to = |chain: &str| json!({"goto": {"target": chain}});
    let mark = json!({"meta": {"key": "mark"}});
    let mut objects = vec![
        object("table", "", json!({})),
        hook("prerouting", -100),
        hook("output", -100),
        hook("postrouting", 100),
        object("chain", "services", json!({})),
        rule("nat-prerouting", json!([{"jump": {"target": "services"}}])),
        rule("nat-output", json!([{"jump": {"target": "services"}}])),
        rule(
            "nat-postrouting",
            json!([
                {"match": {"op": "!=", "left": {"&": [mark, 0x4000]}, "right": 0}},
                {"masquerade": {"flags": "fully-random"}},
            ]),
        ),
        rule(
            "services",
            json!([{"vmap": {
            "key": {"concat": [field("ip", "daddr"), {"meta": {"key": "l4proto"}},
                field("th", "dport")]},
            "data": "@service-ips"}}]),
        ),
    ];
    let mut elements = Vec::new();
    for service in 0..SERVICES {
        let chain = format!("service-{service}-shop/app-{service}/tcp/");
        elements.push(json!([{"concat": [address(96, service + 1), "tcp", 80]}, to(&chain)]));
        objects.push(object("chain", &chain, json!({})));
        let pods = json!({"prefix": {"addr": "10.128.0.0", "len": 9}});
        objects.push(rule(
            &chain,
            json!([
                {"match": {"op": "!=", "left": field("ip", "saddr"), "right": pods}},
                {"mangle": {"key": mark, "value": {"|": [mark, 0x4000]}}},
            ]),
        ));
        let mut choices = Vec::new();
        for endpoint in 0..ENDPOINTS {
            let pod = address(128, service * ENDPOINTS + endpoint + 256);
            let own = format!("endpoint-{service}-{endpoint}");
            choices.push(json!([endpoint, to(&own)]));
            objects.push(object("chain", &own, json!({})));
            objects.push(rule(
                &own,
                json!([
                    {"match": {"op": "==", "left": field("ip", "saddr"), "right": pod}},
                    {"mangle": {"key": mark, "value": {"|": [mark, 0x4000]}}},
                ]),
            ));
            objects.push(rule(
                &own,
                json!([
                    {"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}},
                    {"dnat": {"addr": pod, "port": 8080}},
                ]),
            ));
        }
        let number = json!({"numgen": {"mode": "random", "mod": ENDPOINTS, "offset": 0}});
        objects.push(rule(&chain, json!([{"vmap": {"key": number, "data": {"set": choices}}}])));
    }
    let kind = json!(["ipv4_addr", "inet_proto", "inet_service"]);
    let map = json!({"type": kind, "map": "verdict", "elem": elements});
    objects.push(object("map", "service-ips", map));
    let text = json!({"nftables": objects}).to_string();
    let state = Node::captured("nftables-1.37").put("nft.json", &text).state();
    of_large(&state, Mode::Nftables);
}
