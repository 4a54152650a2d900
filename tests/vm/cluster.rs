//! A cluster of one node: the node's network, the API, and kube-proxy.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::Api;
use crate::common::node::without_counters;
use crate::common::{run, run_with};
use crate::kube_proxy::{self, KubeProxy};
use crate::network::{self, BACKENDS, NODE, is_ipv6, of_family, tcp, udp};

/// The address of the foreign virtual server.
pub const FOREIGN: &str = "192.168.100.50";

/// The name of the service that has no endpoints.
const EMPTY: &str = "empty";

/// The folder with the node's iptables programs of one backend, by the names that kube-proxy uses.
pub const BIN: &str = "/run/bin";

/// The node, the services, and the kube-proxy that serves them; none while kube-proxy is stopped.
pub struct Cluster {
    backend: &'static str,
    pub api: Api,
    kube_proxy: Option<KubeProxy>,
}

impl Cluster {
    /// Makes the cluster in this namespace, with the iptables of `backend`, which is `nft` or
    /// `legacy`. No kube-proxy serves yet.
    pub fn new(backend: &'static str) -> Cluster {
        fs::create_dir_all(BIN).expect(BIN);
        for program in ["iptables", "ip6tables"]
            .into_iter()
            .flat_map(|p| ["", "-save", "-restore"].map(|what| format!("{p}{what}")))
        {
            let multi = format!("/usr/sbin/xtables-{backend}-multi");
            symlink(multi, format!("{BIN}/{program}")).expect(&program);
        }
        network::make(backend);
        let api = Api::start();
        for object in objects() {
            api.apply(object);
        }
        KubeProxy::introduce(api.address);
        Cluster { backend, api, kube_proxy: None }
    }

    /// Adds a foreign virtual server with a weighted real server, as keepalived would.
    pub fn foreign_server(&self) {
        let server = format!(
            "-A -t {FOREIGN}:7000 -s wrr -p 30\n\
             -a -t {FOREIGN}:7000 -r 10.244.0.11:8080 -m -w 3\n\
             -a -t {FOREIGN}:7000 -r 10.244.0.12:8080 -m -w 7\n"
        );
        run_with(&of_family(&server), &["ipvsadm", "-R"]);
    }

    /// Stops kube-proxy, starts it in `mode`, and waits until it serves.
    pub fn kube_proxy(&mut self, mode: &str) {
        KubeProxy::configure(mode, &of_family(&format!("{FOREIGN}/32")));
        self.kube_proxy_as_configured(mode);
    }

    /// Stops kube-proxy, starts it with its last configuration, and waits until it serves in
    /// `mode`.
    pub fn kube_proxy_as_configured(&mut self, mode: &str) {
        self.stop();
        let mut started = KubeProxy::start(BIN);
        started.wait(mode, || self.rules_are_of(mode) && self.is_complete(mode));
        self.kube_proxy = Some(started);
    }

    /// Waits until kube-proxy serves in `mode`, if something other than this test has started it.
    pub fn wait(&self, mode: &str) {
        kube_proxy::wait(mode, || self.rules_are_of(mode) && self.is_complete(mode), || None);
    }

    /// Whether the rules lead to services in the way of `mode` and in no other: so they are the
    /// rules of this kube-proxy, and not leftovers.
    fn rules_are_of(&self, mode: &str) -> bool {
        let (nat, pods) = (self.save("nat"), of_family("10.244.0.0/16"));
        let of = |parts: &[&str]| {
            nat.lines()
                .any(|l| l.starts_with("-A KUBE-SERVICES") && parts.iter().all(|p| l.contains(p)))
        };
        of(&["-j KUBE-SVC-"]) == (mode == "iptables")
            && of(&["--match-set KUBE-", &pods]) == (mode == "ipvs")
            && native_services().is_empty() == (mode != "nftables")
    }

    /// Whether kube-proxy has processed each service: every service address exists, and nothing
    /// changes for 2 s. kube-proxy's first write may lack some services (see [`headless`]).
    fn is_complete(&self, mode: &str) -> bool {
        let made = || {
            let tables = ["nat", "filter"].map(|table| without_counters(&self.save(table)));
            (run("ipvsadm -Sn"), run("ipset save"), tables, native_services())
        };
        let before = made();
        let (_, sets, [nat, _], native) = &before;
        let addresses = match mode {
            "ipvs" => sets,
            "nftables" => native,
            _ => nat,
        };
        if !served().iter().all(|address| addresses.contains(address)) {
            return false;
        }
        std::thread::sleep(Duration::from_secs(2));
        made() == before
    }

    /// Stops kube-proxy. Its objects in the kernel are kept.
    pub fn stop(&mut self) {
        self.kube_proxy = None;
    }

    /// Leaves the running kube-proxy to another controller.
    pub fn release(&mut self) {
        if let Some(kube_proxy) = self.kube_proxy.take() {
            kube_proxy.release();
        }
    }

    /// A table of the node's rules in the form of `iptables-save`, without comments.
    pub fn save(&self, table: &str) -> String {
        let save = run(&format!("{}-{}-save -t {table}", network::iptables(), self.backend));
        save.lines().filter(|l| !l.starts_with('#')).map(|l| format!("{l}\n")).collect()
    }

    /// Fails unless every service works in the way that its kind requires.
    pub fn serves(&self) {
        let answers = |from: &str, to: &str| {
            tcp(from, to)
                .unwrap_or_else(|e| panic!("tcp {from:?} → {to}: {e}\n{}", kube_proxy::log()))
        };
        let queries = |from: &str, to: &str| {
            udp(from, to)
                .unwrap_or_else(|e| panic!("udp {from:?} → {to}: {e}\n{}", kube_proxy::log()))
        };
        for from in ["pod", NODE] {
            answers(from, "10.96.1.1:80");
            answers(from, "10.96.0.10:53");
            queries(from, "10.96.0.10:53");
        }
        answers("outside", "192.168.100.1:30080");
        queries("outside", "192.168.100.1:30053");
        let sticky: Vec<_> = (0..6).map(|_| answers("pod", "10.96.1.3:80").server).collect();
        assert!(sticky.iter().all(|server| *server == sticky[0]), "{sticky:?}");
        answers("outside", "198.51.100.4:80");
        answers("outside", "198.51.100.5:80");
        let local = answers("outside", "192.168.100.1:30086");
        assert_eq!(local.client, of_family("192.168.100.2"), "a local service sees its client");
        assert!(tcp("pod", "10.96.1.9:80").is_err(), "nobody is behind it");
        self.container_goes_out();
    }

    /// Fails unless docker's masquerading works: a container reaches the host outside.
    pub fn container_goes_out(&self) {
        let seen = tcp("box", "192.168.100.2:8080").expect("a container reaches the outside");
        assert_eq!((&*seen.server, seen.client), ("outside", of_family("192.168.100.1")));
    }
}

/// The table of nftables mode, as `nft` lists it; empty if there is none.
pub fn native_services() -> String {
    let family = if is_ipv6() { "ip6" } else { "ip" };
    match run("nft list tables").contains(&format!("table {family} kube-proxy\n")) {
        true => run(&format!("nft list table {family} kube-proxy")),
        false => String::new(),
    }
}

/// The services in services.yaml.
fn services() -> Vec<Value> {
    let text = of_family(include_str!("services.yaml"));
    let documents = serde_yaml::Deserializer::from_str(&text);
    documents.map(|d| Value::deserialize(d).expect("services.yaml")).collect()
}

/// The cluster addresses of those services that have endpoints.
fn served() -> Vec<String> {
    let with_backends = services().into_iter().filter(|s| s["metadata"]["name"] != EMPTY);
    let addresses =
        with_backends.filter_map(|s| s["spec"]["clusterIP"].as_str().map(str::to_owned));
    addresses.filter(|address| address != "None").collect()
}

/// The objects of the API: the node, the range of service addresses, the services of services.yaml
/// and [`headless`], and their endpoints.
pub fn objects() -> Vec<Value> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
        "status": {"addresses": [{"type": "InternalIP", "address": of_family("192.168.100.1")}]},
    });
    let range = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": [of_family("10.96.0.0/16")]},
    });
    let mut objects = vec![node, range];
    for service in services().into_iter().chain((0..LAST).map(headless)) {
        objects.push(endpoints(&service));
        objects.push(slice(&service));
        objects.push(service);
    }
    objects
}

/// How many headless services come after all others.
const LAST: usize = 30;

/// A service that needs no rules. kube-proxy handles services in order, and on a slow CPU it writes
/// rules before it has handled the last ones. Many of these services come last, so that no other
/// service is missing from those rules.
fn headless(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("last-{number}"), "namespace": "default"},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "protocol": "TCP", "port": 80,
            "targetPort": 8080}]},
    })
}

/// The addresses of the pods behind a service.
fn pods(service: &Value) -> Vec<String> {
    let empty = service["metadata"]["name"] == EMPTY;
    BACKENDS.iter().filter(|_| !empty).map(|(_, ip)| of_family(ip)).collect()
}

/// The ports of the pods behind a service.
fn ports(service: &Value) -> Vec<Value> {
    let ports = service["spec"]["ports"].as_array().expect("ports");
    let port =
        |p: &Value| json!({"name": p["name"], "port": p["targetPort"], "protocol": p["protocol"]});
    ports.iter().map(port).collect()
}

fn endpoints(service: &Value) -> Value {
    let addresses: Vec<_> =
        pods(service).iter().map(|ip| json!({"ip": ip, "nodeName": "node"})).collect();
    let subsets = match addresses.is_empty() {
        true => json!([]),
        false => json!([{"addresses": addresses, "ports": ports(service)}]),
    };
    json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": service["metadata"],
        "subsets": subsets})
}

/// The endpoints of a service as an EndpointSlice.
fn slice(service: &Value) -> Value {
    let mut metadata = service["metadata"].clone();
    metadata["labels"] = json!({"kubernetes.io/service-name": metadata["name"]});
    let ready = |ip: &String| {
        json!({"addresses": [ip], "nodeName": "node",
            "conditions": {"ready": true, "serving": true, "terminating": false}})
    };
    let endpoints: Vec<_> = pods(service).iter().map(ready).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": if is_ipv6() { "IPv6" } else { "IPv4" }, "endpoints": endpoints,
        "ports": ports(service)})
}
