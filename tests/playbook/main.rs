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

/// The modes that a migration leads to.
const MODES: [Mode; 3] = [Mode::Iptables, Mode::Ipvs, Mode::Nftables];

/// The playbooks of all moves, and the upgrade.
fn all() -> impl Iterator<Item = Playbook> {
    let pairs = MODES.into_iter().flat_map(|from| MODES.map(|to| (from, to)));
    pairs.map(|(from, to)| builtin(from, to).expect("a playbook"))
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

/// Every finding that blocks `check --to` a mode also blocks the migration to that mode, unless it is
/// one of another mode, or the migration fixes it.
#[test]
fn what_blocks_a_check_blocks_the_migration() {
    let of_ipvs = [
        "dns.nodelocaldns",
        "ipvs.service-address",
        "kernel.dummy",
        "kernel.ip-vs",
        "kernel.schedulers",
        "kernel.xt-set",
        "kube-proxy.ipvs-removed",
        "tools.ipset",
    ];
    let of_nftables = [
        "kernel.nftables",
        "kernel.nftables-parts",
        "kube-proxy.nftables-available",
        "nftables.expressions",
        "nftables.forward-closed",
    ];
    for playbook in all().filter(|playbook| playbook.from != playbook.to) {
        let (block, warn) = preflight(&playbook);
        let (name, from, to) = (&playbook.name, playbook.from, playbook.to);
        for check in checks::all().filter(|c| c.severity == Severity::Block) {
            let blocks = block.iter().any(|id| id == check.id);
            let expected = match check.id {
                "ipvs.foreign-servers" => {
                    let warns = warn.iter().any(|id| id == check.id);
                    assert_eq!(warns, to == Mode::Ipvs, "{name}");
                    false
                }
                // kube-proxy flushes virtual servers only on the way from ipvs to nftables mode.
                "ipvs.foreign-servers-flushed" => to == Mode::Nftables && from == Mode::Ipvs,
                "tools.ipset" => from == Mode::Ipvs && to == Mode::Nftables || to == Mode::Ipvs,
                "nftables.masquerade-all" | "tools.nft" => {
                    playbook.stage(StageName::Bridge).is_some()
                }
                id if of_ipvs.contains(&id) => to == Mode::Ipvs,
                id if of_nftables.contains(&id) => to == Mode::Nftables,
                _ => true,
            };
            assert_eq!(blocks, expected, "{name}: {}", check.id);
        }
    }
}
