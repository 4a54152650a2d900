//! The real kube-proxy, run as on a node: with a configuration file and a kubeconfig.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::common::vm::{OLD, kubernetes};
use crate::network::{is_ipv6, of_family};

/// The folder of kube-proxy's files, in the private /run.
pub const DIR: &str = "/run/kube-proxy";

/// The address at which kube-proxy reports its mode.
const METRICS: &str = "127.0.0.1:10249";

/// The environment variable that has the version of kube-proxy that a case runs with.
pub const VERSION: &str = "PROXYSHIFT_KUBE_PROXY";

/// How long kube-proxy may take to serve, on an emulated CPU.
const CEILING: Duration = Duration::from_secs(300);

/// The version of kube-proxy that this case runs with.
pub fn version() -> String {
    std::env::var(VERSION).unwrap_or_else(|_| OLD.to_owned())
}

/// Whether this case runs with kube-proxy 1.20.2.
pub fn is_old() -> bool {
    version() == OLD
}

/// The program of the version that this case runs with.
pub fn program() -> PathBuf {
    kubernetes(&version(), "kube-proxy")
}

/// A running kube-proxy, which ends when this value is dropped.
pub struct KubeProxy(Child);

impl KubeProxy {
    /// Writes kube-proxy's configuration for `mode`. Virtual servers in the network `exclude` are
    /// foreign.
    pub fn configure(mode: &str, exclude: &str) {
        fs::create_dir_all(DIR).expect(DIR);
        let text = configuration(&version(), mode, exclude);
        fs::write(format!("{DIR}/config.conf"), text).expect("the file");
    }

    /// Writes kube-proxy's kubeconfig, with the address of the API.
    pub fn introduce(api: SocketAddr) {
        fs::create_dir_all(DIR).expect(DIR);
        fs::write(format!("{DIR}/kubeconfig"), kubeconfig(api)).expect("the kubeconfig");
    }

    /// Starts kube-proxy with its last configuration. The programs in the folder `bin` come first
    /// in PATH.
    pub fn start(bin: &str) -> KubeProxy {
        let log = fs::File::create(format!("{DIR}/log")).expect("a log");
        let path = format!("{bin}:{}", std::env::var("PATH").expect("a PATH"));
        let mut command = Command::new(program());
        command.args([format!("--config={DIR}/config.conf")]).env("PATH", path);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        KubeProxy(command.spawn().expect("kube-proxy starts"))
    }

    /// Lets kube-proxy run on. A thread waits for its end, whoever ends it, because a zombie would
    /// count as a running kube-proxy.
    pub fn release(self) {
        let mut released = std::mem::ManuallyDrop::new(self);
        std::thread::spawn(move || released.0.wait());
    }

    /// Waits until kube-proxy runs in `mode` and `serves` returns true.
    pub fn wait(&mut self, mode: &str, serves: impl Fn() -> bool) {
        wait(mode, serves, || self.0.try_wait().expect("a child can be waited for"));
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until some kube-proxy reports `mode` and `serves` returns true. Fails if `ended` returns
/// an exit status first.
pub fn wait(mode: &str, serves: impl Fn() -> bool, mut ended: impl FnMut() -> Option<ExitStatus>) {
    let until = Instant::now() + CEILING;
    while !(reported("/proxyMode").is_ok_and(|text| text.ends_with(mode)) && serves()) {
        let ended = ended();
        if ended.is_some() || Instant::now() > until {
            panic!("kube-proxy serves not in {mode} mode ({ended:?}):\n{}", log());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// The log of the kube-proxy that was started last.
pub fn log() -> String {
    fs::read_to_string(format!("{DIR}/log")).unwrap_or_default()
}

/// What the running kube-proxy answers to `/metrics`.
pub fn metrics() -> String {
    reported("/metrics").expect("metrics")
}

fn reported(path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(CEILING))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The configuration of this version of kube-proxy. It sets no limits of conntrack, because from a
/// private namespace these cannot be set.
pub fn configuration(version: &str, mode: &str, exclude: &str) -> String {
    // Its EndpointSlices are of another version of the API.
    let gates = match version {
        OLD => "featureGates: {EndpointSliceProxying: false}\n",
        _ => "",
    };
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection:
  kubeconfig: {DIR}/kubeconfig
  contentType: application/json
hostnameOverride: node
clusterCIDR: {pods}
bindAddress: {any}
metricsBindAddress: {METRICS}
mode: {mode}
{gates}conntrack:
  maxPerCore: 0
  min: 0
  tcpEstablishedTimeout: 0s
  tcpCloseWaitTimeout: 0s
iptables: {{syncPeriod: 5m}}
ipvs:
  syncPeriod: 5m
  excludeCIDRs: [{exclude}]
",
        pods = of_family("10.244.0.0/16"),
        any = if is_ipv6() { "'::'" } else { "0.0.0.0" },
    )
}

/// The kubeconfig for an API at the address `api`.
pub fn kubeconfig(api: SocketAddr) -> String {
    format!(
        "apiVersion: v1
kind: Config
clusters: [{{name: test, cluster: {{server: \"http://{api}\"}}}}]
contexts: [{{name: test, context: {{cluster: test, user: \"\"}}}}]
current-context: test
"
    )
}
