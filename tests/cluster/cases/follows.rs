//! The bridge follows the API: while it alone serves, endpoints come and go, Services are deleted, and
//! the API server is away.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxyshift::kube_proxy::bridge::TABLE;
use proxyshift::state::kube_proxy::Mode;
use serde_json::{Value, json};

use super::moves::{BACK, FORWARD, SERVICES, Site, mounting, short, without_nft};
use super::services::{Endpoint, READY, with_slices};
use super::{OLD, upgraded_by};
use crate::common::clients::{any, at, connect, serve};
use crate::common::{run, run_with};
use crate::control_plane::{Cluster, VERSION, poll};
use crate::node::{MANIFEST, manifest};
use crate::traffic::{Tally, pods::SERVERS};

/// How soon the bridge must have followed.
const SOON: Duration = Duration::from_secs(2);

/// How long traffic flows that must not fail.
const FLOWS: Duration = Duration::from_secs(4);

/// A migration that runs, with what it has said so far.
pub(super) struct Moving {
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Moving {
    /// Begins to move the site's kube-proxy, by the playbook with that time for kube-proxy to serve.
    pub(super) fn begin(site: &Site, to: Mode, timeout: &str) -> Moving {
        let playbook = if to == Mode::Nftables { FORWARD } else { BACK };
        let playbook = short(playbook).replace("timeout: 5m", &format!("timeout: {timeout}"));
        Moving::by(site, to, &playbook)
    }

    /// Begins to move the site's kube-proxy to `mode` by this playbook.
    fn by(site: &Site, mode: Mode, playbook: &str) -> Moving {
        site.node.write("/run/playbook.yaml", playbook);
        let words = format!("migrate --to {mode} --playbook /run/playbook.yaml --yes");
        let mut command = site.node.proxyshift().command(&words);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let (said, mut err) =
            (Arc::new(Mutex::new(String::new())), child.stderr.take().expect("it"));
        let kept = Arc::clone(&said);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = err.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]);
                kept.lock().expect("no panic").push_str(&text);
            }
        });
        Moving { child, said }
    }

    fn said(&self) -> String {
        self.said.lock().expect("no panic").clone()
    }

    /// Waits until the run ends, with this code. Returns what it has said.
    pub(super) fn ends(mut self, code: i32) -> String {
        let ended = self.child.wait().expect("its end");
        let said = self.said();
        println!("{said}");
        assert_eq!(ended.code(), Some(code), "{said}");
        said
    }
}

impl Site {
    /// A site whose kube-proxy cannot start in nftables mode, so that the bridge serves for long.
    pub(super) fn that_gets_stuck() -> Site {
        let site = Site::new(Mode::Iptables);
        site.runs(&without_nft());
        site
    }

    pub(super) fn only_the_bridge_serves(&self) {
        let has = |command: &str, text: &str| self.node.run(command).contains(text);
        poll("only the bridge serves", || {
            has("nft list tables", TABLE) && !has("iptables-nft-save -t nat", "-j KUBE-SVC-")
        });
    }

    /// Gives these Services the endpoints with these last parts, and no others. Returns when the API
    /// has taken it.
    fn set_endpoints(&self, services: impl Iterator<Item = usize>, last: &[u8]) -> Instant {
        let spec = json!({"type": "NodePort", "ports": [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "dns", "port": 53, "targetPort": 8053, "protocol": "UDP"}]});
        let slices = services.flat_map(|number| {
            let endpoints: Vec<Endpoint> =
                last.iter().map(|last| Endpoint(*last, true, READY)).collect();
            let name = format!("service-{number}");
            let all =
                with_slices(&self.namespace, &self.node.name, &name, spec.clone(), &endpoints);
            all.into_iter().skip(1)
        });
        let items: Vec<Value> = slices.collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        Cluster::shared().apply(&list);
        Instant::now()
    }

    /// Ends the servers at the addresses with these last parts: nothing answers there any more.
    fn kill(&self, last: &[u8]) {
        let del = last.iter().flat_map(|last| {
            [
                format!("addr del 10.244.77.{last}/24 dev eth0\n"),
                format!("addr del fd00:244:0:77::{last}/64 dev eth0\n"),
            ]
        });
        let batch: String = del.collect();
        // Else the first address of a network takes the others along.
        let promote = "sysctl -qw net.ipv4.conf.all.promote_secondaries=1";
        run(&format!("ip netns exec {} {promote}", self.pods.servers));
        run_with(&batch, &["ip", "-n", &self.pods.servers, "-batch", "-"]);
    }

    /// Starts a server at the addresses with this last part.
    pub(super) fn add_server(&self, last: u8) {
        let own = [format!("10.244.77.{last}"), format!("fd00:244:0:77::{last}")];
        let batch =
            format!("addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n", own[0], own[1]);
        run_with(&batch, &["ip", "-n", &self.pods.servers, "-batch", "-"]);
        for address in own {
            let address: IpAddr = address.parse().expect("an address");
            serve(&self.pods.servers, address);
            let to = SocketAddr::new(address, 8080);
            poll("the new server answers", || at(&self.node.name, || connect(to).is_ok()));
        }
    }

    /// The address of a Service's port in a family: the first is HTTP by TCP, the second DNS by UDP.
    fn cluster_ip(&self, service: usize, port: usize, family: usize) -> SocketAddr {
        let name = format!("service-{service}");
        let mut all = self.services.iter();
        let service = all.find(|s| s["metadata"]["name"] == *name).expect("it");
        self.addresses_of(service, family, port)[0]
    }

    /// How many connections the bridges have translated.
    fn translated(&self) -> u64 {
        ["ip", "ip6"]
            .map(|family| {
                let line = format!("nft -j list counter {family} {TABLE} translated");
                let listed: Value = serde_json::from_str(&self.node.run(&line)).expect("JSON");
                let mut objects = listed["nftables"].as_array().expect("objects").iter();
                objects.find_map(|o| o["counter"]["packets"].as_u64()).expect("a counter")
            })
            .into_iter()
            .sum()
    }

    /// Fails if any connection of the site's traffic fails that begins [`SOON`] after `changed`.
    fn nothing_fails_soon_after(&self, changed: Instant, what: &str) {
        self.nothing_fails_after(SOON, changed, what);
    }

    /// As [`Site::nothing_fails_soon_after`], of what begins `time` after `changed`.
    fn nothing_fails_after(&self, time: Duration, changed: Instant, what: &str) {
        std::thread::sleep(time.saturating_sub(changed.elapsed()));
        let traffic = self.traffic();
        std::thread::sleep(FLOWS);
        let Tally { tries, failures, .. } = traffic.stop(what);
        let shown = &failures[..failures.len().min(10)];
        assert!(failures.is_empty(), "{what}: {} of {tries} failed: {shown:#?}", failures.len());
    }
}

/// A flow of UDP that goes on from one port.
struct Flow(UdpSocket);

impl Flow {
    fn begin(namespace: &str, to: SocketAddr) -> Flow {
        Flow(at(namespace, || {
            let socket = UdpSocket::bind((any(to.is_ipv6()), 0)).expect("a port");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            socket.connect(to).expect("a route");
            socket
        }))
    }

    fn is_answered(&self) -> bool {
        self.0.send(b"who").is_ok() && self.0.recv(&mut [0; 512]).is_ok()
    }
}

#[test]
#[ignore = "of the cluster"]
fn endpoints_are_followed_while_only_the_bridge_serves() {
    let site = Site::that_gets_stuck();
    let moving = Moving::begin(&site, Mode::Nftables, "60s");
    site.only_the_bridge_serves();
    let flows: Vec<Flow> = (0..8)
        .map(|number| Flow::begin(&site.pods.client, site.cluster_ip(number, 1, number % 2)))
        .collect();
    assert!(flows.iter().all(Flow::is_answered));
    let [first, others @ ..] = &SERVERS;
    site.kill(&[*first]);
    let gone = site.set_endpoints(0..SERVICES, others);
    site.nothing_fails_soon_after(gone, "an endpoint was killed");
    assert!(flows.iter().all(Flow::is_answered), "a flow still leads to what is gone");
    let before = site.translated();
    assert!(before > 0, "nobody needed the bridge");

    site.add_server(4);
    site.kill(others);
    let added = site.set_endpoints(0..SERVICES, &[4]);
    site.nothing_fails_soon_after(added, "only an endpoint that is new is left");
    assert!(flows.iter().all(Flow::is_answered), "a flow still leads to what is gone");
    let after = site.translated();
    assert!(after > before, "the counter goes on: {after} after {before}");
    // Somebody's flush brings back the newest.
    site.node.run("nft flush ruleset");
    poll("the bridge is back", || site.node.run("nft list tables").contains(TABLE));
    site.nothing_fails_soon_after(Instant::now(), "the ruleset was flushed");
    assert!(site.translated() > before, "the counter goes on");

    let said = moving.ends(4);
    assert!(!said.contains("not followed"), "{said}");
    site.is_in(Mode::Iptables);
    // No file of the run has a word of kube-proxy's key, encoded or not.
    let line = "sed -n 's/ *client-key-data: //p' /var/lib/kube-proxy/kubeconfig.conf";
    let key = site.node.run(line);
    let pem = site.node.run(&format!("{line} | base64 -d | sed -n 2p"));
    for word in [key.trim().get(..60).expect("a key"), pem.trim()] {
        assert!(word.len() > 30, "{word}");
        let files = site.node.run(&format!("grep -rlF {word} /run/proxyshift /run/store || true"));
        assert!(files.is_empty(), "{files}");
    }
}

#[test]
#[ignore = "of the cluster"]
fn an_api_that_is_away_is_named_and_followed_again() {
    let site = Site::that_gets_stuck();
    let moving = Moving::begin(&site, Mode::Nftables, "50s");
    site.only_the_bridge_serves();
    site.node.run("ip route add blackhole 10.20.0.1/32");
    poll("it is said", || moving.said().contains("endpoints are not followed: "));
    let [first, others @ ..] = &SERVERS;
    site.kill(&[*first]);
    site.set_endpoints(0..SERVICES, others);
    site.node.run("ip route del blackhole 10.20.0.1/32");
    poll("it is said", || moving.said().contains("endpoints are followed again"));
    site.nothing_fails_soon_after(Instant::now(), "an endpoint was killed while the API was away");
    let said = moving.ends(4);
    assert_eq!(said.matches("endpoints are not followed").count(), 1, "{said}");
    site.is_in(Mode::Iptables);
}

/// How a connection to a Service ends.
fn refused(site: &Site, to: SocketAddr) -> bool {
    let error = at(&site.pods.client, || connect(to).err());
    error.is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Deletes one Service and leaves another without endpoints.
fn delete_and_scale(site: &Site) -> Instant {
    let namespace = &site.namespace;
    Cluster::shared().kubectl(&format!(
        "delete -n {namespace} service/service-0 endpointslice/service-0-ipv4 \
         endpointslice/service-0-ipv6 --wait=false"
    ));
    site.set_endpoints(1..2, &[])
}

#[test]
#[ignore = "of the cluster"]
fn what_goes_in_mid_move_is_refused_and_the_run_goes_on() {
    let site = Site::that_gets_stuck();
    let moving = Moving::begin(&site, Mode::Nftables, "5m");
    site.only_the_bridge_serves();
    let gone = delete_and_scale(&site);
    std::thread::sleep(SOON.saturating_sub(gone.elapsed()));
    for family in [0, 1] {
        for service in [0, 1] {
            let to = site.cluster_ip(service, 0, family);
            assert!(refused(&site, to), "{to}, which is gone, is not refused");
        }
        let to = site.cluster_ip(2, 0, family);
        assert!(at(&site.pods.client, || connect(to).is_ok()), "{to} stays");
    }
    // kube-proxy gets its nft, and starts.
    site.node.write(MANIFEST, &manifest(VERSION));
    let began = Instant::now();
    let said = moving.ends(0);
    let took = began.elapsed();
    println!("the run ended {took:.1?} after kube-proxy could start");
    assert!(took < Duration::from_secs(120), "{took:?}: it waited for what is gone");
    let gone: Vec<String> = [0, 1].map(|s| site.cluster_ip(s, 0, 0).ip().to_string()).into();
    let ends = said.lines().find(|line| line.contains("gone with the bridge"));
    assert!(ends.is_none_or(|line| gone.iter().all(|ip| !line.contains(ip))), "{said}");
    site.is_in(Mode::Nftables);
    site.node.proxyshift().expect(0, "confirm");
}

#[test]
#[ignore = "of the cluster"]
fn without_the_api_a_synced_family_tells_what_is_gone() {
    let site = Site::that_gets_stuck();
    // kube-proxy still reads it, and proxyshift does not.
    let kubeconfig = "/var/lib/kube-proxy/kubeconfig.conf";
    site.node.run(&format!("chmod 666 {kubeconfig}"));
    let moving = Moving::begin(&site, Mode::Nftables, "5m");
    site.only_the_bridge_serves();
    delete_and_scale(&site);
    let to = site.cluster_ip(1, 0, 0);
    assert!(!refused(&site, to), "nobody has told the bridge");
    site.node.write(MANIFEST, &manifest(VERSION));
    poll("the bridge answers no more", || moving.said().contains("the bridge answers no more"));
    // That may have been the other family.
    poll("it is refused", || refused(&site, to));
    let stays = site.cluster_ip(2, 0, 0);
    assert!(at(&site.pods.client, || connect(stays).is_ok()), "{stays} stays");
    // It waits for what is gone, until the API tells that it is.
    std::thread::sleep(Duration::from_secs(5));
    assert!(!moving.said().contains("✓ waiting until kube-proxy serves in nftables mode"));
    site.node.run(&format!("chmod 600 {kubeconfig}"));
    let began = Instant::now();
    let said = moving.ends(0);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    let why = format!("endpoints are not followed: {kubeconfig}: is not read: not only root can");
    assert_eq!(said.matches("endpoints are not followed").count(), 1, "{said}");
    assert!(said.contains(&why) && said.contains("endpoints are followed again"), "{said}");
    site.is_in(Mode::Nftables);
    site.node.proxyshift().expect(0, "confirm");
}

#[test]
#[ignore = "of the cluster"]
fn what_goes_during_an_upgrade_holds_up_nothing() {
    let site = Site::of(OLD, Mode::Iptables);
    site.node.import(VERSION);
    site.node.write("/run/manifest", &manifest(VERSION));
    let command = format!("touch /run/upgrades; sleep 5; cp /run/manifest {MANIFEST}");
    let moving = Moving::by(&site, Mode::Iptables, &upgraded_by(&["sh", "-c", &command]));
    poll("the upgrade begins", || site.node.run("ls /run").contains("upgrades"));
    delete_and_scale(&site);
    let began = Instant::now();
    let said = moving.ends(0);
    let took = began.elapsed();
    println!("the upgrade ended {took:.1?} after a Service was deleted");
    assert!(took < Duration::from_secs(90), "{took:?}: it waited for what is gone");
    assert!(!said.contains("endpoints are"), "there is no bridge: {said}");
    site.node.proxyshift().expect(0, "confirm");
}

/// The manifest of a kube-proxy in whose image iptables is a program that fails.
pub(super) fn without_iptables() -> String {
    mounting(&[("/usr/sbin/iptables", "/bin/false")])
}

#[test]
#[ignore = "of the cluster"]
fn soak_an_undo_by_the_watchdog_follows_too() {
    let site = Site::that_gets_stuck();
    let proxyshift = site.node.proxyshift();
    site.node.write("/run/playbook.yaml", &short(FORWARD));
    let words = "migrate --to nftables --playbook /run/playbook.yaml --yes";
    proxyshift.killed(words, "before:switch:done");
    site.only_the_bridge_serves();
    // So that the bridge serves for long: the old mode cannot start either.
    site.node.write(MANIFEST, &without_iptables());
    let configured =
        "grep -q '^mode: iptables' /var/lib/kube-proxy/config.conf && echo back || true";
    poll("the watchdog undoes the run", || site.node.run(configured).contains("back"));
    let [first, others @ ..] = &SERVERS;
    site.kill(&[*first]);
    let gone = site.set_endpoints(0..SERVICES, others);
    // Its process may have begun to read the API just now.
    let what = "an endpoint was killed while the watchdog undid the run";
    site.nothing_fails_after(2 * SOON, gone, what);
    site.only_the_bridge_serves();
    site.node.write(MANIFEST, &manifest(VERSION));
    poll("the run is undone", || {
        site.node.run("cat /run/store/runs/*/run.json").contains("rolled-back")
    });
    site.is_in(Mode::Iptables);
}
