//! The real kube-proxy, as a node runs it: with a configuration file and a kubeconfig.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::common::vm::cached;
use crate::network::{is_ipv6, of_family};

/// Where its files are, in the private /run.
pub const DIR: &str = "/run/kube-proxy";

/// Where it says its mode.
const METRICS: &str = "127.0.0.1:10249";

/// How long it may take to serve, on an emulated CPU.
const CEILING: Duration = Duration::from_secs(180);

/// A running kube-proxy; it ends with this.
pub struct KubeProxy(Child);

impl KubeProxy {
    /// Tells it its mode. Virtual servers in `exclude` are not its own.
    pub fn configure(mode: &str, exclude: &str) {
        fs::create_dir_all(DIR).expect(DIR);
        fs::write(format!("{DIR}/config.conf"), configuration(mode, exclude)).expect("the file");
    }

    /// Tells it where the API is.
    pub fn introduce(api: SocketAddr) {
        fs::create_dir_all(DIR).expect(DIR);
        fs::write(format!("{DIR}/kubeconfig"), kubeconfig(api)).expect("the kubeconfig");
    }

    /// Starts it as it was told, with the programs of `bin` before all others.
    pub fn start(bin: &str) -> KubeProxy {
        let log = fs::File::create(format!("{DIR}/log")).expect("a log");
        let path = format!("{bin}:{}", std::env::var("PATH").expect("a PATH"));
        let mut command = Command::new(cached("kube-proxy"));
        command.args([format!("--config={DIR}/config.conf")]).env("PATH", path);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        KubeProxy(command.spawn().expect("kube-proxy starts"))
    }

    /// It ends when somebody ends it, and is collected then: nobody is to take it for one that runs.
    pub fn release(self) {
        let mut released = std::mem::ManuallyDrop::new(self);
        std::thread::spawn(move || released.0.wait());
    }

    /// Waits until it runs in `mode` and `serves` is true.
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

/// Waits until one runs in `mode`, as it says itself, and `serves` is true, unless it has `ended`.
pub fn wait(mode: &str, serves: impl Fn() -> bool, mut ended: impl FnMut() -> Option<ExitStatus>) {
    let until = Instant::now() + CEILING;
    while !(says("/proxyMode").is_ok_and(|text| text.ends_with(mode)) && serves()) {
        let ended = ended();
        if ended.is_some() || Instant::now() > until {
            panic!("kube-proxy serves not in {mode} mode ({ended:?}):\n{}", log());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// What the last one said.
pub fn log() -> String {
    fs::read_to_string(format!("{DIR}/log")).unwrap_or_default()
}

fn says(path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(METRICS)?;
    stream.set_read_timeout(Some(CEILING))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// In a private namespace connection tracking has limits that only the host may set.
fn configuration(mode: &str, exclude: &str) -> String {
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
featureGates: {{EndpointSliceProxying: false}}
conntrack:
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

/// How to reach the API at an address.
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
