//! The API server as a node uses it, by the kubelet's credentials: slow, busy, away, refusing, and with
//! credentials that rotate meanwhile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proxyshift::api::{ApiFailure, ApiStatus, read};
use proxyshift::node::kubelet;
use proxyshift::state::kubernetes::{ApiKind, ConfigMapObject, ObjectRef};
use tempfile::TempDir;

use super::api::{Authority, Server, Signed, send};

const OBJECT: &str = r#"{"metadata": {"name": "a"}, "data": {"k": "v"}}"#;

/// A kubelet's folder, with its kubeconfig and the certificate that is current.
struct Kubelet(TempDir);

impl Kubelet {
    fn of(server: &Server) -> Kubelet {
        let kubelet = Kubelet(tempfile::tempdir().expect("a folder"));
        let access = server.access();
        fs::write(kubelet.at("ca.crt"), &access.authorities).expect("a file");
        let current = kubelet.at("kubelet-client-current.pem");
        let text = format!(
            "current-context: c\nclusters: [{{name: k, cluster: {{server: '{}', \
             certificate-authority: ca.crt}}}}]\ncontexts: [{{name: c, context: {{cluster: k, \
             user: u}}}}]\nusers: [{{name: u, user: {{client-certificate: {1}, client-key: {1}}}}}]\n",
            access.server,
            current.display(),
        );
        fs::write(kubelet.kubeconfig(), text).expect("a file");
        let (certificate, key) = access.client.expect("a certificate");
        kubelet.rotate("first", &format!("{certificate}{key}"));
        kubelet
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn kubeconfig(&self) -> PathBuf {
        self.at("kubelet.conf")
    }

    /// Makes another certificate the current one, as a kubelet does.
    fn rotate(&self, name: &str, pem: &str) {
        let name = format!("kubelet-client-{name}.pem");
        fs::write(self.at(&name), pem).expect("a file");
        symlink(&name, self.at("updated")).expect("a link");
        fs::rename(self.at("updated"), self.at("kubelet-client-current.pem")).expect("its name");
    }

    fn asks(&self, within: Duration) -> Result<ConfigMapObject, ApiFailure> {
        let named = ObjectRef::new(ApiKind::ConfigMap, "kube-system", "a");
        kubelet::request(&self.kubeconfig(), within, |client| read::read(client, &named))
    }
}

#[test]
fn a_server_that_is_away_or_busy_is_asked_again_in_time() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let server = Server::start(move |_, _, to| match counted.fetch_add(1, Ordering::Relaxed) {
        0 => send(to, "500 Internal Server Error", ""),
        1 => send(to, "429 Too Many Requests\r\nRetry-After: 1", ""),
        2 => send(to, "503 Service Unavailable", ""),
        3 => send(to, "401 Unauthorized", ""),
        // Nothing at all.
        4 => Ok(()),
        5 => {
            std::thread::sleep(Duration::from_secs(4));
            send(to, "200 OK", OBJECT)
        }
        _ => send(to, "500 Internal Server Error", ""),
    });
    let kubelet = Kubelet::of(&server);
    let object = kubelet.asks(Duration::from_secs(30)).expect("the sixth answer");
    assert_eq!(object.data["k"], "v");
    assert_eq!(count.load(Ordering::Relaxed), 6);
    // Without time it is asked once.
    let failure = kubelet.asks(Duration::ZERO).expect_err("500");
    assert_eq!((failure.status(), count.load(Ordering::Relaxed)), (Some(ApiStatus::Other(500)), 7));
    let error = kubelet::error("Node n", &failure);
    assert!(error.cause.contains("answers 500"), "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("once the API server answers")));
}

#[test]
fn what_a_server_refuses_is_not_asked_again() {
    for (line, status) in [
        ("403 Forbidden", ApiStatus::Forbidden),
        ("404 Not Found", ApiStatus::NotFound),
        ("409 Conflict", ApiStatus::Conflict),
        ("422 Unprocessable Entity", ApiStatus::Invalid),
    ] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let server = Server::start(move |_, _, to| {
            counted.fetch_add(1, Ordering::Relaxed);
            send(to, line, r#"{"kind": "Status", "message": "why"}"#)
        });
        let failure = Kubelet::of(&server).asks(Duration::from_secs(30)).expect_err(line);
        assert_eq!((failure.status(), count.load(Ordering::Relaxed)), (Some(status), 1), "{line}");
        let text = kubelet::error("Node n", &failure).to_string();
        assert!(text.contains(&line[..3]) && text.contains("why"), "{text}");
    }
}

#[test]
fn a_server_that_says_nothing_or_come_later_holds_nobody_up() {
    let silent = Server::start(|_, _, _| {
        std::thread::sleep(Duration::from_secs(60));
        Ok(())
    });
    let busy =
        Server::start(|_, _, to| send(to, "429 Too Many Requests\r\nRetry-After: 99999", ""));
    std::thread::scope(|scope| {
        for (server, said) in [(&silent, "in time"), (&busy, "answers 429")] {
            scope.spawn(move || {
                let began = Instant::now();
                let failure = Kubelet::of(server).asks(Duration::from_secs(2)).expect_err(said);
                assert!(failure.to_string().contains(said), "{failure}");
                let took = began.elapsed();
                assert!(took < Duration::from_secs(25), "{said}: {took:?}");
            });
        }
    });
}

#[test]
fn a_certificate_that_rotates_is_read_anew() {
    let server = Server::start(|_, _, to| send(to, "200 OK", OBJECT));
    let kubelet = Kubelet::of(&server);
    let (certificate, key) = server.access().client.expect("a certificate");
    let good = format!("{certificate}{key}");
    let Signed { certificate, key } = Authority::new().sign("system:node:n");
    // The server knows nothing of who has signed this one, as of one that has expired.
    kubelet.rotate("old", &format!("{}{}", certificate.pem(), key.serialize_pem()));
    kubelet.asks(Duration::ZERO).expect_err("a certificate that does not count");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| kubelet.asks(Duration::from_secs(20)));
        std::thread::sleep(Duration::from_secs(1));
        kubelet.rotate("new", &good);
        asked.join().expect("no panic").expect("the new certificate counts");
    });
    // Certificate and key are of one file, so never of two certificates.
    std::thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            for number in 0..200 {
                let Signed { certificate, key } = server.authority.sign("system:node:n");
                let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
                kubelet.rotate(&number.to_string(), &pem);
            }
        });
        while !rotating.is_finished() {
            kubelet.asks(Duration::ZERO).expect("either certificate counts");
        }
    });
}
