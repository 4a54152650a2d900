//! Asks kube-proxy's metrics server for kube-proxy's mode and version.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::Agent;

use super::trust::PinnedProcess;
use crate::runtime::process_start;
use crate::state::kube_proxy::{CommandLine, IPVS_LINK, Instances, KubeProxyConfig, ProxyMetrics};
use crate::state::links::Link;
use crate::state::tools::Process;
use crate::state::{Files, NodeState};

/// The deadline for the whole reply.
const DEADLINE: Duration = Duration::from_secs(2);

/// The largest reply to `/proxyMode` that is read, in bytes.
const MODE: u64 = 64;

/// The largest reply to `/metrics` that is read, in bytes. With 5,000 services kube-proxy sends
/// some hundred KiB.
const METRICS: u64 = 16 << 20;

/// The metric whose labels have kube-proxy's version.
const BUILD: &str = "kubernetes_build_info{";

/// The mode that the only kube-proxy in `state` reports; none if there is no such process or no
/// reply.
pub fn mode(state: &NodeState) -> Option<String> {
    let server = Server::of(state.processes.as_deref()?, &state.files, &state.links)?;
    let text = server.get("proxyMode", MODE)?;
    let mode = text.trim();
    let is_word = |mode: &str| mode.chars().all(|c| c.is_ascii_lowercase());
    (!mode.is_empty() && is_word(mode)).then(|| mode.to_owned())
}

/// What the metrics of the only kube-proxy in `state` say; none if there is no such process or no
/// reply.
pub fn metrics(state: &NodeState) -> Option<ProxyMetrics> {
    let server = Server::of(state.processes.as_deref()?, &state.files, &state.links)?;
    server.get("metrics", METRICS).map(|text| ProxyMetrics::parse(&text))
}

/// Fills in the version of the kube-proxy among `processes`, as its metrics report it, if the
/// version is not known yet. `files` holds kube-proxy's configuration file, `links` the node's
/// addresses.
pub(super) fn fill_in_version(processes: &mut [Process], files: &Files, links: &[Link]) {
    let Some(server) = Server::of(processes, files, links) else { return };
    let process = processes.iter_mut().find(|p| p.pid == server.pid && p.version.is_none());
    let Some(process) = process else { return };
    let start = process_start(process.pid);
    let mut cached = VERSIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let known = cached.get(&(process.pid, start)).cloned();
    let version = known.or_else(|| version(&server.get("metrics", METRICS)?));
    if let Some(version) = version {
        cached.insert((process.pid, start), version.clone());
        process.version_source = Some(format!("http://{}/metrics", server.address));
        process.version = Some(version);
    }
}

/// A cache of the versions that kube-proxy processes reported, keyed by PID and start time, so that
/// a process that answered is not asked again.
static VERSIONS: Mutex<BTreeMap<(u32, Option<u64>), String>> = Mutex::new(BTreeMap::new());

/// Extracts kube-proxy's version from its metrics. Up to 1.18 the label was `gitVersion`
/// (<https://github.com/kubernetes/kubernetes/pull/91805>). A custom build may report `v0.0.0`,
/// which counts as no version.
pub fn version(metrics: &str) -> Option<String> {
    let labels = metrics.lines().find_map(|line| line.strip_prefix(BUILD))?;
    let value = |label: &str| labels.split_once(label)?.1.split('"').next();
    let version = value("git_version=\"").or_else(|| value("gitVersion=\""))?;
    let is_release = |v: &str| {
        v.len() < 64
            && v.starts_with(|c| matches!(c, '1'..='9'))
            && v.chars().all(|c| c.is_ascii_alphanumeric() || ".+-_".contains(c))
    };
    version.strip_prefix('v').is_some_and(is_release).then(|| version.to_owned())
}

/// Where a kube-proxy that counts serves its metrics.
struct Server {
    pid: u32,
    address: SocketAddr,
}

impl Server {
    /// The server of the kube-proxy among `processes`, at an address of this node; none unless
    /// exactly one kube-proxy runs. `files` holds kube-proxy's configuration file, `links` the
    /// node's addresses.
    fn of(processes: &[Process], files: &Files, links: &[Link]) -> Option<Server> {
        let process = Instances::of(processes).one()?;
        let address = address(process, files).filter(|a| is_local(a.ip(), links))?;
        Some(Server { pid: process.pid, address })
    }

    /// The body of the reply to `GET /path`, if it has at most `limit` bytes. Nobody is asked if
    /// anyone but that kube-proxy would answer, because any user may listen where it does not.
    fn get(&self, path: &str, limit: u64) -> Option<String> {
        let pinned = PinnedProcess::open(self.pid).filter(|pinned| pinned.doubt().is_none())?;
        if !pinned.listens(self.address) {
            return None;
        }
        // No proxy from the environment and no redirection, because the reply must come from this
        // node.
        let agent: Agent = Agent::config_builder()
            .timeout_global(Some(DEADLINE))
            .proxy(None)
            .max_redirects(0)
            .build()
            .into();
        let mut answer = agent.get(format!("http://{}/{path}", self.address)).call().ok()?;
        if answer.status() != 200 {
            return None;
        }
        answer.body_mut().with_config().limit(limit).read_to_string().ok()
    }
}

/// The address at which a kube-proxy serves its metrics. `files` holds its configuration file.
fn address(process: &Process, files: &Files) -> Option<SocketAddr> {
    let line = CommandLine::parse(&process.args).ok()?;
    let text = |path: &str| files.get(&format!("files{path}"));
    let config = line.config.as_deref();
    let config = config.and_then(|path| KubeProxyConfig::parse(path, text(path)?).ok());
    // If the configuration file was not captured, the default address is tried.
    let mut address = line.settings(config.as_ref()).unwrap_or_default().metrics_address()?;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Some(address)
}

/// Whether an address is this node's own. One on ipvs mode's link is a service's: what is sent
/// there goes to some pod.
fn is_local(address: IpAddr, links: &[Link]) -> bool {
    let own = links.iter().filter(|link| link.name != IPVS_LINK).flat_map(|link| &link.addresses);
    address.is_loopback() || { own }.any(|net| net.addr() == address)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    use super::*;

    fn state(flag: &str) -> NodeState {
        let process = Process {
            pid: std::process::id(),
            name: "kube-proxy".into(),
            args: vec!["kube-proxy".into(), flag.into()],
            ..Process::default()
        };
        NodeState { processes: Some(vec![process]), ..NodeState::default() }
    }

    /// Starts a server that sends `answer` to each request for `path`; returns its address.
    fn serve(path: &'static str, answer: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap();
                let request = String::from_utf8_lossy(&request[..length]);
                assert!(request.starts_with(&format!("GET /{path} HTTP/1.1\r\n")), "{request}");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn the_answer_is_the_mode() {
        let address = serve("proxyMode", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nipvs".into());
        let flag = format!("--metrics-bind-address={address}");
        assert_eq!(mode(&state(&flag)).as_deref(), Some("ipvs"));
    }

    #[test]
    fn another_answer_is_none() {
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nip\u{1b}vs",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nipvs",
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            let flag = format!("--metrics-bind-address={}", serve("proxyMode", answer.into()));
            assert_eq!(mode(&state(&flag)), None, "{answer}");
        }
    }

    #[test]
    fn who_never_answers_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let flag = format!("--metrics-bind-address={}", listener.local_addr().unwrap());
        let begun = Instant::now();
        assert_eq!(mode(&state(&flag)), None);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn an_unknown_version_is_probed_once() {
        let metrics = "# TYPE kubernetes_build_info gauge\n\
            kubernetes_build_info{build_date=\"x\",git_version=\"v1.30.5\",go_version=\"go1\"} 1\n";
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{metrics}", metrics.len());
        let at = serve("metrics", answer);
        let flag = format!("--metrics-bind-address={at}");
        let process = |version: Option<&str>| Process {
            pid: std::process::id(),
            name: "kube-proxy".into(),
            args: vec!["kube-proxy".into(), flag.clone()],
            version: version.map(str::to_owned),
            ..Process::default()
        };
        let mut known = [process(Some("v1.2.3"))];
        fill_in_version(&mut known, &Files::new(), &[]);
        assert_eq!(
            (known[0].version.as_deref(), &known[0].version_source),
            (Some("v1.2.3"), &None)
        );
        let mut probed = [process(None)];
        fill_in_version(&mut probed, &Files::new(), &[]);
        assert_eq!(probed[0].version.as_deref(), Some("v1.30.5"));
        assert_eq!(probed[0].version_source, Some(format!("http://{at}/metrics")));
        let mut again = [process(None)];
        again[0].args[1] = "--metrics-bind-address=127.0.0.1:1".into();
        fill_in_version(&mut again, &Files::new(), &[]);
        assert_eq!(again[0].version, probed[0].version);
    }

    #[test]
    fn no_other_process_is_probed() {
        let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nipvs";
        let address = serve("proxyMode", answer.into());
        let server = |pid| Server { pid, address };
        assert!(server(std::process::id()).get("proxyMode", MODE).is_some());
        // Process 1 listens elsewhere, if at all.
        assert_eq!(server(1).get("proxyMode", MODE), None);
        assert_eq!(server(u32::MAX).get("proxyMode", MODE), None);
    }

    #[test]
    fn only_addresses_of_this_node_are_probed() {
        let link = |name: &str, address: &str| Link {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            ..Link::default()
        };
        let links = [link("eth0", "192.0.2.7/24"), link(IPVS_LINK, "10.96.0.1/32")];
        for (address, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("203.0.113.5", false),
            ("10.96.0.1", false),
            ("169.254.169.254", false),
        ] {
            assert_eq!(is_local(address.parse().unwrap(), &links), expected, "{address}");
        }
    }

    #[test]
    fn only_a_release_is_a_version() {
        let of = |label: &str| version(&format!("x 1\nkubernetes_build_info{{{label}}} 1\n"));
        assert_eq!(of("a=\"b\",gitVersion=\"v1.18.2\",c=\"d\"").as_deref(), Some("v1.18.2"));
        for label in ["", "git_version=\"v0.0.0-master+$Format:%h$\"", "git_version=\"1.20\""] {
            assert_eq!(of(label), None, "{label}");
        }
        assert_eq!(version("# nothing\n"), None);
    }

    #[test]
    fn the_address_is_that_of_the_only_kube_proxy() {
        let address = |state: &NodeState| {
            let server = Server::of(state.processes.as_deref()?, &state.files, &state.links)?;
            Some(server.address.to_string())
        };
        let at = |flag| address(&state(flag));
        assert_eq!(at("--v=2").as_deref(), Some("127.0.0.1:10249"));
        assert_eq!(at("--metrics-bind-address=0.0.0.0:9").as_deref(), Some("127.0.0.1:9"));
        assert_eq!(at("--metrics-bind-address=203.0.113.5:9"), None);
        assert_eq!(at("--config=/not/at/hand").as_deref(), Some("127.0.0.1:10249"));
        let mut two = state("--v=2");
        let again = two.processes.as_ref().unwrap()[0].clone();
        two.processes.as_mut().unwrap().push(again);
        assert_eq!(address(&two), None);
        // A kube-proxy that was started with `--cleanup` serves no metrics, and is not asked.
        two.processes.as_mut().unwrap()[1].args.push("--cleanup".into());
        assert_eq!(address(&two), address(&state("--v=2")));
        assert_eq!(address(&NodeState::default()), None);
    }
}
