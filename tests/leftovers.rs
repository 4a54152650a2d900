//! Exactly what the plan removes on each captured node, and the reasons for what it keeps.

mod nodes;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::plan::leftovers::leftovers;
use proxyshift::plan::{Action, Object, Plan};
use proxyshift::state::object::{ObjectId, ObjectKind};
use proxyshift::state::{Files, NodeState};

const SAVE: &str = "iptables-nft.save";
const HALF: &str = "half-migrated-ipvs-1.20";
const CANAL: &str = "canal-stale-flannel-1.20";
const STALE: &str = "-A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN";

fn plan(files: &Files) -> Plan {
    plan_of(&nodes::state(files))
}

fn plan_of(state: &NodeState) -> Plan {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    plan_with(&catalogue, state)
}

fn plan_with(catalogue: &Catalogue, state: &NodeState) -> Plan {
    let plan = leftovers(catalogue, state, &Ownership::of(catalogue, state));
    let mut sorted = plan.objects.clone();
    sorted.sort();
    assert_eq!(plan.objects, sorted);
    plan
}

/// How many chains are removed, keyed by `family table name`; chains of services and endpoints are
/// counted together by their kind, as in `KUBE-SVC-*`.
fn chains(plan: &Plan) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for object in plan.removals().filter(|o| o.kind() == ObjectKind::Chain) {
        let table = object.id.table().map_or("", |t| &t.name);
        let name = match object.id.name().split('-').collect::<Vec<_>>()[..] {
            ["KUBE", kind, hash] if hash.len() == 16 => format!("KUBE-{kind}-*"),
            _ => object.id.name().to_string(),
        };
        let family = object.id.family().map(|f| f.to_string()).unwrap_or_default();
        *found.entry(format!("{family} {table} {name}")).or_default() += 1;
    }
    found
}

/// The texts of the rules that are removed from chains that stay.
fn jumps(plan: &Plan) -> Vec<Cow<'_, str>> {
    let gone = |o: &Object| {
        plan.removals().any(|c| {
            c.kind() == ObjectKind::Chain
                && (c.id.table(), c.id.chain()) == (o.id.table(), o.id.chain())
        })
    };
    let rules = plan.removals().filter(|o| o.kind() == ObjectKind::Rule && !gone(o));
    rules.map(|o| o.text()).collect()
}

fn names(plan: &Plan, action: Action, kind: ObjectKind) -> Vec<Cow<'_, str>> {
    let objects = plan.objects.iter().filter(|o| o.action == action && o.kind() == kind);
    objects.map(|o| o.id.name()).collect()
}

fn reason(plan: &Plan, table: &str, name: &str) -> String {
    let found = plan.objects.iter().find(|o| {
        o.action == Action::Keep
            && o.kind() == ObjectKind::Chain
            && o.id.table().is_some_and(|t| t.name == table)
            && o.id.name() == name
    });
    found.map_or_else(String::new, |o| o.sentence())
}

fn position(object: &Object) -> Option<u32> {
    match object.id {
        ObjectId::Rule { position, .. } => Some(position),
        _ => None,
    }
}

/// The objects that are removed, as texts without the rules' indexes.
fn removals(plan: &Plan) -> BTreeSet<String> {
    let line = |o: &Object| {
        let family = o.id.family().map(|f| f.to_string()).unwrap_or_default();
        let table = o.id.table().map_or("", |t| &t.name);
        format!("{:?} {family} {} {table} {} {}", o.kind(), o.id.backend(), o.id.name(), o.text())
    };
    plan.removals().map(line).collect()
}

#[test]
fn the_stale_rule_of_the_incident_and_nothing_else() {
    let plan = plan(&nodes::files(CANAL));
    let gone: Vec<&Object> = plan.removals().collect();
    assert_eq!(gone.len(), 1);
    assert_eq!((gone[0].text(), position(gone[0])), (STALE.into(), Some(3)));
    assert_eq!(gone[0].owner, "flannel");
    assert_eq!(
        gone[0].sentence(),
        "left of its lease 192.168.66.0/24; its lease is now 192.168.75.0/24"
    );
    let live = |o: &&Object| o.owner == "flannel" && o.action == Action::Keep;
    assert_eq!(plan.objects.iter().filter(live).count(), 6);
    assert_eq!(
        reason(&plan, "nat", "cali-POSTROUTING"),
        "calico's, which lives: process calico-node (1533) runs"
    );
}

#[test]
fn nodes_without_leftovers() {
    let clean = [
        "docker-iptables-1.30",
        "docker-legacy-iptables-1.20-no-conntrack",
        "iptables-1.34",
        "iptables-1.37",
        "nftables-1.37",
        "ipvs-1.34",
        "ipvs-1.37",
    ];
    // Without a kubelet, nothing made this node's KUBE-FIREWALL.
    assert_eq!(removals(&plan(&nodes::files("nftables-1.34"))), BTreeSet::new());
    for name in clean {
        let plan = plan(&nodes::files(name));
        assert_eq!(removals(&plan), BTreeSet::new(), "{name}");
        assert_eq!(
            reason(&plan, "filter", "KUBE-FIREWALL"),
            "the kubelet's; kube-proxy from 1.27 on only writes a copy"
        );
        let masquerade = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
        let kept = plan.objects.iter().find(|o| o.text() == masquerade).expect("docker0's rule");
        assert_eq!(kept.sentence(), "docker's, which never writes it again by itself");
    }
}

/// kube-proxy 1.37 has other chains of the same names in both modes, in both families.
#[test]
fn a_half_migrated_node_of_today_loses_what_iptables_mode_left() {
    let (half, clean) = (nodes::files("half-migrated-ipvs-1.37"), nodes::files("ipvs-1.37"));
    let gone = removals(&plan(&half));
    for family in ["ipv4", "ipv6"] {
        let of = |kind: &str, part: &str| {
            let of_kind = gone.iter().filter(|line| line.starts_with(&format!("{kind} {family}")));
            of_kind.filter(|line| line.contains(part)).count()
        };
        assert_eq!(of("Chain", " KUBE-NODEPORTS "), 2, "{gone:#?}");
        assert_eq!(of("Rule", "-j KUBE-PROXY-FIREWALL"), 3, "{gone:#?}");
        assert!(of("Chain", " KUBE-SVC-") > 0 && of("Chain", " KUBE-EXT-") > 0, "{gone:#?}");
    }
    // What stays is what a node that began in ipvs mode has.
    let kept = |plan: &Plan| -> BTreeSet<String> {
        let chains = plan.objects.iter().filter(|o| o.action == Action::Keep);
        let chains = chains.filter(|o| o.kind() == ObjectKind::Chain);
        chains.map(|o| format!("{} {}", o.id.backend(), o.id.name())).collect()
    };
    assert_eq!(kept(&plan(&half)), kept(&plan(&clean)));
}

/// A second kube-proxy, in iptables mode, deleted the tables of the first one, which has made only
/// that of IPv4 anew: what serves IPv6 is left of the second.
#[test]
fn what_alone_serves_a_family_stays() {
    let mut files = nodes::files("nftables-beside-iptables-1.37");
    let both = removals(&plan(&files));
    assert!(both.iter().any(|line| line.contains("ipv4")) && both.len() > 100, "{both:?}");
    assert!(!both.iter().any(|line| line.contains("ipv6")), "{both:?}");
    assert!(
        plan(&files).objects.iter().any(|o| o.sentence().contains("which alone serves ipv6")),
        "the plan says why"
    );
    // Once the running mode has the family too, the rest goes.
    let whole = nodes::files("nftables-leftovers-legacy-1.37")["nft.json"].clone();
    files.insert("nft.json".into(), whole);
    assert!(removals(&plan(&files)).iter().any(|line| line.contains("ipv6")));
}

/// kube-proxy 1.37 in nftables mode removes what it finds by one iptables, here that of the nft
/// backend: all that legacy tables hold is left.
#[test]
fn the_other_backend_is_left_whole() {
    let plan = plan(&nodes::files("nftables-leftovers-legacy-1.37"));
    let gone = removals(&plan);
    assert!(gone.len() > 200 && gone.iter().all(|line| line.contains(" legacy ")), "{gone:?}");
    assert!(gone.iter().any(|line| line.contains("ipv6")), "{gone:?}");
}

#[test]
fn half_migrated_nodes_lose_what_iptables_mode_left() {
    for name in [HALF, "ipvs-dns-blackhole-1.20", "ipvs-with-keepalived-1.20"] {
        let plan = plan(&nodes::files(name));
        let save = nodes::files(name)[SAVE].to_string();
        let declared = |prefix: &str| save.matches(&format!("\n:{prefix}-")).count();
        let expected: BTreeMap<String, usize> = [
            ("ipv4 filter KUBE-EXTERNAL-SERVICES", 1),
            ("ipv4 filter KUBE-PROXY-CANARY", 1),
            ("ipv4 filter KUBE-SERVICES", 1),
            ("ipv4 mangle KUBE-PROXY-CANARY", 1),
            ("ipv4 nat KUBE-FW-*", 1),
            ("ipv4 nat KUBE-NODEPORTS", 1),
            ("ipv4 nat KUBE-PROXY-CANARY", 1),
            ("ipv4 nat KUBE-SEP-*", declared("KUBE-SEP")),
            ("ipv4 nat KUBE-SVC-*", declared("KUBE-SVC")),
            ("ipv4 nat KUBE-XLB-*", 1),
        ]
        .map(|(n, c)| (n.to_owned(), c))
        .into();
        assert_eq!(chains(&plan), expected, "{name}");
        assert_eq!(
            jumps(&plan),
            [
                r#"-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#,
                r#"-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES"#,
                r#"-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES"#,
                r#"-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES"#,
            ],
            "{name}"
        );
        let kinds: BTreeSet<ObjectKind> = plan.removals().map(|o| o.kind()).collect();
        assert_eq!(kinds, [ObjectKind::Chain, ObjectKind::Rule].into(), "{name}");
        let rules = plan.removals().filter(|o| o.kind() == ObjectKind::Rule).count();
        let in_leftovers = ["SVC-", "SEP-", "FW-", "XLB-", "NODEPORTS "];
        let rules_there: usize =
            in_leftovers.iter().map(|p| save.matches(&format!("] -A KUBE-{p}")).count()).sum();
        // Besides the rules in the removed chains, the REJECT in filter KUBE-SERVICES and four
        // jumps are removed.
        assert_eq!(rules, rules_there + 1 + 4, "{name}");
        for (table, kept, why) in [
            ("nat", "KUBE-SERVICES", "shared by iptables and ipvs mode"),
            (
                "nat",
                "KUBE-POSTROUTING",
                "shared by iptables and ipvs mode, and with the kubelet up to 1.26",
            ),
            (
                "nat",
                "KUBE-MARK-MASQ",
                "shared by iptables and ipvs mode, and with the kubelet up to 1.26",
            ),
            ("nat", "KUBE-MARK-DROP", "the kubelet's up to 1.27; kube-proxy up to 1.24 needs it"),
            ("nat", "KUBE-FIREWALL", "kube-proxy runs in ipvs mode and uses it"),
            ("nat", "KUBE-LOAD-BALANCER", "kube-proxy runs in ipvs mode and uses it"),
            ("nat", "KUBE-NODE-PORT", "kube-proxy runs in ipvs mode and uses it"),
            ("filter", "KUBE-FORWARD", "shared by iptables and ipvs mode"),
            (
                "filter",
                "KUBE-FIREWALL",
                "the kubelet's; kube-proxy from 1.27 on only writes a copy",
            ),
            (
                "mangle",
                "KUBE-KUBELET-CANARY",
                "the kubelet's: it watches this chain to notice a flush",
            ),
        ] {
            assert_eq!(reason(&plan, table, kept), why, "{name} {kept}");
        }
        assert_eq!(names(&plan, Action::Keep, ObjectKind::Link), ["kube-ipvs0"]);
    }
    let plan = plan(&nodes::files("ipvs-with-keepalived-1.20"));
    assert_eq!(names(&plan, Action::Keep, ObjectKind::VirtualServer), ["10.9.0.100:8443/tcp"]);
}

#[test]
fn nftables_mode_leaves_marks_and_canaries() {
    let mut files = nodes::files("nftables-leftovers-1.30");
    let found = plan(&files);
    let mut expected = BTreeMap::new();
    for family in ["ipv4", "ipv6"] {
        expected.insert(format!("{family} nat KUBE-MARK-MASQ"), 1);
        for table in ["mangle", "nat", "filter"] {
            expected.insert(format!("{family} {table} KUBE-PROXY-CANARY"), 1);
        }
    }
    assert_eq!(chains(&found), expected);
    assert_eq!(jumps(&found), [""; 0]);
    assert_eq!(found.removals().count(), 8 + 2);
    assert_eq!(names(&found, Action::Keep, ObjectKind::Table), ["kube-proxy"; 2]);
    assert_ne!(reason(&found, "filter", "KUBE-FIREWALL"), "");

    // A kubelet up to 1.26 would have made KUBE-MARK-DROP too, so if that chain exists, the kubelet
    // may own KUBE-MARK-MASQ.
    nodes::replace(
        &mut files,
        SAVE,
        ":KUBE-MARK-MASQ - [0:0]",
        ":KUBE-MARK-DROP - [0:0]\n:KUBE-MARK-MASQ - [0:0]",
    );
    let found = plan(&files);
    assert_eq!(chains(&found).keys().filter(|c| c.contains("MASQ")).count(), 0);
    let why = "the kubelet up to 1.26 writes it too, and nat KUBE-MARK-DROP, which it makes too, is there";
    assert_eq!(reason(&found, "nat", "KUBE-MARK-MASQ"), why);
    // If the kubelet reports a version after 1.26, it cannot own the chain.
    nodes::replace(
        &mut files,
        "processes.json",
        r#""name": "kubelet","#,
        r#""name": "kubelet", "version": "v1.30.5","#,
    );
    assert_eq!(chains(&plan(&files)), expected);
}

#[test]
fn between_two_modes_nothing_of_kube_proxys_is_removed() {
    let mut files = nodes::files(HALF);
    nodes::replace(
        &mut files,
        "files/var/lib/kube-proxy/config.conf",
        "mode: ipvs",
        "mode: iptables",
    );
    let found = plan(&files);
    assert!(found.is_empty());
    let why = "which mode of kube-proxy runs is not clear: the configuration says iptables, but nat KUBE-SERVICES (iptables-nft) matches the set KUBE-CLUSTER-IP";
    assert_eq!(reason(&found, "filter", "KUBE-EXTERNAL-SERVICES"), why);
    // The configuration says ipvs already, but the rules are still those of iptables mode.
    let mut files = nodes::files("docker-iptables-1.30");
    nodes::replace(
        &mut files,
        "files/var/lib/kube-proxy/config.conf",
        "mode: iptables",
        "mode: ipvs",
    );
    assert!(plan(&files).is_empty());
}

/// The first `KUBE-SVC-*` chain of the half-migrated node that jumps to an endpoint, and the chain
/// of that endpoint.
fn service() -> (String, String) {
    let save = nodes::files(HALF)[SAVE].to_string();
    let line = save
        .lines()
        .find(|l| l.contains("-A KUBE-SVC-") && l.contains("-j KUBE-SEP-"))
        .expect("a service");
    let word = |after: &str| {
        let rest = line.split_once(after).expect("the word").1;
        rest.split(' ').next().expect("a name").to_owned()
    };
    (word("-A "), word("-j "))
}

#[test]
fn a_foreign_rule_keeps_its_chain_and_all_it_leads_to() {
    let (svc, sep) = service();
    let mut files = nodes::files(HALF);
    let before = plan(&files);
    let foreign = format!("-A {svc} -s 203.0.113.9/32 -j ACCEPT");
    nodes::add(&mut files, SAVE, "nat", &foreign);
    let after = plan(&files);
    let kept = names(&after, Action::Keep, ObjectKind::Chain);
    assert!(kept.iter().any(|k| *k == svc) && kept.iter().any(|k| *k == sep), "{kept:?}");
    assert_eq!(reason(&after, "nat", &svc), format!("holds a rule of unknown owner: `{foreign}`"));
    assert!(reason(&after, "nat", &sep).starts_with("still referenced by `-A KUBE-SVC-"));
    assert!(removals(&after).is_subset(&removals(&before)));
    // The chains that jump to the kept ones may be removed, because they are kube-proxy's own and
    // hold no foreign rule.
    assert!(chains(&after).contains_key("ipv4 nat KUBE-NODEPORTS"));
    let rest = chains(&before)["ipv4 nat KUBE-SVC-*"] - chains(&after)["ipv4 nat KUBE-SVC-*"];
    assert_eq!(rest, 1);
}

#[test]
fn a_foreign_jump_keeps_the_chain() {
    let (svc, sep) = service();
    let mut files = nodes::files(HALF);
    let jump = format!("-A OUTPUT -d 203.0.113.9/32 -j {svc}");
    nodes::add(&mut files, SAVE, "nat", &jump);
    let found = plan(&files);
    assert_eq!(reason(&found, "nat", &svc), format!("still referenced by `{jump}`"));
    assert_ne!(reason(&found, "nat", &sep), "");
    assert!(!found.removals().any(|o| o.text() == jump || o.id.name() == svc));
}

#[test]
fn a_kept_chain_keeps_kube_proxys_jumps_to_it() {
    let mut files = nodes::files(HALF);
    nodes::add(&mut files, SAVE, "filter", "-A KUBE-SERVICES -s 203.0.113.9/32 -j DROP");
    let found = plan(&files);
    assert_eq!(jumps(&found).iter().filter(|j| j.ends_with("-j KUBE-SERVICES")).count(), 0);
    assert_eq!(jumps(&found).len(), 2, "those to KUBE-EXTERNAL-SERVICES go");
    let kept = found.objects.iter().filter(|o| o.sentence() == "leads to a chain that stays");
    assert_eq!(kept.count(), 2);
}

#[test]
fn adding_a_rule_of_no_one_never_adds_a_removal() {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let (svc, sep) = service();
    for name in [HALF, CANAL, "nftables-leftovers-1.30"] {
        let files = nodes::files(name);
        let state = nodes::state(&files);
        let before = removals(&plan_with(&catalogue, &state));
        let ruleset = state.rulesets.values().next().expect("rules");
        let mut tried = 0;
        for table in &ruleset.tables {
            // Of the many similar chains, a few are enough.
            for chain in table.chains.iter().filter(|c| {
                !c.name.starts_with("KUBE-S") || c.name.len() < 20 || c.name.contains("-A")
            }) {
                for verdict in ["ACCEPT", "KUBE-MARK-MASQ", &svc, &sep] {
                    let mut files = files.clone();
                    let rule = format!(
                        "-A {} -s 203.0.113.9/32 -m mark --mark 0x7 -j {verdict}",
                        chain.name
                    );
                    nodes::add(&mut files, SAVE, &table.name, &rule);
                    let after = removals(&plan_with(&catalogue, &nodes::state(&files)));
                    let added: Vec<_> = after.difference(&before).collect();
                    assert!(added.is_empty(), "{name} {rule}: {added:?}");
                    tried += 1;
                }
            }
        }
        assert!(tried > 50, "{tried}");
    }
}

#[test]
fn ipvs_mode_leaves_sets_servers_and_its_link() {
    let mut files = nodes::files("docker-legacy-iptables-1.20-no-conntrack");
    let ipvs = nodes::files("ipvs-with-keepalived-1.20");
    for name in ["ipset.save", "ipvs.save", "addr.json"] {
        files.insert(name.into(), ipvs[name].clone());
    }
    files.insert("processes.json".into(), ipvs["processes.json"].clone());
    let save = "iptables-legacy.save";
    nodes::replace(
        &mut files,
        save,
        ":KUBE-MARK-MASQ - [0:0]",
        ":KUBE-LOAD-BALANCER - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-NODE-PORT - [0:0]",
    );
    nodes::add(&mut files, save, "nat", "-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ");
    let node_port = r#"-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ"#;
    nodes::add(&mut files, save, "nat", node_port);
    let found = plan(&files);
    let expected =
        [("ipv4 nat KUBE-LOAD-BALANCER".to_owned(), 1), ("ipv4 nat KUBE-NODE-PORT".to_owned(), 1)];
    assert_eq!(chains(&found), expected.into());
    assert_eq!(names(&found, Action::Remove, ObjectKind::Set).len(), 15);
    assert_eq!(names(&found, Action::Remove, ObjectKind::VirtualServer).len(), 40);
    assert_eq!(names(&found, Action::Remove, ObjectKind::Link), ["kube-ipvs0"]);
    assert_eq!(names(&found, Action::Keep, ObjectKind::VirtualServer), ["10.9.0.100:8443/tcp"]);

    // A foreign rule that matches an ipset keeps the ipset.
    let rule = "-A INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT";
    nodes::add(&mut files, save, "filter", rule);
    let found = plan(&files);
    assert_eq!(names(&found, Action::Remove, ObjectKind::Set).len(), 14);
    assert_eq!(names(&found, Action::Keep, ObjectKind::Set), ["KUBE-CLUSTER-IP"]);
}

#[test]
fn tables_of_nftables_mode_go_when_another_runs() {
    let mut files = nodes::files("docker-iptables-1.30");
    files.insert("nft.json".into(), nodes::files("nftables-leftovers-1.30")["nft.json"].clone());
    let found = plan(&files);
    assert_eq!(names(&found, Action::Remove, ObjectKind::Table), ["kube-proxy"; 2]);
    assert_eq!(found.removals().count(), 2);
    // Neither table is removed while it is unclear which mode runs.
    files.remove("files/var/lib/kube-proxy/config.conf");
    assert!(plan(&files).is_empty());
}

#[test]
fn chains_of_other_versions() {
    let mut files = nodes::files("docker-iptables-1.30");
    let xlb = "KUBE-XLB-Z2VHYKJU5HB5LLV6";
    nodes::replace(
        &mut files,
        SAVE,
        ":KUBE-SVL-",
        &format!(":{xlb} - [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-PORTALS-HOST - [0:0]\n:KUBE-SVL-"),
    );
    nodes::add(
        &mut files,
        SAVE,
        "nat",
        &format!(
            r#"-A {xlb} -m comment --comment "masquerade LOCAL traffic for shop/lb:https LB IP" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ"#
        ),
    );
    let found = plan(&files);
    let gone: Vec<String> = chains(&found).into_keys().collect();
    assert_eq!(
        gone,
        ["ipv4 nat KUBE-FIREWALL", "ipv4 nat KUBE-PORTALS-HOST", "ipv4 nat KUBE-XLB-*"]
    );

    // If no chain that replaced an old chain exists and kube-proxy's version is unknown, the old
    // chain may still be in use.
    let legacy = "docker-legacy-iptables-1.20-no-conntrack";
    let mut files = nodes::files(legacy);
    assert!(plan(&files).is_empty());
    nodes::replace(
        &mut files,
        "processes.json",
        r#""name": "kube-proxy","#,
        r#""name": "kube-proxy", "version": "v1.24.3","#,
    );
    // Even if kube-proxy's version does not use the chain, the chain is kept, because KUBE-SERVICES
    // still jumps to it.
    let found = plan(&files);
    assert!(found.is_empty());
    assert!(reason(&found, "nat", xlb).starts_with("still referenced by"), "{found:?}");
}

#[test]
fn flannels_rules_are_judged_by_its_lease() {
    let stale = |files: &Files| {
        let plan = plan(files);
        let row = plan.objects.into_iter().find(|o| o.text() == STALE).expect("the rule");
        (row.action, row.sentence())
    };
    let route = |dev: &str, gateway: &str| {
        let mut files = nodes::files(CANAL);
        let new = format!(
            r#"[{{"dst":"192.168.66.0/24","gateway":"{gateway}","dev":"{dev}","flags":["onlink"]}},"#
        );
        let text = files["route.json"].strip_prefix('[').expect("a list").to_owned();
        files.insert("route.json".into(), (new + &text).into());
        files
    };
    // flannel itself has a route to another node, which shows that the lease belongs to that node
    // now, as in the incident. So the rule is stale.
    assert_eq!(stale(&route("flannel.1", "192.168.66.0")).0, Action::Remove);
    // A route that flannel did not make leaves it in doubt whether the rule is stale.
    let (action, why) = stale(&route("n1", "10.9.0.1"));
    assert_eq!(action, Action::Suspect);
    assert!(
        why.starts_with("suspected: ") && why.ends_with("a unicast route to 192.168.66.0/24"),
        "{why}"
    );

    let mut files = nodes::files(CANAL);
    files.remove("files/run/flannel/subnet.env");
    assert_eq!(
        stale(&files),
        (
            Action::Keep,
            "flannel's; its lease (/run/flannel/subnet.env) is not in this state".into()
        )
    );

    let mut files = nodes::files(CANAL);
    files.remove("processes.json");
    let (action, why) = stale(&files);
    assert_eq!(action, Action::Suspect);
    assert!(
        why.starts_with("suspected: left of its lease 192.168.66.0/24")
            && why.ends_with("but that flannel runs is not certain"),
        "{why}"
    );

    let mut files = nodes::files(CANAL);
    nodes::replace(
        &mut files,
        "files/run/flannel/subnet.env",
        "192.168.75.1/24",
        "192.168.76.1/24",
    );
    let (action, why) = stale(&files);
    assert_eq!(action, Action::Suspect);
    assert!(why.starts_with("suspected: "), "{why}");

    let mut files = nodes::files(CANAL);
    nodes::replace(
        &mut files,
        SAVE,
        "[0:0] -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.75.0/24 -j RETURN\n",
        "",
    );
    let (action, why) = stale(&files);
    assert_eq!(action, Action::Suspect);
    assert!(why.ends_with("flannel's other rules are not beside it"), "{why}");
}

#[test]
fn flannels_comments_prove_and_copies_go() {
    let mut files = nodes::files(CANAL);
    let old = r#"-A POSTROUTING -s 10.244.0.0/16 -d 10.244.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#;
    let bare = "-A POSTROUTING -s 10.245.0.0/16 -d 10.245.0.0/16 -j RETURN";
    let copy = "-A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.75.0/24 -j RETURN";
    for rule in [old, bare, copy] {
        nodes::add(&mut files, SAVE, "nat", rule);
    }
    let found = plan(&files);
    let texts: BTreeSet<Cow<'_, str>> = found.removals().map(|o| o.text()).collect();
    assert_eq!(texts, [STALE, old, copy].map(Cow::Borrowed).into());
    let copies: Vec<_> =
        found.objects.iter().filter(|o| o.text() == copy).map(|o| o.action).collect();
    assert_eq!(copies, [Action::Remove, Action::Keep]);
    let doubtful = found.objects.iter().find(|o| o.text() == bare).expect("the bare rule");
    assert!(doubtful.sentence().starts_with("suspected: "), "{}", doubtful.sentence());
}

#[test]
fn an_operators_rule_of_flannels_shape_is_kept() {
    let mut files = nodes::files(CANAL);
    let own = r#"-A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.67.0/24 -m comment --comment "ticket 4711" -j RETURN"#;
    let log = "-A FORWARD -s 192.168.64.0/20 -i cni0 -j LOG";
    nodes::add(&mut files, SAVE, "nat", own);
    nodes::add(&mut files, SAVE, "filter", log);
    nodes::add(&mut files, SAVE, "filter", log);
    let found = plan(&files);
    let texts: Vec<Cow<'_, str>> = found.removals().map(|o| o.text()).collect();
    assert_eq!(texts, [STALE]);
}

/// The canal node without `components`: without Calico, or without all pod networking.
fn without(components: &[&str]) -> Files {
    let mut files = nodes::files(CANAL);
    files.remove("files/etc/cni/net.d/10-canal.conflist");
    for component in components {
        nodes::replace(&mut files, "processes.json", component, "true");
    }
    nodes::replace(&mut files, "addr.json", "cali02fca994756", "veth1");
    files
}

#[test]
fn calico_is_removed_whole_once_it_is_gone() {
    let found = plan(&without(&["calico-node"]));
    assert_eq!(chains(&found).len(), 11, "{:?}", chains(&found));
    assert!(chains(&found).keys().all(|c| c.contains(" cali-")));
    let hooks = jumps(&found);
    assert_eq!(hooks.iter().filter(|j| j.contains("cali:")).count(), 4);
    assert_eq!(hooks.len(), 5, "and flannel's stale rule: {hooks:?}");
    assert_eq!(names(&found, Action::Remove, ObjectKind::Set).len(), 3);

    // A snapshot that does not list processes cannot show that Calico is gone.
    let mut files = without(&["calico-node"]);
    files.remove("processes.json");
    assert!(plan(&files).is_empty());
}

#[test]
fn an_operators_rule_in_calicos_chain_keeps_it() {
    let mut files = without(&["calico-node"]);
    nodes::add(&mut files, SAVE, "filter", "-A cali-FORWARD -s 203.0.113.9/32 -j ACCEPT");
    let found = plan(&files);
    assert!(reason(&found, "filter", "cali-FORWARD").starts_with("holds a rule of unknown owner"));
    assert_eq!(jumps(&found).iter().filter(|j| j.contains("-A FORWARD")).count(), 0);
    assert!(!chains(&found).contains_key("ipv4 filter cali-from-wl-dispatch"));
}

#[test]
fn bare_rules_of_a_flannel_that_is_gone_are_only_suspected() {
    let mut files = without(&["flanneld"]);
    files.remove("files/run/flannel/subnet.env");
    nodes::replace(&mut files, "addr.json", "flannel.1", "vxlan1");
    let commented =
        r#"-A FORWARD -s 192.168.64.0/20 -m comment --comment "flanneld forward" -j ACCEPT"#;
    nodes::add(&mut files, SAVE, "filter", commented);
    let found = plan(&files);
    let texts: Vec<Cow<'_, str>> = found.removals().map(|o| o.text()).collect();
    assert_eq!(texts, [commented]);
    let stale = found.objects.iter().find(|o| o.text() == STALE).expect("the bare rule");
    assert!(stale.sentence().starts_with("suspected: flannel is gone"), "{}", stale.sentence());
}

#[test]
fn an_empty_host_port_chain_is_removed_with_its_jump() {
    let mut files = nodes::files("docker-iptables-1.30");
    let (empty, full) = ("CNI-DN-0123456789abcdef01234", "CNI-DN-fedcba98765432101234f");
    nodes::replace(
        &mut files,
        SAVE,
        ":KUBE-SVL-",
        &format!(":CNI-HOSTPORT-DNAT - [0:0]\n:{empty} - [0:0]\n:{full} - [0:0]\n:KUBE-SVL-"),
    );
    let jump = |to: &str| {
        format!(
            r#"-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment "dnat name: \"net\" id: \"{to}\"" -m multiport --dports 8080 -j {to}"#
        )
    };
    nodes::add(
        &mut files,
        SAVE,
        "nat",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
    );
    nodes::add(&mut files, SAVE, "nat", &jump(empty));
    nodes::add(&mut files, SAVE, "nat", &jump(full));
    nodes::add(
        &mut files,
        SAVE,
        "nat",
        &format!("-A {full} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.5:80"),
    );
    let found = plan(&files);
    assert_eq!(chains(&found).into_keys().collect::<Vec<_>>(), [format!("ipv4 nat {empty}")]);
    assert_eq!(jumps(&found), [jump(empty)]);
    assert_eq!(
        reason(&found, "nat", "CNI-HOSTPORT-DNAT"),
        "cni-portmap's, which never writes it again by itself"
    );
}

#[test]
fn stale_docker_is_only_reported() {
    let mut files = nodes::files("docker-iptables-1.30");
    let old = "-A POSTROUTING -s 172.30.0.0/16 ! -o br-0123456789ab -j MASQUERADE";
    nodes::add(&mut files, SAVE, "nat", old);
    let found = plan(&files);
    assert!(found.is_empty());
    let row = found.objects.iter().find(|o| o.text() == old).expect("the rule");
    assert_eq!(row.sentence(), "suspected: there is no link br-0123456789ab");
}

/// Needs the folder of dumps that `PROXYSHIFT_DUMPS` names.
#[test]
fn no_dump_loses_what_is_not_the_cluster_networks() {
    let Some(dumps) = nodes::dumps() else { return };
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let mut removed = BTreeMap::new();
    for entry in fs::read_dir(dumps.join("whole")).expect("whole/") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("text");
        let files = Files::from([(SAVE.to_owned(), text.into())]);
        let plan = plan_with(&catalogue, &NodeState::parse(files).expect("rules"));
        for object in plan.removals() {
            assert_eq!(object.owner, "kube-proxy", "{}: {object:?}", path.display());
        }
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        removed.insert(name, plan.removals().count());
    }
    removed.retain(|_, count| *count > 0);
    // ipvs mode runs on the node of this dump, and every chain of iptables mode was left empty.
    let migrated = "calico-kubeproxy-MIGRATED-ipvs-after-nat-flush".to_owned();
    assert_eq!(removed.keys().collect::<Vec<_>>(), [&migrated]);
}
