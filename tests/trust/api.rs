//! An API server that answers what it should not, or nothing: it is not followed for that reason, and
//! is tried again. Nothing of the credentials is told.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxyshift::api::ApiReader;
use proxyshift::api::access::ApiAccess;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// How long anything of these tests may take.
const CEILING: Duration = Duration::from_secs(60);

/// An authority, and what it has signed.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(super) struct Signed {
    pub(super) certificate: rcgen::Certificate,
    pub(super) key: KeyPair,
}

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    pub(super) fn sign(&self, name: &str) -> Signed {
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Signed { certificate, key }
    }
}

/// What a server answers to a request: the path and query of its first line, and all of it.
type Answer = dyn Fn(&str, &str, &mut dyn Write) -> std::io::Result<()> + Send + Sync;

/// A server on this machine, that takes clients with a certificate of its own authority.
pub(super) struct Server {
    pub(super) authority: Authority,
    client: Signed,
    port: u16,
    answer: Arc<Mutex<Arc<Answer>>>,
    requests: Arc<AtomicUsize>,
}

impl Server {
    pub(super) fn start(
        answer: impl Fn(&str, &str, &mut dyn Write) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Server {
        let authority = Authority::new();
        let (own, client) = (authority.sign("127.0.0.1"), authority.sign("kube-proxy"));
        let mut clients = RootCertStore::empty();
        clients.add(authority.0.der().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider));
        let chain: Vec<CertificateDer<'static>> = vec![own.certificate.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(chain, key)
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let answer: Arc<Mutex<Arc<Answer>>> = Arc::new(Mutex::new(Arc::new(answer)));
        let requests = Arc::new(AtomicUsize::new(0));
        let (config, answers, count) =
            (Arc::new(config), Arc::clone(&answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
                let (answers, count) = (Arc::clone(&answers), Arc::clone(&count));
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
                    let mut whole = String::new();
                    while stream.read_line(&mut whole).is_ok_and(|n| n > 0) {
                        if whole.ends_with("\r\n\r\n") {
                            read_body(&mut stream, &mut whole);
                            count.fetch_add(1, Ordering::Relaxed);
                            let path = whole.split(' ').nth(1).unwrap_or_default().to_owned();
                            let answer = Arc::clone(&answers.lock().expect("no panic"));
                            let _ = answer(&path, &whole, stream.get_mut());
                            stream.get_mut().conn.send_close_notify();
                            let _ = stream.get_mut().flush();
                            return;
                        }
                    }
                });
            }
        });
        Server { authority, client, port, answer, requests }
    }

    fn now(
        &self,
        answer: impl Fn(&str, &str, &mut dyn Write) -> std::io::Result<()> + Send + Sync + 'static,
    ) {
        *self.answer.lock().expect("no panic") = Arc::new(answer);
    }

    pub(super) fn access(&self) -> ApiAccess {
        ApiAccess {
            whose: "kube-proxy's kubeconfig".into(),
            server: format!("https://127.0.0.1:{}", self.port),
            authorities: self.authority.0.pem(),
            client: Some((self.client.certificate.pem(), self.client.key.serialize_pem())),
            token: None,
        }
    }

    fn reader(&self) -> ApiReader {
        let access = self.access();
        ApiReader::start(move || Ok(access.clone())).expect("threads")
    }
}

/// Reads the body of a request, after its header.
fn read_body(stream: &mut impl BufRead, whole: &mut String) {
    let header = whole.to_lowercase();
    let length = header.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.and_then(|text| text.parse().ok()).unwrap_or_default()];
    stream.read_exact(&mut body).expect("a body");
    whole.push_str(&String::from_utf8(body).expect("text"));
}

/// Sends a whole answer.
pub(super) fn send(to: &mut dyn Write, status: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(to, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Begins an answer without an end.
fn open(to: &mut dyn Write) -> std::io::Result<()> {
    write!(to, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
    to.flush()
}

const SERVICE: &str = r#"{"metadata": {"namespace": "shop", "name": "web", "resourceVersion": "7"},
    "spec": {"type": "ClusterIP", "clusterIPs": ["10.96.0.10"], "ports": [{"port": 80}]}}"#;

/// A list of these objects.
fn list(items: &str, more: &str) -> String {
    format!(
        r#"{{"metadata": {{"resourceVersion": "7", "continue": "{more}"}}, "items": [{items}]}}"#
    )
}

/// What a server that is well answers: one Service, no slices, and no changes.
fn well(path: &str, _: &str, to: &mut dyn Write) -> std::io::Result<()> {
    match (path.contains("watch="), path.starts_with("/api/v1/services?")) {
        (true, _) => {
            open(to)?;
            std::thread::sleep(Duration::from_millis(300));
            Ok(())
        }
        (false, true) => send(to, "200 OK", &list(SERVICE, "")),
        (false, false) => send(to, "200 OK", &list("", "")),
    }
}

/// The names of the Services that the reader has; none before it has all.
fn names(reader: &ApiReader) -> Option<Vec<String>> {
    let named = |objects: proxyshift::api::ApiObjects<'_>| {
        objects.services().map(|service| service.metadata.name.clone()).collect()
    };
    reader.read(0, named).map(|(_, names)| names)
}

fn poll(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + CEILING;
    while !done() {
        assert!(Instant::now() < until, "waited for {CEILING:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Why the reader follows nothing.
fn why(reader: &ApiReader, what: &str) -> String {
    poll(what, || reader.failure().is_some());
    reader.failure().expect("a failure").1.to_string()
}

/// A way in which a server answers wrongly, and what is said of it.
type Misbehaviour = (&'static str, fn(&str, &mut dyn Write) -> std::io::Result<()>, &'static str);

const LISTS: [Misbehaviour; 12] = [
    ("401", |_, to| send(to, "401 Unauthorized", "s3cret"), "answers 401"),
    ("403", |_, to| send(to, "403 Forbidden", "s3cret"), "answers 403"),
    ("429", |_, to| send(to, "429 Too Many Requests", "s3cret"), "answers 429"),
    ("500", |_, to| send(to, "500 Internal Server Error", "s3cret"), "answers 500"),
    ("503", |_, to| send(to, "503 Service Unavailable", "s3cret"), "answers 503"),
    ("no JSON", |_, to| send(to, "200 OK", "s3cret"), "no JSON"),
    ("other JSON", |_, to| send(to, "200 OK", "{\"s3cret\": []}"), "other JSON"),
    (
        "wrong types",
        |_, to| {
            let item = r#"{"spec": {"ports": [{"port": "s3cret"}]}, "addressType": {}}"#;
            send(to, "200 OK", &list(item, ""))
        },
        "other JSON",
    ),
    (
        "a version that leads elsewhere",
        |_, to| {
            let text = list("", "").replace(r#""7""#, r#""7&watch=s3cret""#);
            send(to, "200 OK", &text)
        },
        "a version that is none",
    ),
    (
        "a list without end",
        |_, to| {
            open(to)?;
            loop {
                to.write_all(&[b' '; 64 << 10])?;
            }
        },
        "too large",
    ),
    (
        "silence",
        |_, to| {
            open(to)?;
            to.write_all(b"{")?;
            to.flush()?;
            std::thread::sleep(CEILING);
            Ok(())
        },
        "in time",
    ),
    ("a reset", |_, _| Ok(()), "not reached"),
];

#[test]
fn a_server_that_answers_wrongly_is_not_followed_and_tried_again() {
    std::thread::scope(|scope| {
        for (name, misbehave, said) in LISTS {
            scope.spawn(move || {
                let server = Server::start(move |path, _, to| misbehave(path, to));
                let reader = server.reader();
                let why = why(&reader, name);
                assert!(why.contains(said) && !why.contains("s3cret"), "{name}: {why}");
                assert_eq!(names(&reader), None, "{name}");
                server.now(well);
                poll(&format!("{name}: followed"), || reader.failure().is_none());
                poll(name, || names(&reader).is_some_and(|names| names == ["web"]));
            });
        }
    });
}

const WATCHES: [Misbehaviour; 6] = [
    ("an error", |_, to| send(to, "200 OK", r#"{"type":"ERROR","object":{"code":500}}"#), "500"),
    ("no JSON", |_, to| send(to, "200 OK", "s3cret\n"), "no JSON"),
    ("another kind", |_, to| send(to, "200 OK", r#"{"type":"s3cret","object":{}}"#), "not known"),
    (
        "a line without end",
        |_, to| {
            open(to)?;
            loop {
                to.write_all(&[b' '; 64 << 10])?;
            }
        },
        "too large",
    ),
    (
        "silence",
        |_, to| {
            open(to)?;
            std::thread::sleep(CEILING);
            Ok(())
        },
        "in time",
    ),
    ("503", |_, to| send(to, "503 Service Unavailable", ""), "answers 503"),
];

#[test]
fn a_watch_that_goes_wrong_is_begun_anew() {
    std::thread::scope(|scope| {
        for (name, misbehave, said) in WATCHES {
            scope.spawn(move || {
                let server = Server::start(move |path, whole, to| match path.contains("watch=") {
                    true => misbehave(path, to),
                    false => well(path, whole, to),
                });
                let reader = server.reader();
                // A watch may go wrong before the other kind is listed. What was known stays known.
                poll(&format!("{name}: listed"), || names(&reader).is_some());
                let why = why(&reader, name);
                assert!(why.contains(said) && !why.contains("s3cret"), "{name}: {why}");
                assert!(names(&reader).is_some(), "{name}");
                server.now(well);
                poll(&format!("{name}: followed"), || reader.failure().is_none());
            });
        }
    });
}

#[test]
fn changes_are_followed_and_what_is_forgotten_is_listed_anew() {
    let lists = Arc::new(AtomicUsize::new(0));
    let listed = Arc::clone(&lists);
    let server = Server::start(move |path, _, to| {
        let of_services = path.starts_with("/api/v1/services?");
        if !path.contains("watch=") {
            if of_services && path.contains("continue=more") {
                return send(to, "200 OK", &list(&SERVICE.replace("web", "dns"), ""));
            }
            if of_services && listed.fetch_add(1, Ordering::Relaxed) == 0 {
                return send(to, "200 OK", &list(SERVICE, "more"));
            }
            let of_later = SERVICE.replace("web", "later").replace("\"7\"", "\"20\"");
            let text = list(if of_services { &of_later } else { "" }, "");
            return send(to, "200 OK", &text.replace("\"7\"", "\"20\""));
        }
        let object = |name: &str, version: &str| {
            SERVICE
                .replace("web", name)
                .replace("\"7\"", &format!("\"{version}\""))
                .replace('\n', "")
        };
        open(to)?;
        if of_services && path.contains("resourceVersion=7") {
            writeln!(to, r#"{{"type":"ADDED","object":{}}}"#, object("new", "8"))?;
            writeln!(to, r#"{{"type":"DELETED","object":{}}}"#, object("web", "9"))?;
            writeln!(
                to,
                r#"{{"type":"BOOKMARK","object":{{"metadata":{{"resourceVersion":"12"}}}}}}"#
            )?;
        } else if of_services && path.contains("resourceVersion=12") {
            to.flush()?;
            std::thread::sleep(Duration::from_secs(1));
            writeln!(to, r#"{{"type":"ERROR","object":{{"code":410}}}}"#)?;
        } else {
            to.flush()?;
            std::thread::sleep(Duration::from_secs(1));
        }
        Ok(())
    });
    let reader = server.reader();
    poll("both pages and the changes", || {
        names(&reader).is_some_and(|names| names == ["dns", "new"])
    });
    poll("listed anew", || names(&reader).is_some_and(|names| names == ["later"]));
    assert!(reader.failure().is_none());
}

#[test]
fn credentials_go_to_this_server_alone_and_rotate() {
    let other = Server::start(well);
    let location = format!("https://127.0.0.1:{}/", other.port);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    let server = Server::start(move |_, whole, to| {
        let token = whole
            .lines()
            .find_map(|l| l.to_lowercase().strip_prefix("authorization: ").map(str::to_owned));
        kept.lock().expect("no panic").extend(token);
        let status = format!("302 Found\r\nLocation: {location}");
        send(to, &status, "")
    });
    let (access, count) = (server.access(), AtomicUsize::new(0));
    let reader = ApiReader::start(move || {
        let number = count.fetch_add(1, Ordering::Relaxed);
        Ok(ApiAccess { token: Some(format!("token-{number}\n")), ..access.clone() })
    })
    .expect("threads");
    let why = why(&reader, "a redirect");
    assert!(why.contains("answers 302"), "{why}");
    poll("some requests", || seen.lock().expect("no panic").len() > 3);
    let mut tokens = seen.lock().expect("no panic").clone();
    tokens.sort();
    tokens.dedup();
    assert!(tokens.len() > 3 && tokens[0] == "bearer token-0", "{tokens:?}");
    assert_eq!(other.requests.load(Ordering::Relaxed), 0, "the redirect was followed");
}

#[test]
fn a_server_that_the_authority_does_not_vouch_for_gets_no_request() {
    let (server, stranger) = (Server::start(well), Authority::new());
    let other = stranger.sign("kube-proxy");
    let (key, pem) = (other.key.serialize_pem(), server.client.certificate.pem());
    let client = server.access().client.expect("a certificate");
    for (access, said) in [
        (ApiAccess { authorities: stranger.0.pem(), ..server.access() }, "certificate"),
        (ApiAccess { authorities: "s3cret".into(), ..server.access() }, "certificate-authority"),
        (ApiAccess { client: Some((pem.clone(), key.clone())), ..server.access() }, "certificate"),
        (ApiAccess { client: Some((pem, "s3cret".into())), ..server.access() }, "client-key"),
        (ApiAccess { client: Some(("s3cret".into(), client.1)), ..server.access() }, "certificate"),
        (ApiAccess { token: Some("s3cret\r\nHost: x".into()), ..server.access() }, "token"),
        (ApiAccess { server: "https://127.0.0.1:1".into(), ..server.access() }, "not reached"),
        (ApiAccess { server: "https://s3cret@:x/".into(), ..server.access() }, ""),
        (
            ApiAccess { client: Some((other.certificate.pem(), key)), ..server.access() },
            "not reached",
        ),
    ] {
        let reader = ApiReader::start(move || Ok(access.clone())).expect("threads");
        let why = why(&reader, said);
        assert!(why.contains(said) && !why.contains("s3cret\r"), "{why}");
        assert!(said.is_empty() || !why.contains("s3cret"), "{why}");
    }
    assert_eq!(server.requests.load(Ordering::Relaxed), 0);
}
