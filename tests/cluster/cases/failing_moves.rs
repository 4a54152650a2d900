//! Moves that fail, or that meet what others have on the node: no connection is lost then either.

use std::net::SocketAddr;

use proxyshift::state::kube_proxy::Mode;

use super::follows::Moving;
use super::moves::{FORWARD, Site, mounting, short};
use crate::common::clients::OWN;
use crate::common::vm::of_cluster;
use crate::control_plane::{VERSION, poll};
use crate::node::manifest;
use crate::traffic::{How, Kind};

/// The words of a move to nftables mode by the playbook of [`Site::hurries`].
const FORTH: &str = "migrate --to nftables --playbook /run/playbook.yaml --yes";

impl Site {
    /// Writes a playbook to nftables mode that waits for kube-proxy for 10 s only.
    fn hurries(&self) {
        assert!(FORWARD.contains("timeout: 5m"), "{FORWARD}");
        let playbook = short(FORWARD).replace("timeout: 5m", "timeout: 10s");
        self.node.write("/run/playbook.yaml", &playbook);
    }

    /// Restarts kube-proxy with an nft that runs this shell script before the real one, with what is
    /// to be loaded in `$input`.
    fn meets(&self, script: &str) {
        let nft = format!(
            "#!/bin/sh\ncase \" $* \" in *' -f - '*) ;; *) exec /run/nft \"$@\";; esac\n\
             input=$(cat)\n{script}\nprintf '%s\\n' \"$input\" | /run/nft \"$@\"\n"
        );
        self.node.write("/run/fails/nft", &nft);
        self.node.run("chmod 755 /run/fails/nft");
        let shell = of_cluster("programs/busybox").display().to_string();
        self.runs(&mounting(&[
            ("/usr/sbin/nft", "/run/fails/nft"),
            ("/run/nft", "/usr/sbin/nft"),
            ("/bin/sh", &shell),
            ("/bin/cat", &shell),
        ]));
    }
}

/// What goes wrong with the first sync in nftables mode, and whether IPv4 is written.
const FIRST_SYNCS: [(&str, &str, bool); 2] = [
    ("kube-proxy dies in it", "case $input in *service-ips*) kill $PPID; exit 1;; esac", false),
    (
        "one family is not written",
        "case $input in *'add element ip6 kube-proxy'*) exit 1;; esac",
        true,
    ),
];

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_the_first_sync_fails() {
    let site = Site::new(Mode::Iptables);
    site.hurries();
    for (what, script, is_written) in FIRST_SYNCS {
        site.meets(script);
        let served = site.unharmed(what, || {
            let said = site.node.proxyshift().expect(4, FORTH).err;
            println!("{said}");
            assert_ne!(said.contains("there is no table ip kube-proxy"), is_written, "{said}");
        });
        assert!(served.iter().any(|served| served.translated > 0), "{what}: no bridge was needed");
        site.is_in(Mode::Iptables);
    }
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_the_watchdog_undoes_a_move() {
    let site = Site::new(Mode::Iptables);
    site.hurries();
    let proxyshift = site.node.proxyshift();
    site.unharmed("killed, and nobody is there", || {
        proxyshift.killed(FORTH, "before:switch:done");
        poll("the watchdog has undone it", || proxyshift.run("status").code == Some(0));
    });
    let status = proxyshift.expect(0, "status -o json").out;
    assert!(status.contains("rolled-back"), "{status}");
    site.is_in(Mode::Iptables);
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_the_deadline_passes() {
    let site = Site::that_gets_stuck();
    let [served, _] = site.unharmed("the deadline passes while the bridge serves", || {
        let moving = Moving::begin(&site, Mode::Nftables, "5m");
        site.only_the_bridge_serves();
        // That of a stage lies five minutes behind all that the stage may take.
        site.node.run(
            "sed -Ei 's/(\"deadline_ns\": *)[0-9]+/\\11/' \\
                 /run/store/runs/*/run.json /run/proxyshift/runs/*/run.json",
        );
        let said = moving.ends(4);
        assert!(!said.contains("✓ waiting until kube-proxy serves in nftables mode"), "{said}");
    });
    assert!(served.translated > 0, "nobody needed the bridge");
    let status = site.node.proxyshift().expect(0, "status -o json").out;
    assert!(status.contains("rolled-back"), "{status}");
    site.is_in(Mode::Iptables);
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_a_move_is_undone_after_a_reboot() {
    let site = Site::new(Mode::Iptables);
    site.hurries();
    site.node.proxyshift().killed(FORTH, "before:switch:done");
    // As after a power cut, but for the kernel: another boot, without rules or processes of ours.
    site.node.run(
        "kill -KILL $(pidof proxyshift); rm -r /run/proxyshift; nft flush ruleset
         sed 's/^......../00000000/' /proc/sys/kernel/random/boot_id >/run/boot_id
         mount --bind /run/boot_id /proc/sys/kernel/random/boot_id",
    );
    site.runs_in(Mode::Nftables, &manifest(VERSION));
    site.seen.run("conntrack -F");
    let [served, _] = site.unharmed("undone after a reboot", || {
        println!("{}", site.node.proxyshift().expect(0, "rollback").err);
    });
    assert!(served.translated > 0, "nobody needed the bridge");
    site.is_in(Mode::Iptables);
}

/// What docker, portmap, a CNI and a VPN translate beside kube-proxy, in a node's namespace. The
/// addresses of the servers and the client are those of the pods.
const OTHERS: &str = "*nat
:DOCKER - [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:CNI-DN-0123456789abcdef01234 - [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:CNI-HOSTPORT-MASQ - [0:0]
:cali-PREROUTING - [0:0]
:cali-POSTROUTING - [0:0]
:cali-nat-outgoing - [0:0]
-A PREROUTING -m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A POSTROUTING -m comment --comment \"cali:O3lYWMrLQYEMJtB5\" -j cali-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 8088 -j DNAT --to-destination 10.244.77.1:8080
-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: cbr0\" -m multiport --dports 8089 -j CNI-DN-0123456789abcdef01234
-A CNI-DN-0123456789abcdef01234 -s 10.244.78.0/24 -p tcp -m tcp --dport 8089 -j CNI-HOSTPORT-SETMARK
-A CNI-DN-0123456789abcdef01234 -p tcp -m tcp --dport 8089 -j DNAT --to-destination 10.244.77.2:8080
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-A cali-POSTROUTING -j cali-nat-outgoing
-A cali-nat-outgoing -s 10.245.0.0/16 ! -d 10.244.0.0/15 -j MASQUERADE
COMMIT
";

/// What a VPN and Calico in nftables mode have, in tables of their own.
const NATIVE: &str = "table ip vpn {
 chain prerouting { type nat hook prerouting priority -100; tcp dport 8090 dnat to 10.244.77.3:8080; }
 chain output { type nat hook output priority -100; fib daddr type local tcp dport 8090 dnat to 10.244.77.3:8080; }
 chain postrouting { type nat hook postrouting priority 100; ip saddr 10.8.0.0/24 masquerade; }
}
table ip calico {
 set cali40masq-ipam-pools { type ipv4_addr; flags interval; elements = { 10.245.0.0/16 }; }
 set cali40all-ipam-pools { type ipv4_addr; flags interval; elements = { 10.244.0.0/15 }; }
 chain raw-PREROUTING { type filter hook prerouting priority raw; jump raw-cali-PREROUTING; }
 chain raw-cali-PREROUTING { meta mark set meta mark & 0xfff0ffff; }
 chain mangle-PREROUTING { type filter hook prerouting priority mangle; ct state established,related accept; }
 chain nat-PREROUTING { type nat hook prerouting priority dstnat; jump nat-cali-PREROUTING; }
 chain nat-OUTPUT { type nat hook output priority -100; fib daddr type local jump nat-cali-PREROUTING; }
 chain nat-cali-PREROUTING { tcp dport 8092 dnat to 10.244.77.2:8080; }
 chain nat-POSTROUTING { type nat hook postrouting priority srcnat; jump nat-cali-POSTROUTING; }
 chain nat-cali-POSTROUTING {
  ip saddr @cali40masq-ipam-pools ip daddr != @cali40all-ipam-pools masquerade fully-random
 }
 chain filter-FORWARD { type filter hook forward priority filter; jump filter-cali-FORWARD; }
 chain filter-cali-FORWARD { iifname \"to-*\" jump filter-cali-fw; oifname \"to-*\" jump filter-cali-tw; }
 chain filter-cali-fw { ct state vmap { established : accept, related : accept, invalid : drop }; accept; }
 chain filter-cali-tw { ct state vmap { established : accept, related : accept, invalid : drop }; accept; }
}
table ip6 calico {
 chain nat-PREROUTING { type nat hook prerouting priority -100; tcp dport 8091 dnat to [fd00:244:0:77::1]:8080; }
 chain nat-POSTROUTING { type nat hook postrouting priority 100; ip6 saddr fd00:245::/64 masquerade; }
}
";

#[test]
#[ignore = "of the cluster"]
fn no_connection_that_others_translate_is_lost() {
    let mut site = Site::new(Mode::Iptables);
    let proxyshift = site.node.proxyshift();
    site.node.write("/run/others", OTHERS);
    site.node.write("/run/native", NATIVE);
    site.node.run("iptables-nft-restore --noflush < /run/others && nft -f /run/native");
    site.instead = {
        let [own, own_v6] = &site.node.addresses;
        let at = |port: u16| format!("{own}:{port}").parse::<SocketAddr>().expect("an address");
        let at_v6 = format!("[{own_v6}]:8091").parse::<SocketAddr>().expect("an address");
        let to = |name: &str, from: &str, to: Vec<SocketAddr>, how| Kind {
            name: format!("{name} from {from}"),
            from: from.to_owned(),
            how,
            to,
        };
        let (docker, portmap, vpn) = (vec![at(8088)], vec![at(8089)], vec![at(8090)]);
        vec![
            to("docker", OWN, docker.clone(), How::Connect),
            to("docker, a stream", OWN, docker.clone(), How::Stream),
            to("docker", &site.node.name, docker, How::Connect),
            to("portmap", OWN, portmap.clone(), How::Connect),
            to("portmap", &site.pods.client, portmap, How::Connect),
            to("a VPN", OWN, vpn, How::Connect),
            to("Calico", OWN, vec![at_v6], How::Connect),
            to("Calico", OWN, vec![at(8092)], How::Connect),
            to("Calico, a stream", OWN, vec![at(8092)], How::Stream),
            to("Calico", &site.pods.client, vec![at(8092)], How::Connect),
        ]
    };
    let site = site;
    let rules = || {
        let saved = site.seen.run("iptables-nft-save");
        let own = saved.lines().filter(|line| {
            ["DOCKER", "CNI-", "cali", "172.17."].iter().any(|word| line.contains(word))
        });
        let mut lines: Vec<String> = own.map(str::to_owned).collect();
        lines.extend(
            ["ip vpn", "ip calico", "ip6 calico"]
                .map(|table| site.seen.run(&format!("nft -s list table {table}"))),
        );
        lines
    };
    // The counters of chains are no part of what is compared.
    let before = rules();
    for (verbs, to) in [
        (&["migrate --to nftables --yes", "confirm"][..], Mode::Nftables),
        (&["migrate --to iptables --yes", "rollback"], Mode::Nftables),
        (&["migrate --to iptables --yes", "confirm"], Mode::Iptables),
    ] {
        let what = format!("{}, {}", verbs[0], verbs[1]);
        site.unharmed(&what, || {
            verbs.iter().for_each(|verb| drop(proxyshift.expect(0, verb)));
        });
        site.is_in(to);
        assert_eq!(rules(), before, "{what}");
    }
}
