//! The parsers of the small files of a snapshot, on files of real nodes and on arbitrary input.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proxyshift::error::Result;
use proxyshift::state::Family;
use proxyshift::state::cni::{CniConfig, SubnetEnv};
use proxyshift::state::conntrack::ConntrackStat;
use proxyshift::state::ipset::{IpSet, IpSets};
use proxyshift::state::ipvs::{
    Forward, Listing, Protocol, RealServer, VirtualServer, VirtualServerId, VirtualServers,
};
use proxyshift::state::kube_proxy::{CommandLine, KubeProxyConfig, Mode};
use proxyshift::state::links::{
    link_differences, parse_links, parse_routes, parse_rules, route_differences, rule_differences,
};
use proxyshift::state::nft::NftTables;
use proxyshift::state::sysctl::Sysctls;
use proxyshift::state::tools::{ToolList, parse_processes, render_processes};

fn snapshots() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots");
    let mut found: Vec<_> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    assert!(!found.is_empty());
    found
}

/// Calls `check` with the file `name` of each captured node, and verifies that `count` nodes have
/// that file.
fn each(name: &str, count: usize, check: impl Fn(&str, &str)) {
    let mut count_found = 0;
    for snapshot in snapshots() {
        let path = snapshot.join(name);
        if path.exists() {
            check(&path.display().to_string(), &fs::read_to_string(&path).unwrap());
            count_found += 1;
        }
    }
    assert!(count_found >= count, "{name}: {count_found} of {count}");
}

fn snapshot(node: &str, file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots");
    fs::read_to_string(root.join(node).join(file)).unwrap()
}

/// The text of a foreign dump; none if this machine has no dumps.
fn dump(name: &str) -> Option<String> {
    let Some(root) = std::env::var_os("PROXYSHIFT_DUMPS") else {
        assert!(std::env::var_os("CI").is_none(), "PROXYSHIFT_DUMPS is not set");
        eprintln!("skipped: PROXYSHIFT_DUMPS is not set");
        return None;
    };
    Some(fs::read_to_string(Path::new(&root).join("other").join(name)).unwrap())
}

type Render = fn(&str) -> Result<String>;

/// The files in line formats, each with the number of nodes that have it, and a function that
/// parses and renders it.
const LINE_FORMATS: &[(&str, usize, Render)] = &[
    ("ipset.save", 4, |text| Ok(IpSets::parse("f", text)?.render())),
    ("ipvs.save", 3, |text| Ok(VirtualServers::parse("f", text)?.render())),
    ("sysctl.txt", 7, |text| Ok(Sysctls::parse("f", text)?.render())),
    ("tools.txt", 7, |text| Ok(ToolList::parse("f", text)?.render())),
];

#[test]
fn line_formats_render_to_the_byte() {
    for (name, count, render) in LINE_FORMATS {
        each(name, *count, |path, text| assert_eq!(render(text).unwrap(), text, "{path}"));
    }
}

#[test]
fn a_text_cut_within_a_line_is_refused_by_its_line() {
    for (name, count, render) in LINE_FORMATS {
        each(name, *count, |path, text| {
            for end in (1..text.len().min(4000)).step_by(7) {
                let Some(cut) = text.get(..end).filter(|cut| !cut.ends_with('\n')) else {
                    continue;
                };
                let error = render(cut).expect_err(path);
                let line = cut.lines().count();
                assert_eq!(error.object, format!("f:{line}"), "{path} cut at {end}: {error}");
            }
        });
    }
}

#[test]
fn every_other_file_parses() {
    each("ipvs.list", 3, |path, text| {
        let listing = Listing::parse(path, text).unwrap();
        assert!(listing.servers.iter().any(|server| !server.reals.is_empty()), "{path}");
    });
    each("nf_conntrack.stat", 7, |path, text| {
        let stat = ConntrackStat::parse(path, text).unwrap();
        assert!(stat.get("entries").is_some() && stat.get("invalid").is_some(), "{path}");
    });
    each("nft.json", 6, |path, text| {
        let tables = NftTables::parse(path, text).unwrap();
        let objects: usize = tables.tables.iter().map(|table| table.objects.len()).sum();
        let all: serde_json::Value = serde_json::from_str(text).unwrap();
        let all = all["nftables"].as_array().unwrap().len();
        assert_eq!(objects + tables.other.len(), all, "{path}: an object is lost");
        assert!(tables.differences(&tables.clone()).is_empty(), "{path}");
        assert_eq!(tables.differences(&NftTables::default()).len(), objects, "{path}");
    });
    each("addr.json", 7, |path, text| {
        let links = parse_links(path, text).unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.networks().contains(&"127.0.0.0/8".parse().unwrap()), "{path}");
        assert!(link_differences(&links, &links).is_empty());
        assert!(link_differences(&links, &links[1..]).len() >= 2);
    });
    each("route.json", 7, |path, text| {
        let routes = parse_routes(path, text).unwrap();
        assert!(route_differences(&routes, &routes).is_empty());
        assert_eq!(route_differences(&routes, &routes[1..]).len(), 1, "{path}");
        for route in &routes {
            assert_eq!(route.network().is_none(), route.dst == "default", "{path}: {}", route.dst);
        }
    });
    each("rule.json", 7, |path, text| {
        let rules = parse_rules(path, text).unwrap();
        assert_eq!(rules[0].selector["src"], "all", "{path}");
        assert_eq!(rule_differences(&rules, &rules[1..]).len(), 1);
    });
    each("processes.json", 7, |path, text| {
        let processes = parse_processes(path, text).unwrap();
        assert!(processes.iter().any(|process| process.name == "kube-proxy"), "{path}");
        let written = render_processes(&processes).unwrap();
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&written), value(text), "{path}");
    });
    each("files/run/flannel/subnet.env", 1, |path, text| {
        let env = SubnetEnv::parse(path, text).unwrap();
        assert_eq!(env.networks, ["192.168.64.0/20".parse().unwrap()]);
        assert_eq!(env.subnets, ["192.168.75.0/24".parse().unwrap()]);
    });
    each("files/etc/cni/net.d/10-canal.conflist", 1, |path, text| {
        let config = CniConfig::parse(path, text).unwrap();
        let kinds: Vec<&str> = config.plugins.iter().map(|p| p.kind.as_str()).collect();
        assert_eq!((config.name.as_str(), kinds), ("k8s-pod-network", vec!["calico", "portmap"]));
        assert!(config.portmap().unwrap().snat);
    });
}

#[test]
fn kube_proxys_command_line_leads_to_its_configuration() {
    for snapshot in snapshots() {
        let read = |name: &str| fs::read_to_string(snapshot.join(name)).unwrap();
        let processes = parse_processes("processes.json", &read("processes.json")).unwrap();
        let kube_proxy = processes.iter().find(|p| p.name == "kube-proxy").unwrap();
        let line = CommandLine::parse(&kube_proxy.args).unwrap();
        let path = format!("files{}", line.config.as_deref().unwrap());
        let config = KubeProxyConfig::parse(&path, &read(&path)).unwrap();
        let name = snapshot.file_name().unwrap().to_str().unwrap();
        let expected = match name {
            name if name.starts_with("nftables") => Mode::Nftables,
            name if name.contains("ipvs") => Mode::Ipvs,
            _ => Mode::Iptables,
        };
        assert_eq!(line.settings(Some(&config)).unwrap().mode(), expected, "{name}");
        assert_eq!(config.cluster_cidrs[0], "192.168.64.0/20".parse().unwrap(), "{name}");
    }
}

#[test]
fn the_black_hole_shows_in_the_listing() {
    let listing = Listing::parse("l", &snapshot("ipvs-dns-blackhole-1.20", "ipvs.list")).unwrap();
    let draining: Vec<_> = listing.draining().collect();
    assert_eq!(draining.len(), 1);
    let (service, real) = draining[0];
    assert_eq!(service.to_string(), "10.96.0.10:53/udp");
    assert_eq!(real.address.to_string(), "192.168.66.5:53");
    assert_eq!((real.weight, real.active, real.inactive), (0, 0, 6));

    let before = snapshot("half-migrated-ipvs-1.20", "ipvs.save");
    let before = VirtualServers::parse("before", &before).unwrap();
    let after =
        VirtualServers::parse("after", &snapshot("ipvs-dns-blackhole-1.20", "ipvs.save")).unwrap();
    assert_eq!(
        before.differences(&after),
        [
            "+ ipvs 10.96.0.10:53/udp -> 192.168.66.5:53 -m -w 0",
            "- ipvs 10.96.0.10:53/udp -> 192.168.66.5:53 -m -w 1",
        ]
    );
}

#[test]
fn a_foreign_virtual_server_is_the_difference_that_keepalived_made() {
    let before = snapshot("ipvs-dns-blackhole-1.20", "ipvs.save");
    let before = VirtualServers::parse("before", &before).unwrap();
    let after = VirtualServers::parse("after", &snapshot("ipvs-with-keepalived-1.20", "ipvs.save"))
        .unwrap();
    assert_eq!(
        before.differences(&after),
        [
            "+ ipvs 10.9.0.100:8443/tcp -> 10.9.0.11:8443 -g -w 1",
            "+ ipvs 10.9.0.100:8443/tcp -> 10.9.0.12:8443 -g -w 1",
            "+ ipvs 10.9.0.100:8443/tcp -s wlc",
        ]
    );
}

#[test]
fn dumps_of_other_nodes() {
    if let Some(text) = dump("ipset-ipvs-kube-router-ipset-save.txt") {
        let sets = IpSets::parse("dump", &text).unwrap();
        assert_eq!(sets.render(), text);
        assert_eq!(sets.get("inet6:kube-router-node-ips").unwrap().family, Family::Ipv6);
    }
    if let Some(text) = dump("ipset-ipvs-kubeproxy-ipvs-ipvsadm-Ln.txt") {
        let listing = Listing::parse("dump", &text).unwrap();
        let last = listing.servers.last().unwrap();
        assert_eq!(last.service.to_string(), "10.101.177.188:443/tcp");
        assert_eq!((last.reals[0].active, last.reals[0].inactive), (1, 1));
    }
}

/// The output of `script` in network and mount namespaces of its own; none if this user may not
/// create them.
fn in_namespace(script: &str) -> Option<String> {
    let script = format!("set -e; mount -t tmpfs tmpfs /run; ip link set lo up; {script}");
    let out = Command::new("unshare").args(["-nm", "bash", "-c", &script]).output().unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() && error.contains("unshare") {
        assert!(std::env::var_os("CI").is_none(), "no right to make a namespace: {error}");
        eprintln!("skipped: {error}");
        return None;
    }
    assert!(out.status.success(), "{error}");
    Some(String::from_utf8(out.stdout).unwrap())
}

#[test]
fn what_ipset_saves_is_read_and_restored() {
    let script = r#"
        ipset create 'a;^$[]!|~#' hash:ip,port family inet6 comment counters skbinfo timeout 60
        ipset add 'a;^$[]!|~#' fd00::1,80 comment "two words, timeout 5" timeout 0 skbmark 0x1/0x2
        ipset add 'a;^$[]!|~#' fd00::2,udp:53
        ipset create p bitmap:port range 0-9
        ipset add p 8
        ipset create n hash:net,iface forceadd
        ipset add n 10.0.0.0/8,eth0 nomatch
        ipset create all list:set size 4
        ipset add all p
        ipset save"#;
    let Some(text) = in_namespace(script) else { return };
    let saved = IpSets::parse("ipset.save", &text).unwrap();
    assert_eq!(saved.render(), text);
    assert_eq!((saved.sets.len(), saved.get("n").unwrap().entries.len()), (4, 1));
    let script = format!("ipset restore <<'END'\n{text}END\nsleep 1.1; ipset save");
    let again = IpSets::parse("ipset.save", &in_namespace(&script).unwrap()).unwrap();
    assert_ne!(again, saved);
    assert_eq!(saved.differences(&again), Vec::<String>::new());
}

#[test]
fn what_packets_move_in_nft_is_no_difference() {
    let script = r#"
        nft -f - <<'END'
table inet t {
  set s { type ipv4_addr; flags dynamic,timeout; timeout 60s; }
  set d { type ipv4_addr; size 100; flags dynamic; }
  set q { type ipv4_addr; flags timeout; elements = { 1.2.3.5 timeout 9s, 1.2.3.6 }; }
  counter c { }
  quota k { 10 mbytes }
  chain x {
    type filter hook output priority 0;
    ip daddr 127.0.0.1 counter update @s { ip daddr limit rate 5/second } counter name c
    ip daddr 127.0.0.1 add @d { ip daddr counter }
    quota until 5 mbytes
    quota name "k"
    tcp dport vmap { 80 : accept, 81 : drop }
  }
}
END
        nft -j list ruleset
        echo hi > /dev/udp/127.0.0.1/53
        sleep 1.1
        nft -j list ruleset
        nft add rule inet t x tcp dport 82 accept
        nft -j list ruleset"#;
    let Some(text) = in_namespace(script) else { return };
    let states: Vec<NftTables> =
        text.lines().map(|line| NftTables::parse("nft.json", line).unwrap()).collect();
    assert_eq!(states.len(), 3);
    assert_ne!(states[0], states[1]);
    assert_eq!(states[0].differences(&states[1]), Vec::<String>::new());
    assert_eq!(states[1].differences(&states[2]).len(), 1);
}

#[test]
fn what_ip_prints_is_read_with_and_without_details() {
    let script = r#"
        ip link add br0 type bridge
        ip addr add 172.18.0.1/16 dev br0
        ip link add v0 type veth peer name v1
        ip link set v0 master br0
        for link in br0 v0 v1; do ip link set $link addrgenmode none up; done
        ip addr add 10.1.0.1 peer 10.1.0.2/32 dev v1
        ip route add default nexthop via 172.18.0.2 nexthop dev v1
        ip route add blackhole 10.3.0.0/16
        ip route add 10.5.0.0/16 via inet6 fe80::1 dev br0
        ip rule add not from 10.0.0.0/8 fwmark 0x1/0xff iif nosuch table 7
        for details in -d ''; do
            ip -j $details addr; echo
            ip -j $details route show table all; echo
            ip -j rule; echo
        done"#;
    let Some(text) = in_namespace(script) else { return };
    let texts: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    let [links, routes, rules, _, routes_again, rules_again] = texts[..] else { panic!("{text}") };
    let links = parse_links("addr.json", links).unwrap();
    let link = |name: &str| links.iter().find(|link| link.name == name).unwrap();
    assert_eq!(link("br0").kind.as_deref(), Some("bridge"));
    assert_eq!(link("br0").networks(), ["172.18.0.0/16".parse().unwrap()]);
    assert_eq!((link("v0").master.as_deref(), link("v1").up), (Some("br0"), true));
    let routes = parse_routes("route.json", routes).unwrap();
    let via = routes.iter().find(|route| route.dst == "10.5.0.0/16").unwrap();
    assert_eq!(via.via.as_ref().unwrap()["host"], "fe80::1");
    let routes_again = parse_routes("route.json", routes_again).unwrap();
    assert_eq!(route_differences(&routes, &routes_again), Vec::<String>::new());
    let rules = parse_rules("rule.json", rules).unwrap();
    let ours = rules.iter().find(|rule| rule.table.as_deref() == Some("7")).unwrap();
    assert_eq!(ours.selector["fwmark"], "0x1");
    assert!(rule_differences(&rules, &parse_rules("rule.json", rules_again).unwrap()).is_empty());
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)]
}

fn ipset() -> impl Strategy<Value = IpSet> {
    let kinds = prop_oneof![Just("hash:ip,port"), Just("hash:net"), Just("list:set")];
    let entries = vec("[!-~]{1,20}( timeout [0-9]{1,4})?( comment \"[ -!#-~]{0,9}\")?", 0..6);
    ("[!-~]{1,31}", kinds, families(), vec("[a-z]{1,9} [0-9]{1,4}", 0..3), entries).prop_map(
        |(name, kind, family, more, entries)| {
            let family_name = if family == Family::Ipv4 { "inet" } else { "inet6" };
            let mut options = vec!["family".to_owned(), family_name.to_owned()];
            options.extend(more.iter().flat_map(|pair| pair.split(' ')).map(str::to_owned));
            IpSet { name, kind: kind.to_owned(), family, options, entries }
        },
    )
}

fn ipsets() -> impl Strategy<Value = IpSets> {
    vec(ipset(), 0..6).prop_map(|mut sets| {
        sets.sort_by(|a, b| a.name.cmp(&b.name));
        sets.dedup_by(|a, b| a.name == b.name);
        IpSets { sets }
    })
}

fn service() -> impl Strategy<Value = VirtualServerId> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
    prop_oneof![
        (protocol, any::<SocketAddr>()).prop_map(|(protocol, address)| VirtualServerId::Address {
            protocol,
            address: plain(address)
        }),
        (1u32.., families()).prop_map(|(mark, family)| VirtualServerId::Fwmark { mark, family }),
    ]
}

/// The address without its IPv6 scope, because ipvs has no scopes.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

fn real() -> impl Strategy<Value = RealServer> {
    let forward = prop_oneof![Just(Forward::Masq), Just(Forward::Route), Just(Forward::Tunnel)];
    let limits = (option::of(any::<u32>()), option::of(any::<u32>()));
    let other = vec("--tun-[a-z]{1,5}", 0..3);
    (any::<SocketAddr>(), forward, any::<u32>(), limits, other).prop_map(
        |(address, forward, weight, (upper, lower), other)| RealServer {
            address: plain(address),
            forward,
            weight,
            upper,
            lower,
            other,
        },
    )
}

fn server() -> impl Strategy<Value = VirtualServer> {
    let persistent = (option::of(any::<u32>()), option::of("[0-9]{1,3}"), option::of("[a-z]{3}"));
    let flags = (any::<bool>(), option::of("[a-z,-]{1,9}"), vec("--[a-z]{3,9}", 0..2));
    (service(), "[a-z]{2,5}", persistent, flags, vec(real(), 0..4)).prop_filter_map(
        "--pe is known",
        |(service, scheduler, (persistent, mask, engine), (one_packet, flags, other), reals)| {
            let server = VirtualServer {
                service,
                scheduler,
                persistent,
                mask,
                engine,
                one_packet,
                flags,
                other,
                reals,
            };
            (!server.other.iter().any(|word| word == "--pe")).then_some(server)
        },
    )
}

fn ipvs() -> impl Strategy<Value = VirtualServers> {
    vec(server(), 0..5).prop_map(|mut servers| {
        servers.sort_by_key(|server| server.service);
        servers.dedup_by_key(|server| server.service);
        VirtualServers { servers }
    })
}

proptest! {
    #[test]
    fn ipsets_survive_their_text_and_json(sets in ipsets()) {
        let text = sets.render();
        let read = IpSets::parse("f", &text).unwrap();
        prop_assert_eq!(&read, &sets);
        prop_assert_eq!(read.render(), text);
        let json = serde_json::to_string(&sets).unwrap();
        prop_assert_eq!(serde_json::from_str::<IpSets>(&json).unwrap(), sets);
    }

    #[test]
    fn ipset_order_is_no_difference(sets in ipsets()) {
        let mut turned = sets.clone();
        turned.sets.reverse();
        turned.sets.iter_mut().for_each(|set| set.entries.reverse());
        prop_assert!(sets.differences(&turned).is_empty());
    }

    #[test]
    fn virtual_servers_survive_their_text_and_json(ipvs in ipvs()) {
        let text = ipvs.render();
        let read = VirtualServers::parse("f", &text).unwrap();
        prop_assert_eq!(&read, &ipvs);
        prop_assert_eq!(read.render(), text);
        let json = serde_json::to_string(&ipvs).unwrap();
        prop_assert_eq!(serde_json::from_str::<VirtualServers>(&json).unwrap(), ipvs.clone());
        let mut turned = ipvs.clone();
        turned.servers.reverse();
        turned.servers.iter_mut().for_each(|server| server.reals.reverse());
        prop_assert!(ipvs.differences(&turned).is_empty());
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "(create |add |-A |-a |-t |-f |[ -~\t\n\r]|\\PC){0,60}") {
        for (_, _, render) in LINE_FORMATS {
            if let Ok(again) = render(&text) {
                prop_assert!(render(&again).is_ok(), "{again}");
            }
        }
        let _ = Listing::parse("f", &text);
        let _ = ConntrackStat::parse("f", &text);
        let _ = SubnetEnv::parse("f", &text);
        let _ = KubeProxyConfig::parse("f", &text);
        let _ = CommandLine::parse(&text.split(' ').collect::<Vec<_>>());
    }
}
