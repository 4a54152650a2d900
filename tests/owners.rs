//! The owner of every object on the captured nodes.

mod nodes;

use std::collections::BTreeSet;
use std::fs;

use proxyshift::kube_proxy::running::RunningMode;
use proxyshift::owners::attribution::Evidence;
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::files::known_processes;
use proxyshift::owners::matcher::{OPERATOR, Ownership, UNKNOWN};
use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::tools::Version;
use proxyshift::state::{Backend, Family, Files, NodeState, RulesetId};

const NFT: RulesetId = RulesetId { family: Family::Ipv4, backend: Backend::Nft };

fn catalogue() -> Catalogue {
    Catalogue::builtin().expect("the catalogue")
}

/// The rules whose owner is unknown, each with the reason.
fn unknown_rules(state: &NodeState, owners: &Ownership<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for (id, ruleset) in &state.rulesets {
        for table in &ruleset.tables {
            for (chain, position, rule) in table.rules() {
                let owner = owners.rule(*id, &table.name, &chain.name, position).expect("an owner");
                assert!(!owner.reason.is_empty());
                if owner.name == UNKNOWN {
                    found.push(format!("{}: {}", ruleset.rule_text(rule), owner.reason));
                }
            }
        }
    }
    found
}

/// The node state that has only the rules of an `iptables-save` text.
fn of_rules(text: &str) -> NodeState {
    let files = Files::from([("iptables-nft.save".to_owned(), text.into())]);
    NodeState::parse(files).expect("rules")
}

/// The owner of `rule`, which is the only rule in a table that has these chains.
fn owner_of(table: &str, chains: &[&str], rule: &str) -> String {
    let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let declared: String = built_in.iter().map(|c| format!(":{c} ACCEPT [0:0]\n")).collect();
    let chains: String = chains.iter().map(|c| format!(":{c} - [0:0]\n")).collect();
    let state = of_rules(&format!("*{table}\n{declared}{chains}{rule}\nCOMMIT\n"));
    let catalogue = catalogue();
    let owners = Ownership::of(&catalogue, &state);
    let chain = rule.split(' ').nth(1).expect("a chain");
    owners.rule(NFT, table, chain, 0).expect("the rule").name.to_owned()
}

#[test]
fn everything_on_the_nodes_has_an_owner() {
    let catalogue = catalogue();
    for name in nodes::names() {
        let state = nodes::state(&nodes::files(&name));
        let owners = Ownership::of(&catalogue, &state);
        assert_eq!(unknown_rules(&state, &owners), [""; 0], "{name}");
        for (id, ruleset) in &state.rulesets {
            for table in &ruleset.tables {
                for chain in &table.chains {
                    let owner = owners.chain(*id, &table.name, &chain.name).expect("an owner");
                    assert_ne!(owner.name, UNKNOWN, "{name} {}", chain.name);
                }
            }
        }
        for set in &state.ipsets.sets {
            assert_ne!(owners.set(&set.name).expect("an owner").name, UNKNOWN, "{}", set.name);
        }
        // The links of the machine itself have no owner: loopback, and the link to the outside. On
        // the nodes of 1.34 and 1.37, neither have the bridge and the veths of the pods, which no CNI
        // made, and the far end of the link to the outside.
        let of_pods = ["cni1", "peer", "vd1", "vp1", "vp2", "vp3"];
        let of_no_one = |l: &&str| owners.link(l).expect("an owner").name == UNKNOWN;
        let links: BTreeSet<&str> =
            state.links.iter().map(|l| l.name.as_str()).filter(of_no_one).collect();
        let others = links.iter().filter(|l| !of_pods.contains(l)).count();
        assert_eq!(others, 2, "{name}: {links:?}");
        assert!(links.contains("lo"));
    }
}

#[test]
fn counts_of_the_incident() {
    let catalogue = catalogue();
    let state = nodes::state(&nodes::files("canal-stale-flannel-1.20"));
    let owners = Ownership::of(&catalogue, &state);
    let counts = owners.counts();
    let rules = |name: &str| (counts[name].chains, counts[name].rules);
    assert_eq!(rules("calico"), (11, 17));
    assert_eq!(rules("docker"), (5, 15));
    assert_eq!(rules("flannel"), (0, 7));
    assert_eq!(rules("kubelet"), (5, 5));
    assert_eq!(rules("kube-proxy"), (117, 320));
    assert_eq!(counts["calico"].sets, 3);
    assert_eq!(counts.values().map(|c| c.rules).sum::<usize>(), state.rulesets[&NFT].rule_count());
}

#[test]
fn sets_servers_links_and_tables() {
    let (catalogue, state) =
        (catalogue(), nodes::state(&nodes::files("ipvs-with-keepalived-1.20")));
    let owners = Ownership::of(&catalogue, &state);
    let mut foreign = Vec::new();
    for server in &state.ipvs.servers {
        let owner = owners.virtual_server(&server.service).expect("an owner");
        if owner.name != "kube-proxy" {
            foreign.push((server.service.to_string(), owner.name.to_owned()));
        }
    }
    assert_eq!(foreign, [("10.9.0.100:8443/tcp".to_owned(), "keepalived".to_owned())]);
    assert_eq!(owners.link("kube-ipvs0").map(|o| o.name), Some("kube-proxy"));
    assert_eq!(owners.link("docker0").map(|o| o.name), Some("docker"));
    assert_eq!(owners.link("eth7"), None);

    let state = nodes::state(&nodes::files("nftables-leftovers-1.30"));
    let owners = Ownership::of(&catalogue, &state);
    assert_eq!(owners.table("ip6", "kube-proxy").map(|o| o.name), Some("kube-proxy"));
    assert_eq!(owners.table("ip", "nat"), None, "iptables-nft's tables are not native");
    assert_eq!(owners.counts()["kube-proxy"].tables, 2);
}

#[test]
fn without_a_process_the_foreign_server_is_unknown() {
    let mut files = nodes::files("ipvs-with-keepalived-1.20");
    files.remove("processes.json");
    let catalogue = catalogue();
    let state = nodes::state(&files);
    let owners = Ownership::of(&catalogue, &state);
    assert_eq!(owners.counts()[UNKNOWN].virtual_servers, 1);
}

#[test]
fn names_of_sets_are_cut() {
    let set = |name: &str| {
        let text = format!("create {name} hash:ip family inet6\n");
        let files = Files::from([("ipset.save".to_owned(), text.into())]);
        let catalogue = catalogue();
        let state = NodeState::parse(files).expect("sets");
        Ownership::of(&catalogue, &state).set(name).expect("an owner").name.to_owned()
    };
    for (name, owner) in [
        ("KUBE-6-LOAD-BALANCER-SOURCE-CID", "kube-proxy"),
        ("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", "kube-proxy"),
        ("KUBE-NODE-PORT-SCTP", "kube-proxy"),
        ("KUBE-SRC-ABCDEFGH", "kube-router"),
        ("KUBE-MINE", UNKNOWN),
        ("weave-;rGqyMIl1HN^cfDki~Z$3]6!N", "weave"),
        ("cali40all-ipam-pools", "calico"),
    ] {
        assert_eq!(set(name), owner, "{name}");
    }
}

#[test]
fn someone_elses_rule_in_kube_proxys_chain_is_not_kube_proxys() {
    let svc = "KUBE-SVC-ABCDEFGHIJKLMNOP";
    let sep = "KUBE-SEP-ABCDEFGHIJKLMNOP";
    let owner = |rule: &str| owner_of("nat", &[svc, sep, "KUBE-MARK-MASQ", "KUBE-SERVICES"], rule);
    for rule in [
        format!("-A {svc} -s 1.2.3.4/32 -j ACCEPT"),
        format!("-A {svc} -s 1.2.3.4/32 -j {sep}"),
        format!("-A {svc} -m comment --comment \"my own\" -j {sep}"),
        format!("-A {svc} -m comment --comment \"default/app:http\" -j ACCEPT"),
        format!(
            "-A {sep} -p tcp -m comment --comment \"a/b\" -m tcp -j DNAT --to-destination :0 --persistent --to-destination :0"
        ),
        "-A KUBE-MARK-MASQ -j ACCEPT".to_owned(),
        "-A KUBE-MARK-MASQ -s 1.2.3.4/32 -j MARK --set-xmark 0x4000/0x4000".to_owned(),
        format!("-A KUBE-SERVICES -j {svc}"),
        // In a built-in chain, a rule's target alone is no evidence that the rule is kube-proxy's.
        "-A PREROUTING -s 1.2.3.4/32 -j KUBE-SERVICES".to_owned(),
        "-A PREROUTING -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT".to_owned(),
    ] {
        assert_eq!(owner(&rule), UNKNOWN, "{rule}");
    }
    for rule in [
        // kube-proxy writes rules without comments in clusters with over 1,000 endpoints.
        format!("-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j {svc}"),
        format!(
            "-A {svc} ! -s 10.0.0.0/8 -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-MARK-MASQ"
        ),
        format!("-A {svc} -m statistic --mode random --probability 0.50000000000 -j {sep}"),
        format!("-A {sep} -s 10.0.0.1/32 -j KUBE-MARK-MASQ"),
        format!("-A {sep} -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:6443"),
        format!(
            "-A {sep} -p tcp -m comment --comment \"a/b:c\" -m tcp -j DNAT --to-destination [fd00::1]:6443"
        ),
        format!("-A {svc} -m comment --comment \"a/b:c -> 10.0.0.1:6443\" -j {sep}"),
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000".to_owned(),
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES"
            .to_owned(),
    ] {
        assert_eq!(owner(&rule), "kube-proxy", "{rule}");
    }
}

#[test]
fn rules_of_built_in_chains() {
    for (table, chains, rule, owner) in [
        ("filter", &["KUBE-FIREWALL"][..], "-A INPUT -j KUBE-FIREWALL", "kubelet"),
        ("filter", &["DOCKER-USER"], "-A FORWARD -j DOCKER-USER", "docker"),
        ("filter", &["DOCKER-USER"], "-A DOCKER-USER -j RETURN", "docker"),
        ("filter", &["DOCKER-USER"], "-A DOCKER-USER -s 1.2.3.4/32 -j DROP", OPERATOR),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 172.18.0.0/16 ! -o br-09c2aebb3de0 -j MASQUERADE",
            "docker",
        ),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 10.1.0.0/16 ! -o lab -j SNAT --to-source 1.2.3.4",
            "docker",
        ),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 10.1.0.2/32 -d 10.1.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
            "docker",
        ),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 10.1.0.2/32 -d 10.1.0.3/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
            UNKNOWN,
        ),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE",
            "libvirt",
        ),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN",
            "flannel",
        ),
        (
            "nat",
            &[],
            "-A POSTROUTING -s 10.0.0.0/8 -m comment --comment \"flannel masq\" -j RETURN",
            "flannel",
        ),
        // In FORWARD, a rule with only a network is flannel's if another rule of flannel has the
        // same network; otherwise its owner is unknown.
        ("filter", &[], "-A FORWARD -s 10.0.0.0/8 -j ACCEPT", UNKNOWN),
        ("filter", &[], "-A FORWARD -i cali02fca994756 -j ACCEPT", "calico"),
        (
            "raw",
            &[],
            "-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j CT --notrack",
            "nodelocaldns",
        ),
        (
            "filter",
            &[],
            "-A INPUT -m comment --comment \"100 allow ssh\" -p tcp -m tcp --dport 22 -j ACCEPT",
            "puppet",
        ),
        (
            "security",
            &[],
            "-A OUTPUT -d 168.63.129.16/32 -p tcp -m tcp --dport 53 -j ACCEPT",
            "aks",
        ),
        (
            "nat",
            &["CNI-HOSTPORT-DNAT"],
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "cni-portmap",
        ),
        (
            "nat",
            &[],
            r#"-A POSTROUTING -s 10.1.0.5/32 -m comment --comment "name: \"net\" id: \"abc\"" -j ACCEPT"#,
            "cni-masq",
        ),
        (
            "nat",
            &["AWS-SNAT-CHAIN-0"],
            "-A POSTROUTING -m comment --comment \"AWS SNAT CHAIN\" -j AWS-SNAT-CHAIN-0",
            "aws-vpc-cni",
        ),
        ("filter", &["MINE"], "-A MINE -j ACCEPT", UNKNOWN),
    ] {
        assert_eq!(owner_of(table, chains, rule), owner, "{rule}");
    }
}

#[test]
fn weak_evidence_is_called_so() {
    let catalogue = catalogue();
    let state = nodes::state(&nodes::files("canal-stale-flannel-1.20"));
    let owners = Ownership::of(&catalogue, &state);
    let owner = owners.rule(NFT, "nat", "POSTROUTING", 3).expect("the stale rule");
    assert_eq!(owner.name, "flannel");
    assert!(matches!(owner.evidence, Evidence::Shape(_)));
    assert!(owner.reason.starts_with("probably flannel's"), "{}", owner.reason);
}

#[test]
fn the_mode_that_runs() {
    let catalogue = catalogue();
    for name in nodes::names() {
        let mut files = nodes::files(&name);
        let state = nodes::state(&files);
        let running = RunningMode::of(&state, &Ownership::of(&catalogue, &state));
        let expected = match &*name {
            n if n.contains("ipvs") => Mode::Ipvs,
            n if n.starts_with("nftables") => Mode::Nftables,
            _ => Mode::Iptables,
        };
        assert_eq!(running.mode, Some(expected), "{name}: {}", running.evidence);
        let version = match &*name {
            "iptables-1.34" | "nftables-1.34" | "ipvs-1.34" => Version::find("1.34.4"),
            "nftables-beside-iptables-1.37"
            | "nftables-leftovers-legacy-1.37"
            | "ipvs-1.37"
            | "half-migrated-ipvs-1.37" => Version::find("1.37.2"),
            // The other captures do not have it.
            _ => None,
        };
        assert_eq!(running.version, version, "{name}");
        // If the configuration names another mode than the rules show, the node is between two
        // modes.
        let other = if expected == Mode::Ipvs { "iptables" } else { "ipvs" };
        let (from, to) = (format!("mode: {expected}"), format!("mode: {other}"));
        nodes::replace(&mut files, "files/var/lib/kube-proxy/config.conf", &from, &to);
        let state = nodes::state(&files);
        let running = RunningMode::of(&state, &Ownership::of(&catalogue, &state));
        assert_eq!(running.mode, None, "{name}: {}", running.evidence);
    }
}

/// Needs the folder of dumps that `PROXYSHIFT_DUMPS` names.
#[test]
fn dumps_from_the_wild() {
    let Some(dumps) = nodes::dumps() else { return };
    let catalogue = catalogue();
    let (mut objects, mut unknown) = (0, 0);
    let mut found_owners = BTreeSet::new();
    for entry in fs::read_dir(dumps.join("whole")).expect("whole/") {
        let path = entry.expect("an entry").path();
        let state = of_rules(&fs::read_to_string(&path).expect("text"));
        let owners = Ownership::of(&catalogue, &state);
        let nobodys = unknown_rules(&state, &owners);
        let counts = owners.counts();
        let known: Vec<&str> = counts.keys().copied().filter(|n| *n != UNKNOWN).collect();
        found_owners.extend(known.iter().map(|n| (*n).to_owned()));
        // A host on which no component is found says nothing about the catalogue.
        if !known.is_empty() {
            objects += counts.values().map(|c| c.chains + c.rules).sum::<usize>();
            unknown += nobodys.len() + counts.get(UNKNOWN).map_or(0, |c| c.chains);
        }
    }
    assert!(objects > 1_200, "{objects}");
    // These rules are operators' and firewalld's own in built-in chains: `-i lo`, `ctstate`, the
    // last REJECT.
    assert_eq!(unknown, 31);
    for owner in ["weave", "azure-npm", "calico", "istio", "libvirt", "firewalld", "docker", "aks"]
    {
        assert!(found_owners.contains(owner), "{owner}: {found_owners:?}");
    }
}

#[test]
fn exactly_the_processes_of_the_catalogue_are_captured() {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let signs = catalogue.components().iter().flat_map(|c| &c.alive.processes);
    let mut expected: BTreeSet<String> = signs.flat_map(|sign| sign.names.clone()).collect();
    expected.extend(["calico", "hyperkube"].map(str::to_owned));
    assert_eq!(*known_processes().expect("the catalogue"), expected);
}
