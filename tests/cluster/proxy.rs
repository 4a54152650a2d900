//! A node of the cluster that is nothing but kube-proxy in a network namespace: for cases about what
//! kube-proxy writes.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::json;

use crate::common::node::Proxyshift;
use crate::common::run_with;
use crate::common::vm::kubernetes;
use crate::control_plane::{Cluster, DIR, KUBE_PROXY, PODS, STATIC, poll};
use crate::expected::Seen;
use crate::node::{addresses, plug};

/// The programs of the host that kube-proxy runs, by mode.
const OF_IPTABLES: [&str; 6] = [
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];
const OF_NFTABLES: [&str; 1] = ["nft"];
const OF_BOTH: [&str; 4] = ["conntrack", "ipset", "modprobe", "sh"];

/// The node, and the kube-proxy that runs there, if one does.
pub struct Proxy {
    pub node: Seen,
    /// The namespace of the API for the case's Services.
    pub namespace: String,
    address: String,
    version: String,
    running: Option<Child>,
    kubelet: Child,
}

impl Proxy {
    /// Adds a node of both families to the cluster, on which no kube-proxy runs yet.
    pub fn join(version: &str) -> Proxy {
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let cluster = Cluster::shared();
        let index = 100 + COUNT.fetch_add(1, Ordering::Relaxed);
        let (name, namespace) = (format!("proxy-{index}"), format!("services-{index}"));
        let addresses = addresses(index);
        plug(&name, &addresses);
        // A pod of the DaemonSet would be another kube-proxy.
        let node = json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {STATIC: ""}}});
        cluster.apply(&node.to_string());
        let internal = addresses.clone().map(|ip| json!({"type": "InternalIP", "address": ip}));
        let patch = json!({"status": {"addresses": internal}});
        cluster.kubectl(&format!("patch node {name} --subresource status --type merge -p {patch}"));
        let node = Seen::of(&name, &addresses);
        let [address, _] = addresses;
        let (version, kubelet) = (version.to_owned(), stand_in(&node.name));
        Proxy { node, namespace, address, version, running: None, kubelet }
    }

    /// Stops the kube-proxy that runs, starts one in `mode` with further `settings`, and waits until
    /// it says that it serves.
    pub fn start(self, mode: &str, settings: &str) -> Proxy {
        self.start_with(mode, settings, &[&OF_IPTABLES[..], &OF_NFTABLES, &OF_BOTH].concat())
    }

    /// As [`Proxy::start`], without the programs that write for other modes: kube-proxy removes nothing
    /// of these then.
    pub fn start_alone(self, mode: &str, settings: &str) -> Proxy {
        let own = if mode == "nftables" { &OF_NFTABLES[..] } else { &OF_IPTABLES };
        self.start_with(mode, settings, &[own, &OF_BOTH].concat())
    }

    fn start_with(mut self, mode: &str, settings: &str, programs: &[&str]) -> Proxy {
        self.stop();
        let folder = format!("{DIR}/{}", self.node.name);
        let bin = format!("{folder}/bin");
        let _ = fs::remove_dir_all(&bin);
        fs::create_dir_all(&bin).expect("a folder");
        for program in programs {
            // As update-alternatives would, but for this kube-proxy alone.
            let of_nft = program.replacen("tables", "tables-nft", 1);
            let found = which::which(of_nft).or_else(|_| which::which(program)).expect(program);
            symlink(found, format!("{bin}/{program}")).expect("a link");
        }
        let config = format!("{folder}/config.conf");
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: {KUBE_PROXY}}}
clusterCIDR: {PODS}
hostnameOverride: {}
mode: {mode}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
{settings}",
            self.node.name
        );
        fs::write(&config, text).expect("a file");
        if settings.contains("/64") {
            self.node.others = self.node.nftables.clone();
        } else if settings.contains("::/0") {
            self.node.nftables.clear();
        }
        self.node.masquerades_all = settings.contains("masqueradeAll: true");
        let log = fs::File::create(self.log_file()).expect("a log");
        let mut command = Command::new("ip");
        let program = kubernetes(&self.version, "kube-proxy");
        command.args(["netns", "exec", &self.node.name, "env", &format!("PATH={bin}")]);
        command.arg(program).arg(format!("--config={config}")).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        self.running = Some(command.spawn().expect("kube-proxy starts"));
        let address = format!("http://{}:10256/healthz", self.address);
        poll(&format!("kube-proxy of {} serves in {mode} mode", self.node.name), || {
            let child = self.running.as_mut().expect("started");
            assert!(
                child.try_wait().expect("a child").is_none(),
                "it ended:\n{}",
                self_log(&self.node)
            );
            let curl = Command::new("curl").args(["-sf", "-m", "2", &address]).output();
            curl.is_ok_and(|output| output.status.success())
        });
        self
    }

    /// Stops kube-proxy. What it wrote stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log_file(&self) -> String {
        log_of(&self.node)
    }

    /// What a command line prints on the node. It must succeed.
    pub fn run(&self, command: &str) -> String {
        self.node.run(command)
    }

    /// What a command line prints on the node that reads `input`.
    pub fn run_with(&self, input: &str, argv: &[&str]) -> String {
        run_with(input, &[&["ip", "netns", "exec", &self.node.name], argv].concat())
    }

    /// The program under test on this node, with a store of the node's own.
    pub fn proxyshift(&self) -> Proxyshift {
        let within = ["ip", "netns", "exec", &self.node.name].map(str::to_owned).to_vec();
        Proxyshift { within, ..Proxyshift::new(&format!("store-{}", self.node.name)) }
    }
}

/// A process with the kubelet's name: without one, the processes that are seen from this PID namespace
/// are not known to be the node's.
fn stand_in(node: &str) -> Child {
    let folder = format!("{DIR}/{node}");
    fs::create_dir_all(&folder).expect("a folder");
    let program = format!("{folder}/kubelet");
    fs::copy("/bin/sleep", &program).expect("a copy of sleep");
    let line = ["netns", "exec", node, &program, "infinity"];
    Command::new("ip").args(line).spawn().expect("it starts")
}

fn log_of(node: &Seen) -> String {
    format!("{DIR}/log/kube-proxy-{}", node.name)
}

fn self_log(node: &Seen) -> String {
    let text = fs::read_to_string(log_of(node)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
        let _ = self.kubelet.kill();
        let _ = self.kubelet.wait();
        let cluster = Cluster::shared();
        let Proxy { namespace, node: Seen { name, .. }, .. } = self;
        // The kube-proxy of the next case is not to see that these go.
        for objects in [
            format!("service,endpointslice --all -n {namespace}"),
            format!("namespace {namespace} --wait=false"),
            format!("node {name}"),
        ] {
            let _ = cluster.try_kubectl(&format!("delete {objects}"));
        }
        let _ = Command::new("ip").args(["netns", "del", name]).status();
    }
}
