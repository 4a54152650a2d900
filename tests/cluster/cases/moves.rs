//! kube-proxy moves between iptables and nftables mode, and back, while traffic flows: with a bridge no
//! connection is lost, and by kube-proxy alone some are.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::{Duration, Instant};

use proxyshift::kube_proxy::bridge::TABLE;
use proxyshift::state::kube_proxy::Mode;
use serde_json::{Value, json};

use super::services::{Endpoint, READY, compared, reads_as_the_api_says, with_slices};
use crate::common::clients::OWN;
use crate::common::tried::tried;
use crate::control_plane::{Cluster, VERSION, poll};
use crate::expected::Seen;
use crate::machine::AT;
use crate::node::{MANIFEST, Node, manifest};
use crate::traffic::bridge::{self, Served, Watch};
use crate::traffic::pods::{Pods, SERVERS};
use crate::traffic::{How, Kind, Tally, Traffic};

/// How many Services there are, each at a ClusterIP and a NodePort, for TCP and UDP, in both families.
pub(super) const SERVICES: usize = 20;

/// How long traffic flows before and after what is measured.
pub(super) const AROUND: Duration = Duration::from_secs(5);

/// How long traffic flows after a move that nothing goes wrong with.
const AFTER: Duration = Duration::from_secs(30);

/// The built-in playbooks that lead to nftables mode and back.
pub(super) const FORWARD: &str = include_str!("../../../playbooks/iptables-to-nftables.yaml");
pub(super) const BACK: &str = include_str!("../../../playbooks/nftables-to-iptables.yaml");

/// Where the manifest is while kube-proxy is stopped. The kubelet passes over such names.
const PARKED: &str = "/etc/kubernetes/manifests/.kube-proxy.yaml";

/// A node on which traffic is measured.
pub(super) struct Site {
    pub(super) node: Node,
    pub(super) seen: Seen,
    pub(super) pods: Pods,
    /// The namespace of the API for the Services.
    pub(super) namespace: String,
    pub(super) services: Vec<Value>,
    /// Other traffic in place of that to the Services; none if that is measured. More than a thousand
    /// connections a second are too many for two cores.
    pub(super) instead: Vec<Kind>,
}

impl Site {
    /// A new node with pods, whose kube-proxy is a static pod and serves all Services in `mode`. Nobody
    /// has asked for one of them until now: who asks too early is not answered later either.
    pub(super) fn new(mode: Mode) -> Site {
        Site::of(VERSION, mode)
    }

    /// As [`Site::new`], of this version of kube-proxy.
    pub(super) fn of(version: &str, mode: Mode) -> Site {
        Site::offering(version, mode, &json!({}))
    }

    /// As [`Site::new`], with Services that have session affinity.
    pub(super) fn with_affinity(mode: Mode) -> Site {
        Site::offering(VERSION, mode, &json!({"sessionAffinity": "ClientIP"}))
    }

    /// As [`Site::of`], with what `also` has in the specification of each Service.
    fn offering(version: &str, mode: Mode, also: &Value) -> Site {
        Site::on(Node::with_static_pod(version, &mode.to_string()), mode, also)
    }

    /// As [`Site::new`], of a node whose kube-proxy is a pod of kubeadm's DaemonSet.
    pub(super) fn of_daemon_set() -> Site {
        Site::on(Node::join(), Mode::Iptables, &json!({}))
    }

    /// A node whose kube-proxy serves in `mode`, with pods and Services.
    fn on(node: Node, mode: Mode, also: &Value) -> Site {
        let seen = Seen::of(&node.name, &node.addresses);
        let (pods, namespace) = (Pods::of(&node.name), format!("moves-{}", node.name));
        offer(&namespace, &node.name, also);
        let text = Cluster::shared().kubectl(&format!("get services -n {namespace} -o json"));
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        let Value::Array(services) = list["items"].take() else { panic!("no items: {text}") };
        let site = Site { node, seen, pods, namespace, services, instead: Vec::new() };
        reads_as_the_api_says(&site.seen, mode);
        site
    }

    /// Traffic of all kinds: in both families, by TCP and by UDP, from a pod, from the node, and from
    /// outside to a NodePort; and open streams.
    pub(super) fn traffic(&self) -> Traffic {
        if !self.instead.is_empty() {
            return Traffic::start(self.instead.clone());
        }
        let mut kinds = Vec::new();
        for (family, name) in ["IPv4", "IPv6"].into_iter().enumerate() {
            for (from, namespace) in
                [("a pod", &*self.pods.client), ("the node", &self.node.name), ("outside", OWN)]
            {
                for (what, how, port) in
                    [("TCP", How::Connect, 0), ("UDP", How::Query, 1), ("a stream", How::Stream, 0)]
                {
                    let both = self.services.iter().map(|s| self.addresses_of(s, family, port));
                    let to =
                        both.map(|[cluster, node]| if namespace == OWN { node } else { cluster });
                    kinds.push(Kind {
                        name: format!("{name}, {what} from {from}"),
                        from: namespace.to_owned(),
                        how,
                        to: to.collect(),
                    });
                }
            }
        }
        Traffic::start(kinds)
    }

    /// Where a port of a Service answers in a family: at its ClusterIP, and at the node. The first port is
    /// HTTP by TCP, the second DNS by UDP.
    pub(super) fn addresses_of(
        &self,
        service: &Value,
        family: usize,
        port: usize,
    ) -> [SocketAddr; 2] {
        let (ip, port) = (&service["spec"]["clusterIPs"][family], &service["spec"]["ports"][port]);
        let [ip, own] = [ip.as_str().expect("both families"), &*self.node.addresses[family]]
            .map(|text| text.parse::<IpAddr>().expect("an address"));
        [
            SocketAddr::new(ip, number(&port["port"])),
            SocketAddr::new(own, number(&port["nodePort"])),
        ]
    }

    /// What of the traffic fails around and during `act`, and what the bridge does meanwhile.
    fn measured(&self, what: &str, after: Duration, act: impl FnOnce()) -> (Tally, [Served; 2]) {
        let (watch, traffic) = (Watch::start(&self.node.name), self.traffic());
        std::thread::sleep(AROUND);
        act();
        std::thread::sleep(after);
        let tally = traffic.stop(what);
        let served = watch.stop();
        for Served { translated, idle } in &served {
            println!(
                "{what}: the bridge translated {translated} connections, then none for {idle:.1?}"
            );
        }
        (tally, served)
    }

    /// As [`Site::measured`], of traffic of which nothing must fail.
    pub(super) fn unharmed(&self, what: &str, act: impl FnOnce()) -> [Served; 2] {
        self.unharmed_until(AROUND, what, act)
    }

    /// As [`Site::unharmed`], with traffic for so long `after` it.
    fn unharmed_until(&self, after: Duration, what: &str, act: impl FnOnce()) -> [Served; 2] {
        let (Tally { tries, failures, .. }, served) = self.measured(what, after, act);
        let shown = &failures[..failures.len().min(20)];
        assert!(failures.is_empty(), "{what}: {} of {tries} failed: {shown:#?}", failures.len());
        served
    }

    /// Fails unless kube-proxy serves in `mode`, and no bridge is left.
    pub(super) fn is_in(&self, mode: Mode) {
        assert_eq!(compared(&self.seen, mode).1, [""; 0]);
        assert_eq!(self.node.asks("/proxyMode"), mode.to_string());
        let tables = self.seen.run("nft list tables");
        assert!(!tables.contains(TABLE), "{tables}");
    }

    /// Restarts kube-proxy, runs a shell command while it is stopped, and waits until it is in sync.
    fn restart(&self, meanwhile: &str) {
        self.node.run(&format!(
            "mv {MANIFEST} {PARKED}
             timeout 60 sh -c 'while pidof kube-proxy >/dev/null; do sleep 0.1; done'
             {meanwhile}
             mv {PARKED} {MANIFEST}
             for _ in $(seq 600); do
                 ! curl -sf -m 5 -o /dev/null http://127.0.0.1:10256/healthz || exit 0
                 sleep 0.1
             done
             exit 1"
        ));
    }

    /// Restarts kube-proxy with this manifest, and waits until it serves in iptables mode.
    pub(super) fn runs(&self, manifest: &str) {
        self.runs_in(Mode::Iptables, manifest);
    }

    /// As [`Site::runs`], in another mode.
    pub(super) fn runs_in(&self, mode: Mode, manifest: &str) {
        self.node.write("/run/manifest", manifest);
        self.restart(&format!("cp /run/manifest {PARKED}"));
        reads_as_the_api_says(&self.seen, mode);
    }

    /// Moves kube-proxy in its own way: its configuration is edited while it is stopped.
    fn moves_itself(&self, to: Mode) {
        self.restart(&format!("sed -i 's/^mode: .*/mode: {to}/' /var/lib/kube-proxy/config.conf"));
        reads_as_the_api_says(&self.seen, to);
    }
}

/// Makes the Services.
fn offer(namespace: &str, node: &str, also: &Value) {
    let cluster = Cluster::shared();
    cluster.kubectl(&format!("create namespace {namespace}"));
    let mut spec = json!({"type": "NodePort", "ports": [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "targetPort": 8053, "protocol": "UDP"}]});
    let also = also.as_object().expect("fields").clone();
    spec.as_object_mut().expect("fields").extend(also);
    let endpoints = SERVERS.map(|last| Endpoint(last, true, READY));
    let all = (0..SERVICES).flat_map(|number| {
        with_slices(namespace, node, &format!("service-{number}"), spec.clone(), &endpoints)
    });
    let items: Vec<Value> = all.collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
}

pub(super) fn number(port: &Value) -> u16 {
    u16::try_from(port.as_u64().expect("a port")).expect("a port")
}

impl Drop for Site {
    fn drop(&mut self) {
        // The kube-proxy of the next case is not to see that these go.
        let Site { namespace, .. } = self;
        for objects in [
            format!("service,endpointslice --all -n {namespace} --wait=false"),
            format!("namespace {namespace} --wait=false"),
        ] {
            let _ = Cluster::shared().try_kubectl(&format!("delete {objects}"));
        }
    }
}

const THERE_AND_BACK: [(Mode, Mode); 2] =
    [(Mode::Iptables, Mode::Nftables), (Mode::Nftables, Mode::Iptables)];

/// Moves kube-proxy to nftables mode and back, with traffic for so long `after` it, and none is lost.
pub(super) fn there_and_back(site: &Site, what: &str, after: Duration) {
    let proxyshift = site.node.proxyshift();
    for (from, to) in THERE_AND_BACK {
        let served = site.unharmed_until(after, &format!("{from} to {to}"), || {
            let ended = proxyshift.expect(0, &format!("migrate --to {to} --yes"));
            println!("{}", ended.err);
        });
        for Served { translated, idle } in served {
            assert!(translated > 0, "nobody needed the bridge");
            // Hundreds of connections went by kube-proxy's own rules meanwhile.
            assert!(idle >= 4 * bridge::EVERY, "the bridge went {idle:?} after it was needed");
        }
        site.is_in(to);
        proxyshift.expect(0, "confirm");
    }
    let what = format!("{what} to nftables mode and back, no connection lost");
    tried(&site.node.asks("/metrics"), AT, &what);
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_there_and_back_of_1_34() {
    there_and_back(&Site::of("1.34.4", Mode::Iptables), "a static pod: from iptables", AROUND);
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_there_and_back_of_iptables_legacy() {
    let site = Site::new(Mode::Iptables);
    // The programs of kube-proxy's image are one file, and its own libraries are two more.
    let files =
        ["libip4tc.so.2", "libip6tc.so.2"].map(|name| format!("/usr/lib/x86_64-linux-gnu/{name}"));
    let [one, other] = &files;
    let legacy = mounting(&[
        ("/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"),
        (one, one),
        (other, other),
    ]);
    site.node.write("/run/manifest", &legacy);
    site.restart(&format!("nft flush ruleset; cp /run/manifest {PARKED}"));
    let of_backend = |save: &str| site.seen.run(save).contains("-j KUBE-SVC-");
    reads_as_the_api_says(&site.seen, Mode::Iptables);
    assert!(of_backend("iptables-legacy-save") && !of_backend("iptables-nft-save"));
    there_and_back(&site, "a static pod: from iptables-legacy", AROUND);
    assert!(of_backend("iptables-legacy-save") && !of_backend("iptables-nft-save"));
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_there_and_back_and_some_are_without_a_bridge() {
    let site = Site::new(Mode::Iptables);
    there_and_back(&site, "a static pod: from iptables", AFTER);
    for (from, to) in THERE_AND_BACK {
        let what = format!("{from} to {to} by kube-proxy alone");
        let (lost, _) = site.measured(&what, AROUND, || site.moves_itself(to));
        assert!(!lost.failures.is_empty(), "{what}: none of {} failed", lost.tries);
        // Who was not answered keeps an entry that is not translated, and is not answered later.
        site.seen.run("conntrack -F");
    }
}

/// A playbook without the stages that have no part in who serves.
pub(super) fn short(playbook: &str) -> String {
    let without = ["rehearse", "clean", "settle"].map(|stage| format!("  - {stage}: "));
    let is_kept = |line: &&str| !without.iter().any(|stage| line.starts_with(stage));
    playbook.lines().filter(is_kept).map(|line| format!("{line}\n")).collect()
}

/// The manifest of a kube-proxy in whose image each first path is the node's file at the second.
pub(super) fn mounting(files: &[(&str, &str)]) -> String {
    let [mounts, volumes] = ["    volumeMounts:\n", "  volumes:\n"];
    let text = manifest(VERSION);
    assert!(text.contains(mounts) && text.contains(volumes), "{text}");
    let (mut mounted, mut from) = (mounts.to_owned(), volumes.to_owned());
    for (number, (path, of_node)) in files.iter().enumerate() {
        mounted += &format!("    - {{name: file-{number}, mountPath: {path}}}\n");
        from += &format!("  - {{name: file-{number}, hostPath: {{path: {of_node}}}}}\n");
    }
    text.replace(mounts, &mounted).replace(volumes, &from)
}

/// The manifest of a kube-proxy in whose image nft is a program that fails. Such a kube-proxy removes
/// what iptables mode wrote before it finds that it cannot start.
pub(super) fn without_nft() -> String {
    mounting(&[("/usr/sbin/nft", "/bin/false")])
}

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_a_move_is_undone() {
    let site = Site::new(Mode::Iptables);
    let proxyshift = site.node.proxyshift();
    site.node.write("/run/playbook.yaml", &short(FORWARD));
    let words = "migrate --to nftables --playbook /run/playbook.yaml --yes";
    site.unharmed("moved and undone by hand", || {
        proxyshift.expect(0, words);
        println!("{}", proxyshift.expect(0, "rollback").err);
    });
    site.is_in(Mode::Iptables);

    site.runs(&without_nft());
    assert!(FORWARD.contains("timeout: 5m"), "{FORWARD}");
    site.node.write("/run/playbook.yaml", &short(FORWARD).replace("timeout: 5m", "timeout: 10s"));
    let [served, _] = site.unharmed("undone, as kube-proxy does not start", || {
        println!("{}", proxyshift.expect(4, words).err);
    });
    assert!(served.translated > 0, "nobody needed the bridge");
    site.is_in(Mode::Iptables);
}

#[test]
#[ignore = "of the cluster"]
fn a_bridge_that_somebody_flushes_is_put_back() {
    let site = Site::new(Mode::Iptables);
    let proxyshift = site.node.proxyshift();
    site.runs(&without_nft());
    site.node.write("/run/playbook.yaml", &short(FORWARD).replace("timeout: 5m", "timeout: 30s"));
    let words = "migrate --to nftables --playbook /run/playbook.yaml --yes";
    let run = proxyshift.command(words).stderr(Stdio::piped()).spawn().expect("it starts");
    let has = |command: &str, text: &str| site.node.run(command).contains(text);
    poll("only the bridge serves", || {
        has("nft list tables", TABLE) && !has("iptables-nft-save -t nat", "-j KUBE-SVC-")
    });
    let (watch, traffic) = (Watch::start(&site.node.name), site.traffic());
    std::thread::sleep(Duration::from_secs(2));
    let flushed = Instant::now();
    site.node.run("nft flush ruleset");
    poll("the bridge is back", || {
        let tables = site.node.run("nft list tables");
        ["ip", "ip6"].iter().all(|family| tables.contains(&format!("table {family} {TABLE}\n")))
    });
    let back = Instant::now();
    let gone = back - flushed;
    assert!(gone < Duration::from_secs(10), "{gone:?}: only the undo has put it back");
    assert!(site.node.answers());
    assert!(!has("iptables-nft-save -t nat", "-j KUBE-SVC-"), "the bridge alone served");
    let ended = run.wait_with_output().expect("its end");
    std::thread::sleep(Duration::from_secs(2));
    let Tally { tries, failures, failed } = traffic.stop("flushed");
    println!("flushed: {} of {tries} failed, the bridge was back after {gone:.1?}", failed.len());
    watch.stop();
    // One that was begun just before had its answer still to come.
    let fell_in = flushed - Duration::from_secs(1)..=back + Duration::from_millis(500);
    assert!(failed.iter().all(|began| fell_in.contains(began)), "{failures:#?}");
    assert!(failed.len() < tries / 4, "{failures:#?}");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(4), "{said}");
    assert_eq!(said.matches("✓ loading the bridge").count(), 2, "{said}");
    site.is_in(Mode::Iptables);
    assert!(!has("nft list tables", TABLE));
}

/// The ends of the stages at which a run is killed, and the verb that sees to it then.
const KILLED: [(&str, &str); 6] = [
    ("after:bridge:intent", "rollback"),
    ("before:bridge:done", "resume"),
    ("after:switch:intent", "rollback"),
    ("before:switch:done", "resume"),
    ("after:remove-bridge:intent", "rollback"),
    ("before:remove-bridge:done", "resume"),
];

#[test]
#[ignore = "of the cluster"]
fn no_connection_is_lost_when_a_run_is_killed() {
    let site = Site::new(Mode::Iptables);
    let proxyshift = site.node.proxyshift();
    for (playbook, to) in [(FORWARD, Mode::Nftables), (BACK, Mode::Iptables)] {
        site.node.write(&format!("/run/to-{to}.yaml"), &short(playbook));
    }
    let [mut next, mut other] = THERE_AND_BACK;
    site.unharmed("killed", || {
        let began = Instant::now();
        for (point, verb) in KILLED {
            let (from, to) = next;
            let words = format!("migrate --to {to} --playbook /run/to-{to}.yaml --yes");
            proxyshift.killed(&words, point);
            let killed = AROUND + began.elapsed();
            proxyshift.expect(0, verb);
            let ended = AROUND + began.elapsed();
            println!("{from} to {to}: killed {point} {killed:.1?} later, {verb} until {ended:.1?}");
            if verb == "rollback" {
                site.is_in(from);
            } else {
                site.is_in(to);
                proxyshift.expect(0, "confirm");
                (next, other) = (other, next);
            }
        }
    });
}
