//! What rules name and the kernel must hold before it takes them: accounting objects (`-m nfacct`, as
//! kube-proxy writes them since 1.31), timeout policies (`-j CT --timeout`), sets of any family, rate
//! estimators. They are captured, made first, restored and compared.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::node::{Case, Ended, Proxyshift, assert_same};
use common::{in_namespace, in_user_namespace, run, run_with};
use proxyshift::node::nfnetlink::accounting::{accounting_objects, create_accounting_object};
use proxyshift::node::nfnetlink::timeout_policies::timeout_policies;
use proxyshift::state::Backend;
use proxyshift::state::accounting::{AccountingObject, Quota};
use proxyshift::state::timeout_policy::TimeoutPolicy;

/// Names that kube-proxy gives, and one that looks like an option, which iptables does not quote.
const NAMES: [&str; 3] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts", "-x"];

fn is_kept_and_comes_back(backend: Backend) {
    for name in NAMES {
        create_accounting_object(&AccountingObject::plain(name)).expect("made");
        create_accounting_object(&AccountingObject::plain(name)).expect_err("it is there");
    }
    let Case { node, proxyshift, .. } = Case::of("half-migrated-ipvs-1.20", backend);
    let [invalid, local, other] = NAMES;
    let rules = node.rules();
    let chain = rules.lines().find_map(|line| line.strip_prefix(":KUBE-SVC-")?.split(' ').next());
    let of_service = format!(
        "KUBE-NODEPORTS -d 127.0.0.0/8 -p tcp -m comment --comment shop/web:http -m tcp --dport 30080 \
         -m nfacct --nfacct-name {local} -j KUBE-SVC-{}",
        chain.expect("a service")
    );
    let added = [
        ("nat", of_service),
        ("filter", format!("KUBE-FORWARD -m nfacct --nfacct-name {invalid} -j DROP")),
        ("filter", format!("INPUT -m nfacct --nfacct-name {other}")),
    ];
    for (table, rule) in added {
        run(&format!("{} -t {table} -A {rule}", node.program("")));
    }
    let before = node.rules();
    for name in NAMES {
        assert!(before.contains(name), "{before}");
    }
    proxyshift.expect(0, "snapshot create");
    proxyshift.expect(0, "rehearse");
    proxyshift.expect(0, "cleanup --yes");
    let clean = node.rules();
    assert!(!clean.contains(local) && clean.contains(invalid), "{clean}");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &before, "after the rollback");
}

#[test]
fn on_nft_they_are_kept_and_come_back() {
    if in_namespace("on_nft_they_are_kept_and_come_back") {
        is_kept_and_comes_back(Backend::Nft);
    }
}

#[test]
fn on_legacy_they_are_kept_and_come_back() {
    if in_namespace("on_legacy_they_are_kept_and_come_back") {
        is_kept_and_comes_back(Backend::Legacy);
    }
}

/// What the leftovers of a component that is gone name. The last is the name of a list of sets.
struct Names {
    quota: &'static str,
    plain: &'static str,
    policy: &'static str,
    members: [&'static str; 2],
    list: &'static str,
}

impl Names {
    /// Makes the objects.
    fn make(&self) {
        let Names { quota, plain, policy, members: [four, six], list } = self;
        let quota = Some(Quota::Bytes(99_000)).map(|limit| AccountingObject {
            quota: Some(limit),
            packets: 12,
            bytes: 3_400,
            ..AccountingObject::plain(quota)
        });
        create_accounting_object(&quota.expect("one")).expect("made");
        create_accounting_object(&AccountingObject::plain(plain)).expect("made");
        run(&format!("nfct add timeout {policy} inet udp unreplied 7 replied 77"));
        let sets = format!(
            "create {four} hash:ip\nadd {four} 10.0.0.1\ncreate {six} hash:net family inet6\n\
             add {six} fd00::/64\ncreate {list} list:set\nadd {list} {four}\nadd {list} {six}\n"
        );
        run_with(&sets, &["ipset", "restore"]);
    }

    /// Calico's rules in the table raw, with a jump to them.
    fn rules(&self) -> String {
        let Names { quota, plain, policy, list, .. } = self;
        format!(
            "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:cali-PREROUTING - [0:0]\n\
             -A PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING\n\
             -A cali-PREROUTING -m comment --comment \"cali:abcdefghijklmnoq\" \
             -m set --match-set {list} src -m nfacct --nfacct-name {quota} -j ACCEPT\n\
             -A cali-PREROUTING -p udp -m comment --comment \"cali:abcdefghijklmnop\" \
             -j CT --timeout {policy}\n\
             -A cali-PREROUTING -m comment --comment \"cali:abcdefghijklmnor\" \
             -m nfacct --nfacct-name {plain} -j SET --add-set {list} src\nCOMMIT\n"
        )
    }

    /// Removes the objects, as somebody else may once no rule names them.
    fn destroy(&self) {
        let Names { quota, plain, policy, members: [four, six], list } = self;
        for name in [quota, plain] {
            run(&format!("nfacct delete {name}"));
        }
        run(&format!("nfct delete timeout {policy}"));
        for name in [list, four, six] {
            run(&format!("ipset destroy {name}"));
        }
    }
}

/// All objects that rules can name here.
fn named() -> (String, String, BTreeSet<String>) {
    let mut objects = accounting_objects().expect("listed");
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    let mut policies = timeout_policies().expect("listed");
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    let sets = run("ipset save");
    // Without the layout of the memory, which each set has anew.
    let sets = sets.lines().map(|line| line.split(" hashsize").next().unwrap_or(line).to_owned());
    (AccountingObject::render(&objects), TimeoutPolicy::render(&policies), sets.collect())
}

/// The program, with a node of this backend that has leftovers of Calico, whose rules name `names`.
fn leftovers(names: &Names, backend: Backend) -> Case {
    let case = Case::of("docker-iptables-1.30", backend);
    names.make();
    case.node.load_rules(&names.rules());
    Case { before: case.node.rules(), ..case }
}

fn is_made_again(names: &Names, backend: Backend) {
    let Case { node, proxyshift, before } = leftovers(names, backend);
    // Sets that have no family, or whose family is not that of the rule's list.
    let six = names.members[1];
    run("ipset create ports bitmap:port range 1-9");
    let suffix = node.program("").replace("iptables", "ip6tables");
    run(&format!("{suffix} -A INPUT -m set --match-set {} src", names.list));
    run(&format!("{suffix} -A INPUT -m set --match-set ports dst -j SET --del-set {six} src"));
    let objects = named();

    proxyshift.expect(0, "snapshot create");
    let found = proxyshift.expect(0, "rehearse");
    assert!(found.out.contains("Proven"), "{}", found.out);
    proxyshift.expect(0, "cleanup --yes --owner calico");
    assert!(!node.rules().contains("cali-"), "{}", node.rules());
    run(&format!("{suffix} -F INPUT"));
    names.destroy();
    assert_ne!(named(), objects);
    let back = proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &before, "after the rollback");
    assert_eq!(named(), objects);
    back.reports(&[&format!("timeout policy {} was gone", names.policy)]);
}

#[test]
fn on_nft_what_rules_name_is_made_again() {
    if in_namespace("on_nft_what_rules_name_is_made_again") {
        let (quota, plain) = ("guests", "ct_state_invalid_dropped_pkts");
        let (policy, members, list) = ("idle", ["four", "inet6:six"], "both");
        is_made_again(&Names { quota, plain, policy, members, list }, Backend::Nft);
    }
}

#[test]
fn on_legacy_what_rules_name_is_made_again() {
    if in_namespace("on_legacy_what_rules_name_is_made_again") {
        let (quota, plain) = ("-q", "a$(x)*");
        let (policy, members, list) = ("-z", ["weave-;rGqyMIl1HN", "#6"], "!l");
        is_made_again(&Names { quota, plain, policy, members, list }, Backend::Legacy);
    }
}

const SHORT: Names =
    Names { quota: "q", plain: "p", policy: "t", members: ["four", "six"], list: "both" };

#[test]
fn what_somebody_made_anew_is_kept_and_named() {
    if !in_namespace("what_somebody_made_anew_is_kept_and_named") {
        return;
    }
    let Case { node, proxyshift, before } = leftovers(&SHORT, Backend::Nft);
    proxyshift.expect(0, "cleanup --yes --owner calico");
    run("nfacct delete q");
    run("nfacct add q packet 5");
    run("nfct delete timeout t");
    run("nfct add timeout t inet udp replied 78");
    let back = proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &before, "after the rollback");
    back.reports(&["q: quota byte:99000 → packet:5", "replied 77 → inet udp", "replied 78"]);
    assert!(named().0.contains("packet:5 q"));
}

#[test]
fn what_cannot_be_made_is_named_and_nothing_else_is_left_undone() {
    if !in_namespace("what_cannot_be_made_is_named_and_nothing_else_is_left_undone") {
        return;
    }
    let Case { node, proxyshift, .. } = leftovers(&SHORT, Backend::Nft);
    proxyshift.expect(0, "cleanup --yes --owner calico");
    run("nfct delete timeout t");
    // Somebody made a policy of this name for another protocol: the kernel refuses the rule.
    run("nfct add timeout t inet tcp close 5");
    let back = proxyshift.expect(5, "rollback");
    back.reports(&["iptables-nft raw"]);
    assert!(!node.rules().contains("cali-"), "{}", node.rules());
}

#[test]
fn a_policy_whose_name_is_not_shown_whole_is_refused() {
    if !in_namespace("a_policy_whose_name_is_not_shown_whole_is_refused") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    run("nfct add timeout long inet tcp close 5");
    for program in ["iptables-nft", "iptables-legacy"] {
        run(&format!("{program} -t raw -A OUTPUT -p tcp -j CT --timeout long"));
        proxyshift.expect(0, "snapshot create");
        run("nfct add timeout longer inet tcp close 6");
        // Of which of the two the rule is, iptables-save does not show.
        proxyshift.expect(3, "snapshot create").reports(&["timeout policy long", "whole name"]);
        run(&format!("{program} -t raw -F OUTPUT"));
        run(&format!("{program} -t raw -A OUTPUT -p tcp -j CT --timeout longer"));
        let saved = run(&format!("{program}-save -t raw"));
        assert!(saved.contains("--timeout long\n"), "shown whole by this kernel: {saved}");
        proxyshift.expect(3, "snapshot create").reports(&["timeout policy long", "whole name"]);
        run(&format!("{program} -t raw -F OUTPUT"));
        run("nfct delete timeout longer");
        proxyshift.expect(0, "snapshot create");
    }
}

/// An estimator is made by a rule, which may be behind the rule that needs it.
fn estimators_are_made_first(backend: &str) {
    let proxyshift = Proxyshift::new("store");
    let iptables = format!("iptables-{backend}");
    // The tables are saved in the order in which they were made (nft), or the other way (legacy).
    run(&format!("{iptables} -t filter -L -n"));
    for table in ["mangle", "raw"] {
        let estimator = format!(
            "-j RATEEST --rateest-name est-{table} --rateest-interval 250ms --rateest-ewmalog 500ms"
        );
        run(&format!("{iptables} -t {table} -A OUTPUT {estimator}"));
    }
    for rule in [
        "--rateest est-raw --rateest-lt --rateest-bps 1mbit",
        "--rateest1 est-raw \
                 --rateest-lt --rateest2 est-mangle",
    ] {
        let rule = rule.replace("--rateest2", "--rateest-bps --rateest2");
        run(&format!("{iptables} -t filter -A OUTPUT -m rateest {rule}"));
    }
    let before = run(&format!("{iptables}-save"));
    assert!(before.contains("--rateest2 est-mangle"), "{before}");
    proxyshift.expect(0, "snapshot create");
    let found = proxyshift.expect(0, "rehearse");
    assert!(!found.out.contains("Partly"), "{}", found.out);
}

#[test]
fn on_nft_estimators_are_made_first() {
    if in_namespace("on_nft_estimators_are_made_first") {
        estimators_are_made_first("nft");
    }
}

#[test]
fn on_legacy_estimators_are_made_first() {
    if in_namespace("on_legacy_estimators_are_made_first") {
        estimators_are_made_first("legacy");
    }
}

/// Rules of extensions that name something which needs not be there before.
const WITHOUT_NEEDS: [(&str, &str); 19] = [
    ("raw", "PREROUTING -p tcp -m tcp --dport 21 -j CT --helper ftp"),
    ("raw", "PREROUTING -j CT --ctevents new,destroy --zone-orig 5"),
    ("raw", "PREROUTING -m rpfilter --invert -j DROP"),
    ("filter", "INPUT -m recent --set --name seen"),
    ("filter", "INPUT -m recent --rcheck --seconds 60 --name seen -j DROP"),
    ("filter", "INPUT -m hashlimit --hashlimit-above 5/sec --hashlimit-name slow"),
    ("filter", "INPUT -m quota --quota 1000"),
    (
        "filter",
        "INPUT -m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 7",
    ),
    ("filter", "INPUT -m connlabel --label 3 --set"),
    ("filter", "INPUT -m physdev --physdev-in nowhere0"),
    ("filter", "INPUT -j NFLOG --nflog-prefix -x --nflog-group 1"),
    ("filter", "INPUT -p tcp -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460"),
    ("filter", "INPUT -m helper --helper ftp"),
    ("filter", "INPUT -p tcp -m osf --genre Linux"),
    ("filter", "INPUT -p tcp -m connlimit --connlimit-above 5"),
    ("filter", "OUTPUT -m owner --uid-owner 4711"),
    ("filter", "OUTPUT -m cgroup --path /"),
    ("mangle", "PREROUTING -j TEE --gateway 192.0.2.1 --oif nowhere0"),
    ("mangle", "PREROUTING -p tcp -j TPROXY --on-port 1 --tproxy-mark 1"),
];

fn needs_nothing(backend: &str) {
    let proxyshift = Proxyshift::new("store");
    for (table, rule) in WITHOUT_NEEDS {
        run(&format!("iptables-{backend} -t {table} -A {rule}"));
    }
    proxyshift.expect(0, "snapshot create");
    let found = proxyshift.expect(0, "rehearse");
    assert!(!found.out.contains("Partly"), "{}", found.out);
}

#[test]
fn on_nft_other_extensions_need_nothing() {
    if in_namespace("on_nft_other_extensions_need_nothing") {
        needs_nothing("nft");
    }
}

#[test]
fn on_legacy_other_extensions_need_nothing() {
    if in_namespace("on_legacy_other_extensions_need_nothing") {
        needs_nothing("legacy");
    }
}

/// Rehearses the rules of a node that is not this one, with a leftover of flannel.
fn rehearse(backend: &str, filter: &str, raw: &str) -> Ended {
    let dir = "/run/other";
    fs::create_dir_all(dir).expect("a folder");
    let rules = format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :FLANNEL-FWD - [0:0]\n:KUBE-FORWARD - [0:0]\n\
         -A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD\n\
         -A FLANNEL-FWD -s 10.7.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT\n\
         {filter}COMMIT\n*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{raw}COMMIT\n"
    );
    fs::write(format!("{dir}/iptables-{backend}.save"), rules).expect("written");
    let addresses = r#"[{"ifname":"lo","flags":["LOOPBACK","UP"],"addr_info":[]}]"#;
    let processes = r#"[{"pid":71,"name":"kubelet","args":["/usr/bin/kubelet"]}]"#;
    for (name, text) in
        [("addr.json", addresses), ("route.json", "[]"), ("processes.json", processes)]
    {
        fs::write(format!("{dir}/{name}"), format!("{text}\n")).expect("written");
    }
    Proxyshift::new("store").expect(0, &format!("rehearse --snapshot {dir}/"))
}

#[test]
fn a_state_that_does_not_say_what_the_objects_are_is_proven() {
    if !in_namespace("a_state_that_does_not_say_what_the_objects_are_is_proven") {
        return;
    }
    let filter = "-A KUBE-FORWARD -m nfacct --nfacct-name some_other_pkts -j DROP\n";
    for backend in ["nft", "legacy"] {
        let found = rehearse(backend, filter, "");
        assert!(found.out.starts_with("Proven"), "{}{}", found.out, found.err);
        fs::remove_file(format!("/run/other/iptables-{backend}.save")).expect("removed");
    }
}

#[test]
fn an_ordinary_user_rehearses_them() {
    if !in_user_namespace("an_ordinary_user_rehearses_them") {
        return;
    }
    fs::create_dir("/run/other").expect("a folder");
    // Another kernel may know other states of a connection.
    for (name, text) in [
        ("nfacct.save", "[5:60] packet:1000 guests\n"),
        ("cttimeout.save", "pol inet tcp syn_sent 120 established 7200\n"),
        (
            "ipset.save",
            "create six hash:ip family inet6 maxelem 65536\ncreate l list:set size 8\nadd l six\n",
        ),
    ] {
        fs::write(format!("/run/other/{name}"), text).expect("written");
    }
    let filter = "-A INPUT -m nfacct --nfacct-name guests -m set --match-set l src -j DROP\n";
    let raw = "-A OUTPUT -p tcp -j CT --timeout pol\n";
    let found = rehearse("nft", filter, raw);
    assert!(found.out.starts_with("Proven"), "{}{}", found.out, found.err);
}

#[test]
fn what_this_kernel_cannot_hold_is_named_and_the_rest_is_rehearsed() {
    if !in_namespace("what_this_kernel_cannot_hold_is_named_and_the_rest_is_rehearsed") {
        return;
    }
    // More than a rehearsal would try one by one.
    let raw: String = (0..60)
        .map(|port| format!("-A OUTPUT -p tcp -m tcp --dport {port} -j CT --timeout gone\n"))
        .collect();
    // Their rule and set are not in this state, and only the kernel knows that it needs the first.
    let filter = "-A INPUT -m set --match-set nowhere src -j ACCEPT\n-A INPUT -p tcp -j ACCEPT\n\
                  -A INPUT -m rateest --rateest none --rateest-lt --rateest-bps 1Mbit\n\
                  -A INPUT -p udp -j ACCEPT\n";
    for backend in ["nft", "legacy"] {
        let found = rehearse(backend, filter, &raw);
        assert!(found.out.starts_with("Partly proven: 3 objects"), "{}{}", found.out, found.err);
        let named =
            ["-A INPUT -m set --match-set nowhere src", "-A INPUT -m rateest --rateest none"];
        let json = Proxyshift::new("store").expect(0, "rehearse --snapshot /run/other/ -o json");
        let unsupported = json.json()["left_out"].as_array().expect("a list").clone();
        assert_eq!(unsupported.len(), 62, "{unsupported:?}");
        for rule in named {
            assert!(unsupported.iter().any(|o| o.to_string().contains(rule)), "{unsupported:?}");
        }
        fs::remove_file(format!("/run/other/iptables-{backend}.save")).expect("removed");
    }
}

#[test]
fn a_native_table_that_nft_does_not_print_whole_is_named() {
    if !in_namespace("a_native_table_that_nft_does_not_print_whole_is_named") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    run("nft add table ip own");
    run("ebtables-nft -A FORWARD --limit 5/sec -j ACCEPT");
    proxyshift.expect(0, "snapshot create");
    run("ebtables-nft -A FORWARD --stp-type config -j ACCEPT");
    run("arptables-nft -A INPUT -j mangle --mangle-ip-s 192.0.2.1");
    proxyshift.expect(3, "snapshot create").reports(&["nft table bridge filter"]);
    let named = ["nft table bridge filter", "nft table arp filter", "2 objects"];
    proxyshift.expect(3, "rehearse").reports(&named);
}
