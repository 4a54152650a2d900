//! Parity between the modes of kube-proxy, on captured nodes that have the same services.

use proxyshift::kube_proxy::mode;
use proxyshift::kube_proxy::parity::{parity, parity_since};
use proxyshift::kube_proxy::services::Services;
use proxyshift::state::kube_proxy::Mode;

use crate::nodes;

fn served(files: &proxyshift::state::Files, mode: Mode) -> Services {
    mode::of(mode).services(&nodes::state(files))
}

fn of(name: &str, mode: Mode) -> Services {
    served(&nodes::files(name), mode)
}

fn sentences(before: &Services, after: &Services) -> Vec<String> {
    parity(before, after).iter().map(ToString::to_string).collect()
}

#[test]
fn no_mode_lacks_what_another_serves() {
    let nodes = [
        ("docker-legacy-iptables-1.20-no-conntrack", Mode::Iptables),
        ("docker-iptables-1.30", Mode::Iptables),
        ("half-migrated-ipvs-1.20", Mode::Ipvs),
        ("nftables-leftovers-1.30", Mode::Nftables),
    ];
    let all = nodes.map(|(name, mode)| (name, of(name, mode)));
    for (old, before) in &all {
        assert!(before.len() >= 34, "{old}");
        for (new, after) in &all {
            assert_eq!(sentences(before, after), Vec::<String>::new(), "from {old} to {new}");
        }
    }
}

/// As in the incident: a real server with weight 0 takes no new connections, so it counts as
/// missing.
#[test]
fn a_real_server_at_weight_zero_is_missing() {
    let before = of("docker-legacy-iptables-1.20-no-conntrack", Mode::Iptables);
    let after = of("ipvs-dns-blackhole-1.20", Mode::Ipvs);
    let udp =
        "10.96.0.10:53/udp (kube-system/kube-dns:dns): the backend 192.168.66.5:53 is missing";
    assert_eq!(sentences(&before, &after), [udp]);
    let since = parity_since(&before, Some(&after), &after);
    assert!(since.holds());
    assert_eq!(since.changed[0].to_string(), format!("{udp}; it has changed so meanwhile"));
}

#[test]
fn a_virtual_server_that_is_not_there_yet_is_missing() {
    let before = of("docker-legacy-iptables-1.20-no-conntrack", Mode::Iptables);
    let mut files = nodes::files("half-migrated-ipvs-1.20");
    let server = "-A -t 10.97.0.3:80 -s rr\n";
    let reals =
        ["65", "66", "67"].map(|n| format!("-a -t 10.97.0.3:80 -r 192.168.{n}.23:80 -m -w 1\n"));
    nodes::replace(&mut files, "ipvs.save", &reals.concat(), "");
    assert_eq!(sentences(&before, &served(&files, Mode::Ipvs)).len(), 3);
    nodes::replace(&mut files, "ipvs.save", server, "");
    assert_eq!(
        sentences(&before, &served(&files, Mode::Ipvs)),
        ["10.97.0.3:80/tcp (default/app-3:http) is missing"]
    );
    // In the other direction nothing is missing, because iptables mode serves more than ipvs mode
    // did on this node.
    assert!(sentences(&served(&files, Mode::Ipvs), &before).is_empty());
}

#[test]
fn affinity_and_source_ranges_count() {
    let before = of("docker-iptables-1.30", Mode::Iptables);
    let mut files = nodes::files("half-migrated-ipvs-1.20");
    nodes::replace(
        &mut files,
        "ipvs.save",
        "-A -t 10.96.1.2:8000 -s rr -p 10800",
        "-A -t 10.96.1.2:8000 -s rr",
    );
    let name = "KUBE-LOAD-BALANCER-SOURCE-CIDR";
    let entry = files["ipset.save"].lines().find(|l| l.starts_with(&format!("add {name} ")));
    let entry = entry.expect("a source range").to_owned();
    nodes::replace(&mut files, "ipset.save", &format!("{entry}\n"), "");
    assert_eq!(
        sentences(&before, &served(&files, Mode::Ipvs)),
        [
            "10.96.1.2:8000/tcp (shop/cart:http): clients no longer stay with their backend",
            "203.0.113.50:443/tcp (shop/lb:https): open to everyone now, to 203.0.113.0/24 before",
        ]
    );
}
