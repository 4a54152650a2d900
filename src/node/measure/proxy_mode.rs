//! What kube-proxy answers to `GET /proxyMode`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::Agent;

use crate::state::NodeState;
use crate::state::kube_proxy::{CommandLine, KubeProxyConfig};

/// How long to wait for the whole answer.
const DEADLINE: Duration = Duration::from_secs(1);

/// The longest answer that is a mode, in bytes.
const LIMIT: u64 = 64;

/// Asks the kube-proxy of this namespace, if one is in `state`; none if it does not answer.
pub fn ask(state: &NodeState) -> Option<String> {
    let address = address(state)?;
    // An answer must come from this node: no proxy of the environment, and no redirection.
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(DEADLINE))
        .proxy(None)
        .max_redirects(0)
        .build()
        .into();
    let mut answer = agent.get(format!("http://{address}/proxyMode")).call().ok()?;
    if answer.status() != 200 {
        return None;
    }
    let text = answer.body_mut().with_config().limit(LIMIT).read_to_string().ok()?;
    let mode = text.trim();
    (!mode.is_empty()).then(|| mode.to_owned())
}

/// Where the kube-proxy of this state answers; none if there is none, or more than one.
fn address(state: &NodeState) -> Option<SocketAddr> {
    let mut all = state.processes.iter().flatten().filter(|p| p.name == "kube-proxy");
    let (Some(process), None) = (all.next(), all.next()) else { return None };
    let line = CommandLine::parse(&process.args).ok()?;
    let file = line.config.as_deref();
    let file = file.and_then(|path| KubeProxyConfig::parse(path, state.file(path)?).ok());
    // With a file that is not at hand, the default is worth a try.
    let mut address = line.settings(file.as_ref()).unwrap_or_default().metrics_address()?;
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Some(address)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::state::tools::Process;

    fn state(flag: &str) -> NodeState {
        let process = Process {
            pid: 7,
            name: "kube-proxy".into(),
            args: vec!["kube-proxy".into(), flag.into()],
            version: None,
            version_source: None,
        };
        NodeState { processes: Some(vec![process]), ..NodeState::default() }
    }

    /// A server that gives each client the same answer.
    fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 1024];
                let length = stream.read(&mut asked).unwrap();
                assert!(asked[..length].starts_with(b"GET /proxyMode HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn the_answer_is_the_mode() {
        let address = serve("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nipvs");
        let flag = format!("--metrics-bind-address={address}");
        assert_eq!(ask(&state(&flag)).as_deref(), Some("ipvs"));
    }

    #[test]
    fn another_answer_is_none() {
        for answer in [
            "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nipvs",
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            let flag = format!("--metrics-bind-address={}", serve(answer));
            assert_eq!(ask(&state(&flag)), None, "{answer}");
        }
    }

    #[test]
    fn who_never_answers_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let flag = format!("--metrics-bind-address={}", listener.local_addr().unwrap());
        let begun = Instant::now();
        assert_eq!(ask(&state(&flag)), None);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn the_address_is_that_of_the_only_kube_proxy() {
        let at = |flag| address(&state(flag)).map(|a| a.to_string());
        assert_eq!(at("--v=2").as_deref(), Some("127.0.0.1:10249"));
        assert_eq!(at("--metrics-bind-address=0.0.0.0:9").as_deref(), Some("127.0.0.1:9"));
        assert_eq!(at("--config=/not/at/hand").as_deref(), Some("127.0.0.1:10249"));
        let mut two = state("--v=2");
        let again = two.processes.as_ref().unwrap()[0].clone();
        two.processes.as_mut().unwrap().push(again);
        assert_eq!(address(&two), None);
        assert_eq!(address(&NodeState::default()), None);
    }
}
