//! When convergence is reached, on the captured nodes.

use proxyshift::kube_proxy::convergence::{Convergence, Expected, Witness, convergence};
use proxyshift::kube_proxy::mode;
use proxyshift::kube_proxy::services::{Location, Services};
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::{Family, Files};

use crate::nodes;

const IPTABLES: &str = "docker-legacy-iptables-1.20-no-conntrack";
const IPVS: &str = "half-migrated-ipvs-1.20";
const NFTABLES: &str = "nftables-leftovers-1.30";

fn served(name: &str, mode: Mode) -> Services {
    mode::of(mode).services(&nodes::state(&nodes::files(name)))
}

fn judge(files: &Files, reported: Option<&str>, mode: Mode, before: &Services) -> Vec<String> {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let expected = Expected { mode, before, later: None };
    let witness = Witness::Reply(reported.map(str::to_owned));
    judge_by(&catalogue, files, &witness, expected)
}

fn judge_by(
    catalogue: &Catalogue,
    files: &Files,
    witness: &Witness,
    expected: Expected<'_>,
) -> Vec<String> {
    match convergence(catalogue, &nodes::state(files), witness, expected) {
        Convergence::Converged(changed) => {
            assert!(changed.is_empty(), "{changed:?}");
            Vec::new()
        }
        Convergence::Late(why, _) | Convergence::Waiting(why) => {
            assert!(!why.is_empty());
            why
        }
    }
}

#[test]
fn every_mode_arrives() {
    let (iptables, ipvs) = (served(IPTABLES, Mode::Iptables), served(IPVS, Mode::Ipvs));
    for (name, mode, before) in [
        (IPVS, Mode::Ipvs, &iptables),
        (IPVS, Mode::Ipvs, &ipvs),
        (IPTABLES, Mode::Iptables, &ipvs),
        ("docker-iptables-1.30", Mode::Iptables, &ipvs),
        (NFTABLES, Mode::Nftables, &iptables),
    ] {
        let waiting = judge(&nodes::files(name), Some(mode.name()), mode, before);
        assert_eq!(waiting, Vec::<String>::new(), "{name}");
    }
}

/// A rollback asks no kube-proxy for its mode, and does not count processes.
#[test]
fn the_old_mode_arrives_by_the_kernel_and_its_controller() {
    let before = served(IPTABLES, Mode::Iptables);
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let mut files = nodes::files(IPVS);
    files.retain(|name, _| name != "processes.json" && !name.starts_with("files/"));
    let judge = |mode, runs| {
        let expected = Expected { mode, before: &before, later: None };
        judge_by(&catalogue, &files, &Witness::Controller { runs }, expected)
    };
    assert_eq!(judge(Mode::Ipvs, true), Vec::<String>::new());
    assert_eq!(judge(Mode::Ipvs, false), ["kube-proxy does not run"]);
    assert!(!judge(Mode::Iptables, true).is_empty(), "the kernel holds another mode");
}

#[test]
fn kube_proxy_itself_must_run_once_and_say_so() {
    let before = served(IPTABLES, Mode::Iptables);
    let files = nodes::files(IPVS);
    assert_eq!(
        judge(&files, None, Mode::Ipvs, &before),
        ["kube-proxy does not answer to GET /proxyMode"]
    );
    // kube-proxy up to 1.25 starts in iptables mode when it cannot run in ipvs mode.
    assert_eq!(
        judge(&files, Some("iptables"), Mode::Ipvs, &before),
        ["kube-proxy says that it runs in iptables mode"]
    );
    let with = |processes: &str| {
        let mut files = files.clone();
        files.insert("processes.json".into(), processes.into());
        judge(&files, Some("ipvs"), Mode::Ipvs, &before)
    };
    let config = "--config=/var/lib/kube-proxy/config.conf";
    let one =
        |pid, arg| format!(r#"{{"pid": {pid}, "name": "kube-proxy", "args": ["x", "{arg}"]}}"#);
    let two = format!("[{}, {}]", one(7, config), one(9, config));
    assert_eq!(with(&two), ["2 kube-proxies run, and there must be one: 7, 9"]);
    let cleaning = format!("[{}, {}]", one(7, config), one(9, "--cleanup"));
    assert_eq!(with(&cleaning), Vec::<String>::new());
    assert_eq!(with(&format!("[{}]", one(9, "--cleanup"))), with("[]"));
    assert_eq!(with("[]"), ["no kube-proxy runs in this network namespace"]);
    assert!(with(r#"[{"pid": 7, "name": "k3s", "args": ["k3s", "server"]}]"#).is_empty());
    // A kube-proxy that only runs its `--cleanup` does not count as running.
    let beside =
        format!(r#"[{}, {{"pid": 9, "name": "k3s", "args": ["k3s"]}}]"#, one(7, "--cleanup"));
    assert_eq!(with(&beside), Vec::<String>::new());
    let mut unknown = files.clone();
    unknown.remove("processes.json");
    let waiting = judge(&unknown, Some("ipvs"), Mode::Ipvs, &before);
    assert_eq!(
        waiting,
        ["whether kube-proxy runs is not known: the processes are not in this state"]
    );
}

/// The virtual servers, the ipsets and kube-ipvs0 exist, and `/proxyMode` reports ipvs. But the old
/// rules still serve until kube-proxy restores nat KUBE-SERVICES with its new rules.
#[test]
fn the_seconds_before_the_restore_are_not_arrival() {
    let before = served(IPTABLES, Mode::Iptables);
    let ipvs = nodes::files(IPVS);
    let mut files = nodes::files("docker-iptables-1.30");
    for name in ["ipvs.save", "ipvs.list", "ipvs.stats", "ipset.save", "addr.json"] {
        files.insert(name.into(), ipvs[name].clone());
    }
    nodes::replace(
        &mut files,
        "files/var/lib/kube-proxy/config.conf",
        "mode: iptables",
        "mode: ipvs",
    );
    let waiting = judge(&files, Some("ipvs"), Mode::Ipvs, &before);
    assert_eq!(waiting.len(), 2, "{waiting:?}");
    assert_eq!(waiting[0], "ipv4: nat KUBE-SERVICES does not match the set KUBE-CLUSTER-IP yet");
    let leads = "iptables-nft nat KUBE-SERVICES still leads to KUBE-";
    assert!(waiting[1].starts_with(leads) && waiting[1].ends_with(" more"), "{}", waiting[1]);
    // kube-proxy also serves IPv6 here, for which there are no services.
    let set = "create KUBE-6-CLUSTER-IP hash:ip,port family inet6 hashsize 1024 maxelem 65536\n";
    let sets = format!("{}{set}", files["ipset.save"]);
    files.insert("ipset.save".into(), sets.into());
    assert_eq!(
        judge(&files, Some("ipvs"), Mode::Ipvs, &before)[2],
        "ip6tables-nft nat KUBE-SERVICES still leads to KUBE-NODEPORTS"
    );
    // A moment earlier still: no object of ipvs mode exists.
    let files = nodes::files("docker-iptables-1.30");
    let waiting = judge(&files, Some("ipvs"), Mode::Ipvs, &before);
    assert!(waiting.contains(&"ipv4: the set KUBE-CLUSTER-IP is empty".to_owned()), "{waiting:?}");
    let dns = "10.96.0.10:53/udp (kube-system/kube-dns:dns) is missing".to_owned();
    assert!(waiting.contains(&dns), "{waiting:?}");
}

#[test]
fn an_address_that_no_link_has_is_not_served() {
    let before = served(IPTABLES, Mode::Iptables);
    let mut files = nodes::files(IPVS);
    nodes::replace(&mut files, "addr.json", "\"10.97.0.3\"", "\"10.97.0.250\"");
    let waiting = judge(&files, Some("ipvs"), Mode::Ipvs, &before);
    assert_eq!(waiting, ["10.97.0.3 is not on kube-ipvs0 yet"]);
}

/// On the way back to iptables mode, a chain that both modes use still matches an ipset until
/// kube-proxy rewrites that chain.
#[test]
fn a_shared_chain_that_still_matches_a_set_is_not_rewritten_yet() {
    let before = served(IPVS, Mode::Ipvs);
    let mut files = nodes::files(IPTABLES);
    files.insert("ipset.save".into(), nodes::files(IPVS)["ipset.save"].clone());
    let judged = |files: &Files| judge(files, Some("iptables"), Mode::Iptables, &before);
    assert_eq!(judged(&files), Vec::<String>::new());
    let rule = "-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE";
    nodes::add(&mut files, "iptables-legacy.save", "nat", &format!("[0:0] {rule}"));
    let still = "iptables-legacy nat KUBE-POSTROUTING still matches the set KUBE-LOOP-BACK";
    assert_eq!(judged(&files), [still]);
}

#[test]
fn each_family_that_had_services_must_arrive() {
    let mut before = served(IPTABLES, Mode::Iptables);
    let (key, service) = before.iter().find(|(_, s)| !s.backends.is_empty()).expect("a service");
    let (mut key, service) = (*key, service.clone());
    key.location = Location::Address("fd00::a".parse().expect("an address"));
    before.insert(key, service);
    let waiting = judge(&nodes::files(IPVS), Some("ipvs"), Mode::Ipvs, &before);
    assert_eq!(waiting[0], "ipv6: the set KUBE-6-CLUSTER-IP is empty");
    assert_eq!(waiting.len(), 2, "{waiting:?}");
}

/// kube-proxy writes the rules of IPv4 first here. Where IPv6 has services, it must come to them too;
/// where it has none, nobody knows whether it will.
#[test]
fn a_family_without_services_may_be_late() {
    let mut files = nodes::files("half-migrated-ipvs-1.37");
    let sets = files["ipset.save"].lines().filter(|line| !line.contains("KUBE-6-"));
    let sets: String = sets.map(|line| format!("{line}\n")).collect();
    files.insert("ipset.save".into(), sets.into());
    let rules = nodes::files("nftables-beside-iptables-1.37")["ip6tables-nft.save"].clone();
    files.insert("ip6tables-nft.save".into(), rules.clone());

    let mut before = served("iptables-1.34", Mode::Iptables);
    let waiting = judge(&files, Some("ipvs"), Mode::Ipvs, &before);
    assert_eq!(waiting[0], "ipv6: the set KUBE-6-CLUSTER-IP is empty");
    before.retain(|key, _| match key.location {
        Location::Address(ip) => ip.is_ipv4(),
        Location::Node(family) => family == Family::Ipv4,
    });
    // The chains are named by the service.
    let rules =
        rules.lines().filter(|l| !l.contains("LFZDKBE5SFOPEBKX") && !l.contains("shop/six"));
    let rules: String = rules.map(|line| format!("{line}\n")).collect();
    files.insert("ip6tables-nft.save".into(), rules.into());
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let expected = Expected { mode: Mode::Ipvs, before: &before, later: None };
    let witness = Witness::Reply(Some("ipvs".into()));
    let judged = convergence(&catalogue, &nodes::state(&files), &witness, expected);
    let Convergence::Late(late, _) = judged else { panic!("{judged:?}") };
    assert!(late[0].starts_with("ip6tables-nft nat KUBE-SERVICES still leads to "), "{late:?}");
    assert!(late.iter().all(|why| why.starts_with("ip6tables-nft ")), "{late:?}");
    let whole = nodes::files("half-migrated-ipvs-1.37");
    assert!(judge(&whole, Some("ipvs"), Mode::Ipvs, &before).is_empty());
}
