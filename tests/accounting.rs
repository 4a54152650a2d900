//! Rules that count into accounting objects (`-m nfacct`), as kube-proxy writes them since 1.31: the
//! kernel takes such a rule only if its object is there.

mod common;

use std::collections::BTreeSet;

use common::node::{Case, assert_same};
use common::{in_namespace, run};
use proxyshift::node::nfnetlink::accounting;
use proxyshift::state::Backend;

/// Names that kube-proxy gives, and one that looks like an option, which iptables does not quote.
const NAMES: [&str; 3] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts", "-x"];

fn make() {
    let names: BTreeSet<String> = NAMES.iter().map(|name| (*name).to_owned()).collect();
    // Those that are there stay.
    accounting::make(&names).expect("made");
    accounting::make(&names).expect("there");
}

fn is_kept_and_comes_back(backend: Backend) {
    make();
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
