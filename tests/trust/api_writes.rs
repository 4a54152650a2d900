//! What is written to an API server, and what is made of a server that refuses, puts off, or answers
//! something else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proxyshift::api::write::{self, Persistence};
use proxyshift::api::{ApiClient, ApiStatus, read};
use proxyshift::state::kubernetes::{ApiKind, ConfigMapObject, JsonPatch, ObjectRef};
use serde_json::{Value, json};

use super::api::{Server, send};

const OBJECT: &str = r#"{"metadata": {"namespace": "kube-system", "name": "a", "uid": "7"},
    "data": {"k": "v"}}"#;

fn config_map() -> ObjectRef {
    ObjectRef::new(ApiKind::ConfigMap, "kube-system", "a")
}

fn client(server: &Server) -> ApiClient {
    ApiClient::new(&server.access()).expect("credentials")
}

#[test]
fn each_write_is_one_request_with_its_conditions() {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    let server = Server::start(move |_, whole, to| {
        kept.lock().expect("no panic").push(whole.to_owned());
        send(to, "201 Created", OBJECT)
    });
    let client = client(&server);
    let object: ConfigMapObject =
        write::create(&client, &config_map(), &json!({"kind": "ConfigMap"}), Persistence::DryRun)
            .expect("an answer");
    assert_eq!((object.metadata.uid.as_str(), object.data["k"].as_str()), ("7", "v"));
    let patch = JsonPatch::of_uid("7").replace(&["data", "k"], "w");
    let _: Value =
        write::patch(&client, &config_map(), &patch, Persistence::Kept).expect("an answer");
    write::delete(&client, &config_map(), "7", Persistence::Kept).expect("an answer");
    let _: ConfigMapObject = read::read(&client, &config_map()).expect("an answer");
    let path = "/api/v1/namespaces/kube-system/configmaps";
    let requests = requests.lock().expect("no panic");
    for (request, first, kind, body) in [
        (
            &requests[0],
            format!("POST {path}?fieldManager=proxyshift&dryRun=All "),
            "application/json",
            r#"{"kind":"ConfigMap"}"#,
        ),
        (
            &requests[1],
            format!("PATCH {path}/a?fieldManager=proxyshift "),
            "application/json-patch+json",
            r#"[{"op":"test","path":"/metadata/uid","value":"7"},{"op":"replace","path":"/data/k","value":"w"}]"#,
        ),
        (
            &requests[2],
            format!("DELETE {path}/a "),
            "application/json",
            r#"{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"7"}}"#,
        ),
    ] {
        assert!(request.starts_with(&first), "{request}");
        assert!(request.to_lowercase().contains(&format!("content-type: {kind}\r\n")), "{request}");
        assert!(request.ends_with(&format!("\r\n\r\n{body}")), "{request}");
    }
    assert!(requests[3].starts_with(&format!("GET {path}/a ")), "{}", requests[3]);
    assert_eq!(requests.len(), 4);
}

#[test]
fn why_a_server_refuses_is_kept_and_obeyed_by_no_terminal() {
    for (line, status) in [
        ("401 Unauthorized", ApiStatus::Unauthorized),
        ("403 Forbidden", ApiStatus::Forbidden),
        ("404 Not Found", ApiStatus::NotFound),
        ("409 Conflict", ApiStatus::Conflict),
        ("422 Unprocessable Entity", ApiStatus::Invalid),
        ("500 Internal Server Error", ApiStatus::Other(500)),
    ] {
        let server = Server::start(move |path, _, to| {
            let text = match path.contains("nodes") {
                true => {
                    json!({"kind": "Status", "message": format!("policy \u{1b}[2J\n{}", "x".repeat(9000))})
                }
                false => json!({"kind": "Other", "message": "s3cret"}),
            };
            send(to, line, &text.to_string())
        });
        let client = client(&server);
        let node = ObjectRef::of_cluster(ApiKind::Node, "n");
        let failure = read::read::<Value>(&client, &node).expect_err(line);
        assert_eq!(failure.status(), Some(status), "{line}");
        assert_eq!(failure.is_not_found(), status == ApiStatus::NotFound);
        let text = failure.to_string();
        assert!(text.contains(r"policy \u{1b}[2J\nxxx") && text.len() < 700, "{text}");
        let text = read::read::<Value>(&client, &config_map()).expect_err(line).to_string();
        assert!(text.contains(&line[..3]) && !text.contains("s3cret"), "{text}");
        let whose = matches!(status, ApiStatus::Unauthorized | ApiStatus::Forbidden);
        assert_eq!(text.contains("kube-proxy's kubeconfig"), whose, "{text}");
    }
}

#[test]
fn a_request_that_is_put_off_is_made_again_and_not_without_end() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let server = Server::start(move |path, _, to| {
        let number = counted.fetch_add(1, Ordering::Relaxed);
        match (path.contains("nodes"), number) {
            (true, _) => send(to, "429 Too Many Requests\r\nRetry-After: 99999999", ""),
            (false, 0) => send(to, "429 Too Many Requests", ""),
            (false, 1) => send(to, "503 Service Unavailable\r\nRetry-After: 1", ""),
            (false, _) => send(to, "200 OK", OBJECT),
        }
    });
    let client = client(&server);
    let began = Instant::now();
    read::read::<ConfigMapObject>(&client, &config_map()).expect("the third answer");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let began = Instant::now();
    let node = ObjectRef::of_cluster(ApiKind::Node, "n");
    let failure = read::read::<Value>(&client, &node).expect_err("429");
    assert_eq!(failure.status(), Some(ApiStatus::TooManyRequests));
    assert!(failure.may_pass() && began.elapsed() < Duration::from_secs(60), "{failure}");
    assert!((5..9).contains(&count.load(Ordering::Relaxed)), "{count:?}");
}

#[test]
fn an_answer_that_is_no_object_of_the_kind_is_an_error_without_its_words() {
    for (body, cause) in [
        ("s3cret".to_owned(), "no JSON"),
        (r#"{"data": ["s3cret"]}"#.to_owned(), "other JSON"),
        (" ".repeat(5 << 20), "too large"),
    ] {
        let server = Server::start(move |_, _, to| send(to, "200 OK", &body));
        let failure = read::read::<ConfigMapObject>(&client(&server), &config_map());
        let text = failure.expect_err(cause).to_string();
        assert!(text.contains(cause) && !text.contains("s3cret"), "{text}");
    }
}
