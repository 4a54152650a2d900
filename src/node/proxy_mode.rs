//! What kube-proxy says of itself over HTTP: its mode, and whether it is well.
//!
//! Neither proves anything about the kernel: `/proxyMode` names the new mode seconds before its
//! rules are there, and `/healthz` is well while it starts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ureq::Agent;

use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::Mode;

/// How long to wait for the whole answer.
const DEADLINE: Duration = Duration::from_secs(1);

/// The longest answer that is read, in bytes.
const LIMIT: u64 = 4096;

/// The mode that kube-proxy really runs in, from its metrics address
/// ([`crate::state::kube_proxy::KubeProxyConfig::metrics_address`]): up to 1.25 it may be another
/// than its configuration says.
///
/// # Errors
/// [`Kind::NotFound`] if nobody answers there in a second, [`Kind::Parse`] if the answer is no
/// mode.
pub fn mode(metrics: SocketAddr) -> Result<Mode> {
    let (url, status, text) = get(metrics, "proxyMode")?;
    let refused = |cause: String| {
        Error::new(Kind::Parse, url.as_str(), cause)
            .hint("see whether another program listens on kube-proxy's metricsBindAddress")
    };
    match status {
        200 => text.trim().parse().map_err(|e: Error| refused(e.cause)),
        _ => Err(refused(format!("answered with status {status}"))),
    }
}

/// Whether kube-proxy calls itself healthy, at its health address
/// ([`crate::state::kube_proxy::KubeProxyConfig::healthz_address`]).
///
/// # Errors
/// As [`mode`].
pub fn is_healthy(healthz: SocketAddr) -> Result<bool> {
    match get(healthz, "healthz")? {
        (_, 200, _) => Ok(true),
        (_, 503, _) => Ok(false),
        (url, status, _) => {
            Err(Error::new(Kind::Parse, url, format!("answered with status {status}")))
        }
    }
}

/// The address asked, the status and the text of an answer.
fn get(address: SocketAddr, what: &str) -> Result<(String, u16, String)> {
    let url = format!("http://{}/{what}", of_this_node(address));
    let silent = |e: ureq::Error| {
        Error::new(Kind::NotFound, url.as_str(), e)
            .hint("see whether kube-proxy runs, and on which metricsBindAddress it listens")
    };
    // An answer must come from this node: no proxy of the environment, and no redirection.
    let agent: Agent = Agent::config_builder()
        .timeout_global(Some(DEADLINE))
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .build()
        .into();
    let mut answer = agent.get(&url).call().map_err(silent)?;
    let status = answer.status().as_u16();
    let text = answer.body_mut().with_config().limit(LIMIT).read_to_string().map_err(silent)?;
    Ok((url, status, text))
}

/// Where to ask who listens on every address.
fn of_this_node(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    use super::*;

    /// A server that gives each client the same answer, on every address.
    fn serve(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn answers_are_read_and_nothing_else_is_taken_for_one() {
        let ipvs = serve("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nipvs\n");
        assert_eq!(mode(ipvs).unwrap(), Mode::Ipvs);
        assert!(is_healthy(ipvs).unwrap());
        let ill = serve("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}");
        assert!(!is_healthy(ill).unwrap());
        assert_eq!(mode(ill).unwrap_err().cause, "answered with status 503");
        let moved = serve(
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        );
        assert_eq!(mode(moved).unwrap_err().cause, "answered with status 302");
        assert_eq!(is_healthy(moved).unwrap_err().kind, Kind::Parse);
        let other = serve("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
        assert!(mode(other).unwrap_err().cause.contains("no mode `hello`"));
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = listener.local_addr().unwrap();
        let begun = Instant::now();
        let error = mode(silent).unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert_eq!(error.object, format!("http://{silent}/proxyMode"));
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        drop(listener);
        assert_eq!(is_healthy(silent).unwrap_err().kind, Kind::NotFound);
    }
}
