//! The part of the Kubernetes API that kube-proxy and `kubectl drain` use: lists, watches and
//! single objects, patches of nodes, and evictions of pods, over plain HTTP. Each request has a
//! connection and a thread of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use serde_json::{Value, json};

/// The API server. It runs until the process ends.
pub struct Api {
    pub address: SocketAddr,
    store: Arc<Store>,
}

/// All events of all objects, in order. The index of an event is the object's resource version.
#[derive(Default)]
struct Store {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

#[derive(Clone)]
struct Event {
    /// The type of the event: `ADDED`, `MODIFIED` or `DELETED`.
    kind: &'static str,
    object: Value,
}

impl Event {
    fn is_of(&self, resource: &Resource) -> bool {
        self.object["kind"] == resource.kind
    }
}

/// A resource that clients list and watch.
struct Resource {
    /// The path at which all its objects are.
    path: &'static str,
    version: &'static str,
    kind: &'static str,
}

const fn resource(path: &'static str, version: &'static str, kind: &'static str) -> Resource {
    Resource { path, version, kind }
}

/// kube-proxy 1.20 is told to read Endpoints, and later ones read only EndpointSlices.
const RESOURCES: [Resource; 6] = [
    resource("/api/v1/services", "v1", "Service"),
    resource("/api/v1/endpoints", "v1", "Endpoints"),
    resource("/api/v1/nodes", "v1", "Node"),
    resource("/api/v1/pods", "v1", "Pod"),
    resource("/apis/discovery.k8s.io/v1/endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    resource("/apis/networking.k8s.io/v1/servicecidrs", "networking.k8s.io/v1", "ServiceCIDR"),
];

/// What identifies an object: its kind, namespace and name.
fn identity(object: &Value) -> (&Value, &Value, &Value) {
    (&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"])
}

impl Api {
    /// Starts the server on a port of this network namespace. `Api::address` is its address on
    /// loopback.
    pub fn start() -> Api {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port for the API");
        let port = listener.local_addr().expect("bound").port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let store = Arc::new(Store::default());
        let served = Arc::clone(&store);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let store = Arc::clone(&served);
                // The result is ignored, because kube-proxy may close its connection at any time.
                std::thread::spawn(move || drop(store.answer(stream)));
            }
        });
        Api { address, store }
    }

    /// Adds an object, or replaces the one with the same identity.
    pub fn apply(&self, object: Value) {
        let mut events = self.store.events.lock().expect("not poisoned");
        let last = events.iter().rev().find(|e| identity(&e.object) == identity(&object));
        let is_new = last.is_none_or(|event| event.kind == "DELETED");
        record(&mut events, if is_new { "ADDED" } else { "MODIFIED" }, object);
        self.store.more.notify_all();
    }

    /// The history of the object `kind` called `name`: the type of each event, and the object after
    /// that event.
    pub fn history(&self, kind: &str, name: &str) -> Vec<(&'static str, Value)> {
        let events = self.store.events.lock().expect("not poisoned");
        let own = events.iter().filter(|e| is_called(&e.object, kind, name));
        own.map(|e| (e.kind, e.object.clone())).collect()
    }
}

fn is_called(object: &Value, kind: &str, name: &str) -> bool {
    object["kind"] == kind && object["metadata"]["name"] == name
}

fn record(events: &mut Vec<Event>, kind: &'static str, mut object: Value) {
    object["metadata"]["resourceVersion"] = json!((events.len() + 1).to_string());
    events.push(Event { kind, object });
}

/// The objects that exist after `events`, in the order of their last events.
fn current<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<Value> {
    let events: Vec<&Event> = events.into_iter().collect();
    let last: HashMap<String, usize> =
        events.iter().enumerate().map(|(i, e)| (format!("{:?}", identity(&e.object)), i)).collect();
    let mut last: Vec<usize> = last.into_values().collect();
    last.sort_unstable();
    let exists = last.into_iter().map(|i| events[i]).filter(|e| e.kind != "DELETED");
    exists.map(|event| event.object.clone()).collect()
}

impl Store {
    fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let (method, target, body) = request(&stream)?;
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let parameter = |name: &str| {
            query.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name)
        };
        if let Some(document) = discovery(path) {
            return reply(&mut stream, "200 OK", &document.to_string());
        }
        if let Some(resource) = RESOURCES.iter().find(|r| r.path == path && method == "GET") {
            if parameter("watch").is_none() {
                return reply(&mut stream, "200 OK", &self.list(resource));
            }
            let streams_the_list = parameter("sendInitialEvents").is_some_and(|(_, v)| v == "true");
            let from = parameter("resourceVersion").and_then(|(_, v)| v.parse().ok());
            let from = if streams_the_list { None } else { Some(from.unwrap_or(0)) };
            return self.watch(&mut stream, resource, from);
        }
        match path.trim_start_matches("/api/v1/").split('/').collect::<Vec<_>>()[..] {
            ["namespaces", _, "pods", name, "eviction"] => {
                self.change("DELETED", "Pod", name, |_| ());
                reply(&mut stream, "201 Created", &body)
            }
            ["nodes", name] if method == "PATCH" => {
                let patch = serde_json::from_str(&body).unwrap_or_default();
                self.change("MODIFIED", "Node", name, |node| merge(node, &patch));
                self.answer_one(&mut stream, "Node", name)
            }
            // Objects of the resource `events` that clients post are discarded.
            _ if method == "POST" => reply(&mut stream, "201 Created", &body),
            ["nodes", name] => self.answer_one(&mut stream, "Node", name),
            ["namespaces", _, "pods", name] => self.answer_one(&mut stream, "Pod", name),
            _ => reply(&mut stream, "404 Not Found", &not_found()),
        }
    }

    fn list(&self, resource: &Resource) -> String {
        let events = self.events.lock().expect("not poisoned");
        let version = events.len().to_string();
        json!({"kind": format!("{}List", resource.kind), "apiVersion": resource.version,
            "metadata": {"resourceVersion": version}, "items": existing(&events, resource)})
        .to_string()
    }

    fn answer_one(&self, stream: &mut TcpStream, kind: &str, name: &str) -> Result<()> {
        let objects = current(&*self.events.lock().expect("not poisoned"));
        match objects.iter().find(|o| is_called(o, kind, name)) {
            Some(object) => reply(stream, "200 OK", &object.to_string()),
            None => reply(stream, "404 Not Found", &not_found()),
        }
    }

    /// Changes an object with `how`, if the object exists, and adds an event of the type `what`.
    fn change(&self, what: &'static str, kind: &str, name: &str, how: impl FnOnce(&mut Value)) {
        let mut events = self.events.lock().expect("not poisoned");
        let object = current(&*events).into_iter().find(|o| is_called(o, kind, name));
        if let Some(mut object) = object {
            how(&mut object);
            record(&mut events, what, object);
            self.more.notify_all();
        }
    }

    /// Sends the events after the version `from`, and then all further ones as they happen. Without
    /// `from`, it begins with the objects that exist, and a bookmark after the last of these, which
    /// clients of today ask for in place of a list.
    fn watch(&self, stream: &mut TcpStream, of: &Resource, from: Option<usize>) -> Result<()> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        let mut sent = match from {
            Some(from) => from,
            None => self.send_existing(stream, of)?,
        };
        loop {
            let events = self.events.lock().expect("not poisoned");
            let events = self.more.wait_while(events, |e| e.len() <= sent).expect("not poisoned");
            let news: Vec<Event> = events[sent..].to_vec();
            sent = events.len();
            drop(events);
            for event in news.into_iter().filter(|e| e.is_of(of)) {
                send(stream, event.kind, &event.object)?;
            }
        }
    }

    /// Returns the version up to which it has sent.
    fn send_existing(&self, stream: &mut TcpStream, of: &Resource) -> Result<usize> {
        let events = self.events.lock().expect("not poisoned");
        let (objects, sent) = (existing(&events, of), events.len());
        drop(events);
        for object in objects {
            send(stream, "ADDED", &object)?;
        }
        let bookmark = json!({"kind": of.kind, "apiVersion": of.version, "metadata": {
            "resourceVersion": sent.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"}}});
        send(stream, "BOOKMARK", &bookmark)?;
        Ok(sent)
    }
}

/// The objects of a resource that exist after `events`.
fn existing(events: &[Event], of: &Resource) -> Vec<Value> {
    current(events.iter().filter(|e| e.is_of(of)))
}

/// Sends one event of a watch.
fn send(stream: &mut TcpStream, kind: &str, object: &Value) -> Result<()> {
    let line = format!("{}\n", json!({"type": kind, "object": object}));
    stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes())
}

/// The discovery documents, which kubectl requests before anything else.
fn discovery(path: &str) -> Option<Value> {
    let resource = |name: &str, namespaced: bool, kind: &str| {
        json!({"name": name, "singularName": "", "namespaced": namespaced, "kind": kind,
            "verbs": ["get", "list", "patch", "create"]})
    };
    let version = json!({"groupVersion": "policy/v1beta1", "version": "v1beta1"});
    Some(match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [
            {"name": "policy", "versions": [&version], "preferredVersion": &version}]}),
        "/api/v1" => json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
            resource("nodes", false, "Node"), resource("pods", true, "Pod"),
            {"name": "pods/eviction", "singularName": "", "namespaced": true, "kind": "Eviction",
                "group": "policy", "version": "v1beta1", "verbs": ["create"]}]}),
        "/apis/policy/v1beta1" => json!({"kind": "APIResourceList",
            "groupVersion": "policy/v1beta1", "resources": []}),
        _ => return None,
    })
}

/// Applies a merge patch to an object (RFC 7386).
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *object = patch.clone();
        return;
    };
    for (name, change) in changes {
        match change {
            Value::Null => drop(object.as_object_mut().and_then(|o| o.remove(name))),
            _ => merge(&mut object[name], change),
        }
    }
}

/// The method, the target and the body of an HTTP request.
fn request(stream: &TcpStream) -> Result<(String, String, String)> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        match header.trim_end().split_once(':') {
            None => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse().unwrap_or(0);
            }
            Some(_) => {}
        }
    }
    let mut body = Vec::new();
    reader.take(length).read_to_end(&mut body)?;
    Ok((method, target, String::from_utf8_lossy(&body).into_owned()))
}

fn reply(stream: &mut TcpStream, status: &str, body: &str) -> Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

fn not_found() -> String {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound",
        "code": 404})
    .to_string()
}
