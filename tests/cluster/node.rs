//! A node of the cluster: containerd, a kubelet, and kube-proxy as kubeadm's DaemonSet runs it, in
//! namespaces of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use crate::common::node::Proxyshift;
use crate::common::vm::{image, kubernetes};
use crate::common::{run, run_with};
use crate::control_plane::{
    ADDRESS, ADDRESS_V6, Cluster, DIR, KUBE_PROXY, PODS, STATIC, VERSION, configuration, poll,
    programs, start, succeed,
};
use crate::machine::control_groups;

/// The first program of a node, which starts all others there.
const INIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/node-init");

/// The manifest of a kube-proxy that is a static pod.
pub const MANIFEST: &str = "/etc/kubernetes/manifests/kube-proxy.yaml";

/// A node. All of it ends when this value is dropped.
pub struct Node {
    pub name: String,
    /// Its addresses, one a family.
    pub addresses: [String; 2],
    /// The port of the node's addresses that leads to its web server.
    port: u16,
    unshare: Child,
    /// The process id of the node's first program.
    init: String,
}

impl Node {
    /// Joins a new node to the cluster, and waits until its kube-proxy serves, which is a pod of
    /// kubeadm's DaemonSet.
    pub fn join() -> Node {
        let node = Node::begin("");
        node.wait();
        node
    }

    /// Joins a new node to the cluster, and waits until its kube-proxy serves, which is a static
    /// pod of this version in this mode.
    pub fn with_static_pod(version: &str, mode: &str) -> Node {
        Cluster::shared().pass_over_static_pods();
        let node = Node::begin(&format!("{STATIC}="));
        node.import(version);
        node.write("/var/lib/kube-proxy/config.conf", &static_configuration(mode));
        node.write("/var/lib/kube-proxy/kubeconfig.conf", &read(KUBE_PROXY));
        node.write(MANIFEST, &manifest(version));
        node.wait();
        node
    }

    /// Starts a new node, whose kubelet gives it these labels.
    fn begin(labels: &str) -> Node {
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let cluster = Cluster::shared();
        let index = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("node-{index}");
        let addresses = addresses(10 + index);
        let port = 30_000 + u16::from(index);
        plug(&name, &addresses);
        certify(&name);
        cluster.apply(&web(&name, port));
        let unshare = start_init(&name, &addresses, labels);
        let init = first_child(&unshare);
        let node = Node { name, addresses, port, unshare, init };
        poll(&format!("containerd of {}", node.name), || node.has("/run/ready"));
        node
    }

    /// Waits until kube-proxy runs on the node, and the node's Service answers.
    fn wait(&self) {
        let began = Instant::now();
        poll(&format!("services answer on {}", self.name), || self.answers());
        println!("{} answers after {:.1} s", self.name, began.elapsed().as_secs_f64());
    }

    /// Imports the image of kube-proxy of this version.
    pub fn import(&self, version: &str) {
        let image = file(&format!("kube-proxy-v{version}"));
        self.run(&format!("{}/ctr -n k8s.io images import {image}", programs().display()));
    }

    /// Writes a file on the node.
    pub fn write(&self, path: &str, text: &str) {
        // The kubelet passes over files whose names begin with a dot.
        let (folder, _) = path.rsplit_once('/').expect("absolute");
        let line = format!("mkdir -p {folder} && cat >{folder}/.new && mv {folder}/.new {path}");
        succeed(self.command(&line), text);
    }

    /// Whether the node has that file.
    fn has(&self, path: &str) -> bool {
        self.command(&format!("test -e {path}")).status().is_ok_and(|status| status.success())
    }

    /// The command line that runs a program on the node.
    pub fn within(&self) -> Vec<String> {
        ["nsenter", "-a", "-t", &self.init, "--"].map(str::to_owned).to_vec()
    }

    /// What a shell command on the node prints. It must succeed.
    pub fn run(&self, command: &str) -> String {
        succeed(self.command(command), "")
    }

    fn command(&self, script: &str) -> Command {
        let line = [&*self.within(), &["sh", "-ec", script].map(str::to_owned)].concat();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        command
    }

    /// What the living kube-proxy answers to a path at the address of its metrics.
    pub fn asks(&self, path: &str) -> String {
        self.run(&format!("curl -sf -m 5 http://127.0.0.1:10249{path}"))
    }

    /// The program under test on this node, with a store there.
    pub fn proxyshift(&self) -> Proxyshift {
        Proxyshift { within: self.within(), ..Proxyshift::new("store") }
    }

    /// Whether the Service answers at its address on the node, and at its port from outside.
    pub fn answers(&self) -> bool {
        let get = |within: Vec<String>, at: &str| {
            let line = [&*within, &["curl", "-sf", "-m", "2", at].map(str::to_owned)].concat();
            Command::new(&line[0]).args(&line[1..]).output().is_ok_and(|o| o.status.success())
        };
        let service = Cluster::shared()
            .kubectl(&format!("get service {} -o jsonpath=http://{{.spec.clusterIP}}/", self.name));
        get(self.within(), &service)
            && get(Vec::new(), &format!("http://{}:{}/", self.addresses[0], self.port))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Without its parent the node's first program ends, and with that all others there.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        // The kube-proxy of the next case is not to see that these go.
        for object in ["service", "pod --force", "node"] {
            let _ = Cluster::shared().try_kubectl(&format!("delete {object} {}", self.name));
        }
    }
}

/// The addresses of a node, one a family, of which the last part is `index`.
pub fn addresses(index: u8) -> [String; 2] {
    [format!("10.20.0.{index}"), format!("fd00:20::{index}")]
}

/// Makes the node's network namespace, with a link to the control plane's bridge.
pub fn plug(name: &str, addresses: &[String; 2]) {
    run(&format!("ip netns add {name}"));
    let batch = format!(
        "link add {name} type veth peer name eth0 netns {name}\n\
         link set {name} master nodes up\n"
    );
    run_with(&batch, &["ip", "-batch", "-"]);
    let [ipv4, ipv6] = addresses;
    let batch = format!(
        "link set lo up\naddr add {ipv4}/24 dev eth0\naddr add {ipv6}/64 dev eth0 nodad\n\
         link set eth0 up\nroute add default via {ADDRESS}\nroute add default via {ADDRESS_V6}\n"
    );
    run_with(&batch, &["ip", "-n", name, "-batch", "-"]);
    let forward = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1";
    run(&format!("ip netns exec {name} sysctl -qw {forward}"));
}

/// Writes the kubelet's own credential.
fn certify(name: &str) {
    let folder = format!("{DIR}/{name}/etc/kubernetes");
    fs::create_dir_all(&folder).expect("a folder");
    let file = format!("{DIR}/{name}/kubeadm.yaml");
    fs::write(&file, configuration(name)).expect("a file");
    let mut command = Command::new(kubernetes(VERSION, "kubeadm"));
    command.args(["init", "phase", "kubeconfig", "kubelet", "--config", &file]);
    command.args(["--kubeconfig-dir", &folder]);
    succeed(command, "");
}

/// A web server on the node `name`, and a Service that leads to it.
fn web(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}
spec:
  nodeName: {name}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 0
  tolerations: [{{operator: Exists}}]
  containers:
  - name: web
    image: local.test/web:1
    imagePullPolicy: Never
    args: [-c, 'hostname >/www/index.html; exec busybox httpd -f -p 8080 -h /www']
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: NodePort
  selector: {{app: {name}}}
  ports: [{{port: 80, targetPort: 8080, nodePort: {port}}}]
"
    )
}

/// Starts the node's first program in a control group and namespaces of its own.
fn start_init(name: &str, addresses: &[String; 2], labels: &str) -> Child {
    let group = control_groups().join(name);
    fs::create_dir(&group).expect("a control group");
    // A shell goes into the group; what it becomes sees it as the root.
    let script = "echo $$ >$0/cgroup.procs && exec \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(&group)
        .args(["ip", "netns", "exec", name])
        .args(["unshare", "-muiCpf", "--propagation", "private", "--kill-child"])
        .args([INIT, name])
        .args(addresses)
        .env("PROGRAMS", programs())
        .env("KUBELET", kubernetes(VERSION, "kubelet"))
        .env("LABELS", labels)
        .env("RUNC", runc())
        .env("IMAGES", ["pause-1", "web-1", &format!("kube-proxy-v{VERSION}")].map(file).join(" "));
    start(name, command)
}

fn file(name: &str) -> String {
    image(name).display().to_string()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The manifest of kube-proxy as a static pod, with what kubeadm's DaemonSet gives its pods.
pub fn manifest(version: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: kube-proxy
  namespace: kube-system
  labels: {{k8s-app: kube-proxy}}
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  containers:
  - name: kube-proxy
    image: local.test/k8s/kube-proxy:v{version}
    imagePullPolicy: Never
    command: [/usr/local/bin/kube-proxy, --config=/var/lib/kube-proxy/config.conf]
    securityContext: {{privileged: true}}
    volumeMounts:
    - {{name: settings, mountPath: /var/lib/kube-proxy}}
    - {{name: lock, mountPath: /run/xtables.lock}}
    - {{name: modules, mountPath: /lib/modules, readOnly: true}}
  volumes:
  - {{name: settings, hostPath: {{path: /var/lib/kube-proxy}}}}
  - {{name: lock, hostPath: {{path: /run/xtables.lock, type: FileOrCreate}}}}
  - {{name: modules, hostPath: {{path: /lib/modules, type: DirectoryOrCreate}}}}
"
    )
}

/// The configuration of a kube-proxy that is a static pod.
fn static_configuration(mode: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}
clusterCIDR: {PODS}
mode: {mode}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"
    )
}

/// A runc that asks for no limits, as version 2 of the control groups has no controllers where the
/// host has them in version 1. Without controllers the kubelet makes no groups for pods, so this
/// runc names a container's group as the kubelet would.
fn runc() -> String {
    let path = format!("{DIR}/runc");
    let script = format!(
        "#!/usr/bin/python3
import json, os, sys

if \"create\" in sys.argv:
    file = os.path.join(sys.argv[sys.argv.index(\"--bundle\") + 1], \"config.json\")
    with open(file) as f:
        bundle = json.load(f)
    resources = bundle[\"linux\"].get(\"resources\", {{}})
    bundle[\"linux\"][\"resources\"] = {{k: v for k, v in resources.items() if k == \"devices\"}}
    pod = bundle[\"annotations\"][\"io.kubernetes.cri.sandbox-uid\"]
    bundle[\"linux\"][\"cgroupsPath\"] = f\"/kubepods/besteffort/pod{{pod}}/{{sys.argv[-1]}}\"
    with open(file, \"w\") as f:
        json.dump(bundle, f)
runc = \"{}\"
os.execv(runc, [runc, *sys.argv[1:]])
",
        programs().join("runc").display()
    );
    if !Path::new(&path).exists() {
        let made = format!("{path}.{}", std::process::id());
        fs::write(&made, script).expect("a file");
        fs::set_permissions(&made, fs::Permissions::from_mode(0o755)).expect("its mode");
        fs::rename(&made, &path).expect("its name");
    }
    path
}

/// The process id of the only child of `unshare`.
fn first_child(unshare: &Child) -> String {
    let (file, mut child) = (format!("/proc/{0}/task/{0}/children", unshare.id()), String::new());
    poll("the node's first program", || {
        child = fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
        !child.is_empty()
    });
    child
}
