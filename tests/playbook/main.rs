//! The built-in playbooks name only checks and owners that exist; and parity and convergence on the
//! captured nodes.

mod controllers;
mod convergence;
#[path = "../nodes/mod.rs"]
mod nodes;
mod parity;
mod takeover;

use std::collections::BTreeSet;

use proxyshift::checks::{self, Severity};
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::plan::playbook::{Playbook, StageName, StageOptions, builtin};
use proxyshift::state::kube_proxy::Mode;

fn all() -> Vec<Playbook> {
    let pairs =
        [(Mode::Iptables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables), (Mode::Ipvs, Mode::Ipvs)];
    pairs.into_iter().map(|(from, to)| builtin(from, to).expect("a playbook")).collect()
}

fn preflight(playbook: &Playbook) -> (&[String], &[String]) {
    let Some(StageOptions::Preflight(preflight)) = playbook.stage(StageName::Preflight) else {
        panic!("{} has no preflight", playbook.name)
    };
    (&preflight.block, &preflight.warn)
}

#[test]
fn every_check_and_owner_is_known_and_named_once() {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    for playbook in all() {
        let is_check = |id: &str| checks::find(id).is_some();
        let is_owner = |name: &str| catalogue.component(name).is_some();
        playbook.refers_to_known(is_check, is_owner).expect("known words");
        let (block, warn) = preflight(&playbook);
        let once: BTreeSet<&String> = block.iter().chain(warn).collect();
        assert_eq!(once.len(), block.len() + warn.len(), "{}", playbook.name);
    }
}

/// Every finding that blocks `check --to ipvs` also blocks the migration, unless the migration
/// fixes it.
#[test]
fn what_blocks_a_check_blocks_the_migration() {
    let playbook = builtin(Mode::Iptables, Mode::Ipvs).expect("a playbook");
    let (block, warn) = preflight(&playbook);
    let of_nftables = ["kernel.nftables", "kube-proxy.nftables-available", "tools.nft"];
    for check in checks::all().filter(|c| c.severity == Severity::Block) {
        let id = check.id.to_owned();
        let blocks = block.contains(&id);
        match check.id {
            "ipvs.foreign-servers" => assert!(warn.contains(&id)),
            nftables if of_nftables.contains(&nftables) => assert!(!blocks, "{nftables}"),
            other => assert!(blocks, "{other}"),
        }
    }
}
