//! A node in private namespaces with many services, all of which lead to a pod on the node.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::api::Api;

const VERSION: &str = "1.37.2";
const NODE: &str = "10.9.0.2";
const METRICS: &str = "127.0.0.1:10249";

/// How long an attempt to connect may take. On loopback an answer comes within microseconds.
const ATTEMPT: Duration = Duration::from_millis(50);

/// The node, and the API with its services.
pub struct Cluster {
    /// The address of the last service.
    last: SocketAddr,
}

impl Cluster {
    /// Makes the node in this namespace, with the iptables of `backend`.
    pub fn new(services: usize, endpoints: usize, backend: &str) -> Cluster {
        fs::create_dir_all("/run/bin").expect("/run/bin");
        for program in ["iptables", "ip6tables"] {
            for what in ["", "-save", "-restore"] {
                let multi = format!("/usr/sbin/xtables-{backend}-multi");
                symlink(multi, format!("/run/bin/{program}{what}")).expect("a link");
            }
        }
        for words in [
            "link set lo up",
            "link add eth0 type veth peer name peer",
            "address add 10.9.0.2/24 dev eth0",
            "link set eth0 up",
            "link set peer up",
            "route add default via 10.9.0.1",
            "address add 192.168.64.0/20 dev lo",
        ] {
            let status = Command::new("ip").args(words.split(' ')).status().expect("ip runs");
            assert!(status.success(), "ip {words}");
        }
        let listener = TcpListener::bind("0.0.0.0:8080").expect("port 8080");
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let api = Api::start();
        api.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"},
            "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}}));
        (0..services).for_each(|number| add_service(&api, number, endpoints));
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: t, cluster: {{server: \
             'http://{}'}}}}]\ncontexts: [{{name: t, context: {{cluster: t, user: ''}}}}]\n\
             current-context: t\n",
            api.address
        );
        fs::write("/run/kubeconfig", kubeconfig).expect("the kubeconfig");
        Cluster { last: SocketAddr::from((address(services - 1), 80)) }
    }

    /// Starts kube-proxy in `mode`.
    pub fn start(&self, mode: &str) -> KubeProxy {
        let config = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             clientConnection: {{kubeconfig: /run/kubeconfig, contentType: application/json}}\n\
             hostnameOverride: node\nclusterCIDR: 192.168.64.0/20\nbindAddress: 0.0.0.0\n\
             metricsBindAddress: {METRICS}\nmode: {mode}\nconntrack: {{maxPerCore: 0, min: 0, \
             tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n"
        );
        fs::write("/run/config.conf", config).expect("the configuration");
        let log = fs::File::create("/run/kube-proxy.log").expect("a log");
        let path = format!("/run/bin:{}", std::env::var("PATH").expect("a PATH"));
        let mut command = Command::new(program());
        command.arg("--config=/run/config.conf").env("PATH", path).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        KubeProxy(command.spawn().expect("kube-proxy starts"))
    }

    /// Whether a new connection to the last service is accepted.
    pub fn answers(&self) -> bool {
        TcpStream::connect_timeout(&self.last, ATTEMPT).is_ok()
    }

    /// What the kube-proxy that was started last has logged.
    pub fn log(&self) -> String {
        fs::read_to_string("/run/kube-proxy.log").unwrap_or_default()
    }
}

fn program() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    let program = cache.join("proxyshift/kubernetes").join(VERSION).join("kube-proxy");
    assert!(program.exists(), "{}: run `make kubernetes`", program.display());
    program
}

fn address(number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).expect("few services") + 1;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + number)
}

fn add_service(api: &Api, number: usize, endpoints: usize) {
    let name = format!("app-{number}");
    let metadata = json!({"name": name, "namespace": "default", "uid": name,
        "labels": {"kubernetes.io/service-name": name}});
    api.apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {
        "clusterIP": address(number), "clusterIPs": [address(number)], "ipFamilies": ["IPv4"],
        "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}}));
    let endpoint = |i: usize| {
        let pod = Ipv4Addr::new(192, 168, 65 + (i % 14) as u8, 20 + (number % 200) as u8);
        json!({"addresses": [pod], "nodeName": "node",
            "conditions": {"ready": true, "serving": true, "terminating": false}})
    };
    let slice: Vec<_> = (0..endpoints).map(endpoint).collect();
    api.apply(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": metadata, "addressType": "IPv4", "endpoints": slice,
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}]}));
}

/// A running kube-proxy, which is killed when this value is dropped.
pub struct KubeProxy(Child);

impl KubeProxy {
    /// How long its longest sync took, in seconds, as far as its metrics tell: the first is.
    pub fn first_sync(&self) -> f64 {
        let mut stream = TcpStream::connect(METRICS).expect("its port");
        write!(stream, "GET /metrics HTTP/1.0\r\n\r\n").expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("its metrics");
        let value = |name: &str| {
            let mut lines = text.lines().filter(|l| l.starts_with(name));
            lines.find_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
        };
        let name = "kubeproxy_sync_full_proxy_rules_duration_seconds";
        value(&format!("{name}_sum")) / value(&format!("{name}_count")).max(1.0)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
