//! The control plane: etcd and the programs of Kubernetes, on a bridge that the nodes are plugged
//! into.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::audit;
use crate::common::vm::{kubernetes, of_cluster};
use crate::common::{run, run_with};

/// The version of Kubernetes, as the programs say it.
pub const VERSION: &str = "1.37.2";

/// The folder of the cluster's files, in the private /run.
pub const DIR: &str = "/run/cluster";

/// The addresses of the control plane, which is also the router of the nodes.
pub const ADDRESS: &str = "10.20.0.1";
pub const ADDRESS_V6: &str = "fd00:20::1";

/// The networks of Services and of pods, in both families.
const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";
pub const PODS: &str = "10.244.0.0/16,fd00:244::/48";

/// The kubeconfig of a kube-proxy that is a static pod.
pub const KUBE_PROXY: &str = "/run/cluster/kubeconfigs/kube-proxy.conf";

/// The label of nodes whose kube-proxy is a static pod.
pub const STATIC: &str = "proxyshift.test/static";

/// How long any part of the cluster may take, on a busy host.
pub const CEILING: Duration = Duration::from_secs(120);

/// The administrator's kubeconfig.
pub const ADMIN: &str = "/run/cluster/kubeconfigs/admin.conf";

/// The folder with etcd, containerd, and what belongs to containerd.
pub fn programs() -> PathBuf {
    of_cluster("programs")
}

/// The control plane, whose programs end with the namespaces.
pub struct Cluster(Vec<Child>);

impl Cluster {
    /// The one cluster of this test. The first to ask for it starts it.
    pub fn shared() -> &'static Cluster {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        CLUSTER.get_or_init(|| {
            let began = Instant::now();
            let cluster = Cluster::start();
            println!("the control plane took {:.1} s", began.elapsed().as_secs_f64());
            cluster
        })
    }

    fn start() -> Cluster {
        for folder in ["log", "kubeconfigs", "etcd", "pki"] {
            fs::create_dir_all(Path::new(DIR).join(folder)).expect("a folder");
        }
        fs::write(format!("{DIR}/kubeadm.yaml"), configuration("control-plane")).expect("a file");
        let batch = format!(
            "link add nodes type bridge\naddr add {ADDRESS}/24 dev nodes\n\
             addr add {ADDRESS_V6}/64 dev nodes nodad\nlink set nodes up\n"
        );
        run_with(&batch, &["ip", "-batch", "-"]);
        run("sysctl -qw net.ipv4.ip_forward=1");
        kubeadm("init phase certs all");
        kubeadm(&format!("init phase kubeconfig all --kubeconfig-dir {DIR}/kubeconfigs"));
        // A static pod has no service account.
        let user = kubeadm("kubeconfig user --client-name system:kube-proxy");
        fs::write(KUBE_PROXY, user).expect("a kubeconfig");
        let mut cluster = Cluster(start_api_server());
        poll("the API server is ready", || {
            cluster.try_kubectl("get --raw /readyz").is_some_and(|answer| answer == "ok")
        });
        cluster.0.extend(start_controllers());
        cluster.introduce();
        // No pod is admitted before.
        poll("the service account of pods", || {
            cluster.try_kubectl("get serviceaccount default").is_some()
        });
        cluster
    }

    /// What kubeadm does once the API server answers: the administrator's rights, the kubelets'
    /// client, kubeadm's own configuration, and kube-proxy.
    fn introduce(&self) {
        let by = |kubeconfig: &str, words: &str| {
            let mut command = Command::new(kubernetes(VERSION, "kubectl"));
            command.args(["--kubeconfig", kubeconfig]).args(words.split_whitespace());
            succeed(command, "")
        };
        // Until then, admin.conf has no rights.
        by(
            &format!("{DIR}/kubeconfigs/super-admin.conf"),
            "create clusterrolebinding kubeadm:cluster-admins --clusterrole=cluster-admin \
             --group=kubeadm:cluster-admins",
        );
        by(
            ADMIN,
            "create clusterrolebinding kubeadm:kubelet-client \
             --clusterrole=system:kubelet-api-admin --user=kube-apiserver-kubelet-client",
        );
        kubeadm(&format!("init phase upload-config all --kubeconfig {ADMIN}"));
        self.add_kube_proxy();
    }

    /// What `kubeadm upgrade` and `kubeadm init phase addon` do: kubeadm's DaemonSet and ConfigMap are
    /// written over what is there.
    pub fn overwrite_kube_proxy(&self) {
        kubeadm(&format!("init phase addon kube-proxy --kubeconfig {ADMIN}"));
    }

    /// kubeadm's kube-proxy, for nodes whose kube-proxy is no static pod.
    fn add_kube_proxy(&self) {
        self.overwrite_kube_proxy();
        self.pass_over_static_pods();
    }

    /// Sees to it that kubeadm's DaemonSet passes over the nodes whose kube-proxy is a static pod: a case
    /// may have written over it.
    pub fn pass_over_static_pods(&self) {
        if !self.kubectl("get -n kube-system daemonset kube-proxy -o json").contains(STATIC) {
            let patch = format!("--type merge -p {}", affinity().replace(' ', ""));
            self.kubectl(&format!("patch -n kube-system daemonset kube-proxy {patch}"));
        }
    }

    /// The cluster with kubeadm's DaemonSet as kubeadm makes it, and with nothing of proxyshift. Its
    /// nodes, which [`Node::join`](crate::node::Node::join) adds, get a pod of it. Call it before a node
    /// joins: the pods of one that is there are replaced.
    pub fn with_daemonset() -> &'static Cluster {
        let cluster = Cluster::shared();
        let ours = "-l app.kubernetes.io/managed-by=proxyshift --ignore-not-found";
        for kinds in
            ["daemonset,configmap,role,rolebinding,lease", "clusterrole,clusterrolebinding"]
        {
            cluster.kubectl(&format!("delete -n kube-system {kinds} {ours}"));
        }
        for words in
            ["label nodes --all proxyshift.dev/mode-", "annotate nodes --all proxyshift.dev/run-"]
        {
            // It fails where no node is.
            let _ = cluster.try_kubectl(words);
        }
        cluster.add_kube_proxy();
        poll("the DaemonSet's controller", || {
            let fields = "{.metadata.generation}={.status.observedGeneration},\
                          {.status.desiredNumberScheduled}={.status.updatedNumberScheduled}";
            let words = format!("get -n kube-system daemonset kube-proxy -o jsonpath={fields}");
            let text = cluster.kubectl(&words);
            text.split(',').all(|pair| {
                let (wanted, found) = pair.split_once('=').unwrap_or_default();
                // A number of 0 may be left out.
                wanted == found || (wanted == "0" && found.is_empty())
            })
        });
        cluster
    }

    /// What `kubectl` prints, as the administrator. It must succeed.
    pub fn kubectl(&self, words: &str) -> String {
        succeed(self.command(words), "")
    }

    /// What `kubectl` prints, as the administrator; nothing if it fails.
    pub fn try_kubectl(&self, words: &str) -> Option<String> {
        let output = self.command(words).output().expect("kubectl starts");
        output.status.success().then(|| String::from_utf8(output.stdout).expect("text"))
    }

    /// Makes the objects of manifests, none of which is there. Of thousands, that takes a third of the
    /// time of [`Cluster::apply`].
    pub fn create(&self, manifests: &str) {
        succeed(self.command("create --validate=false -f -"), manifests);
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) {
        succeed(self.command("apply -f -"), manifests);
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(kubernetes(VERSION, "kubectl"));
        command.args(["--kubeconfig", ADMIN]).args(words.split_whitespace());
        command
    }
}

/// The part of kube-proxy's DaemonSet that passes over the nodes with the label [`STATIC`].
fn affinity() -> String {
    let term = json!({"matchExpressions": [{"key": STATIC, "operator": "DoesNotExist"}]});
    let required = json!({"nodeSelectorTerms": [term]});
    let node = json!({"requiredDuringSchedulingIgnoredDuringExecution": required});
    let spec = json!({"affinity": {"nodeAffinity": node}});
    json!({"spec": {"template": {"spec": spec}}}).to_string()
}

/// Waits until `done` returns true.
pub fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + CEILING;
    while !done() {
        assert!(Instant::now() < until, "waited for {CEILING:?}: {what}\n{}", logs());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The last lines of each log: of the programs here, and of the nodes' kube-proxies.
pub fn logs() -> String {
    let find = format!("find {DIR} -path */log/* -type f -not -path */web/*");
    let tail = |path: &str| {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        format!("== {path}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
    };
    run(&find).lines().map(tail).collect()
}

/// Starts a program in the background, with a log of that name.
pub fn start(name: &str, mut command: Command) -> Child {
    let log = fs::File::create(format!("{DIR}/log/{name}")).expect("a log");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Runs a program to its end with `input`. It must succeed. Returns what it prints.
pub fn succeed(mut command: Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("the program reads its input");
    drop(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("a child");
    let err = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{err}\n{}", logs());
    String::from_utf8(stdout).expect("text")
}

/// Runs kubeadm with the cluster's configuration. Returns what it prints.
fn kubeadm(words: &str) -> String {
    let mut command = Command::new(kubernetes(VERSION, "kubeadm"));
    command.args(words.split_whitespace()).args(["--config", &format!("{DIR}/kubeadm.yaml")]);
    succeed(command, "")
}

/// Starts etcd and the API server, which waits for etcd.
fn start_api_server() -> Vec<Child> {
    let mut etcd = Command::new(programs().join("etcd"));
    etcd.args(["--data-dir", &format!("{DIR}/etcd")]);
    let etcd = start("etcd", etcd);
    let pki = format!("{DIR}/pki");
    let api_server = begin(
        "kube-apiserver",
        &format!(
            "--etcd-servers=http://127.0.0.1:2379 --advertise-address={ADDRESS}
            --bind-address={ADDRESS} --service-cluster-ip-range={SERVICES}
            --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
            --allow-privileged --client-ca-file={pki}/ca.crt
            --tls-cert-file={pki}/apiserver.crt --tls-private-key-file={pki}/apiserver.key
            --kubelet-client-certificate={pki}/apiserver-kubelet-client.crt
            --kubelet-client-key={pki}/apiserver-kubelet-client.key
            --kubelet-preferred-address-types=InternalIP
            --service-account-key-file={pki}/sa.pub
            --service-account-signing-key-file={pki}/sa.key
            --service-account-issuer=https://kubernetes.default.svc.cluster.local {}",
            audit::arguments()
        ),
    );
    vec![etcd, api_server]
}

/// Starts what acts by the API. The controller manager ends if the API server does not answer soon.
fn start_controllers() -> Vec<Child> {
    let (pki, kubeconfigs) = (format!("{DIR}/pki"), format!("{DIR}/kubeconfigs"));
    let manager = begin(
        "kube-controller-manager",
        &format!(
            "--kubeconfig={kubeconfigs}/controller-manager.conf
            --use-service-account-credentials --root-ca-file={pki}/ca.crt
            --service-account-private-key-file={pki}/sa.key --allocate-node-cidrs
            --cluster-cidr={PODS} --service-cluster-ip-range={SERVICES}
            --bind-address=127.0.0.1 --leader-elect=false"
        ),
    );
    let scheduler = begin(
        "kube-scheduler",
        &format!(
            "--kubeconfig={kubeconfigs}/scheduler.conf --bind-address=127.0.0.1
            --authentication-kubeconfig={kubeconfigs}/scheduler.conf
            --authorization-kubeconfig={kubeconfigs}/scheduler.conf --leader-elect=false"
        ),
    );
    vec![manager, scheduler]
}

/// Starts a program of Kubernetes with these arguments.
fn begin(program: &str, arguments: &str) -> Child {
    let mut command = Command::new(kubernetes(VERSION, program));
    command.args(arguments.split_whitespace());
    start(program, command)
}

/// kubeadm's configuration of a cluster whose images are local, for the node `name`. kube-proxy sets
/// no limits of conntrack, because from a private namespace these cannot be set.
pub fn configuration(name: &str) -> String {
    format!(
        "apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: {ADDRESS}, bindPort: 6443}}
nodeRegistration: {{name: {name}, criSocket: 'unix:///run/containerd/containerd.sock'}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v{VERSION}
clusterName: real
certificatesDir: {DIR}/pki
controlPlaneEndpoint: {ADDRESS}:6443
networking: {{serviceSubnet: '{SERVICES}', podSubnet: '{PODS}', dnsDomain: cluster.local}}
imageRepository: local.test/k8s
---
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"
    )
}
