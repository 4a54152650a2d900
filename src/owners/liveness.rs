//! Liveness: whether a component is alive on the node, and the evidence.

use std::path::Path;

use crate::owners::component::Component;
use crate::owners::expression::Expression;
use crate::owners::files::builtin;
use crate::owners::signs::Embedding;
use crate::state::cni::SUBNET_ENV;
use crate::state::links::Link;
use crate::state::networks::networks;
use crate::state::tools::Process;
use crate::state::{NodeState, multicall};

/// The folder in which the kubelet keeps a folder for each pod of the node, called
/// `NAMESPACE_NAME_UID`, until the pod is deleted.
pub const PODS: &str = "/var/log/pods";

/// The namespaces that are not for everybody's pods. Elsewhere, anybody who may make a pod can give it
/// the name of a component's.
const SYSTEM: &[&str] =
    &["kube-system", "calico-system", "kube-flannel", "ovn-kubernetes", "openshift-ovn-kubernetes"];

/// Whether a component is alive on this node, with the evidence as a phrase for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Liveness {
    /// Alive: one of the component's signs of life is there.
    Alive(String),
    /// It seems gone: no sign of life is there, but something that may outlive the component is.
    SeemsGone(String),
    /// Gone: the state has the node's processes and links, but nothing of the component.
    Gone(String),
    /// Unknown: nothing shows that the component is alive, but a sign of life may be missed. Either
    /// the state lacks the node's processes or links, or a file is not captured, or the catalogue
    /// lists no process of the component, or a process that does not count has the component's name,
    /// or a program that may hold the component does not say whether it does.
    Unknown(String),
}

impl Liveness {
    /// True for [`Liveness::Alive`].
    pub fn is_alive(&self) -> bool {
        matches!(self, Liveness::Alive(_))
    }

    /// True for [`Liveness::Gone`].
    pub fn is_gone(&self) -> bool {
        matches!(self, Liveness::Gone(_))
    }

    /// True for [`Liveness::SeemsGone`] and [`Liveness::Gone`].
    pub fn is_left(&self) -> bool {
        matches!(self, Liveness::SeemsGone(_) | Liveness::Gone(_))
    }

    /// The evidence, as a phrase for people.
    pub fn evidence(&self) -> &str {
        match self {
            Liveness::Alive(e)
            | Liveness::SeemsGone(e)
            | Liveness::Gone(e)
            | Liveness::Unknown(e) => e,
        }
    }
}

/// The liveness of a component on the node.
pub fn liveness(component: &Component, state: &NodeState) -> Liveness {
    let alive = &component.alive;
    let name = &component.name;
    if let Some(process) = process(component, state) {
        return Liveness::Alive(format!("process {} ({}) runs", process.name, process.pid));
    }
    let off = switched_off(component, state);
    // A part that is switched off leaves links, files and configurations.
    let sign = sign(component, state);
    match (&sign, &off) {
        (Some(sign), None) => return Liveness::Alive(sign.clone()),
        (Some(sign), Some(off)) => return Liveness::SeemsGone(format!("{off}; {sign}")),
        (None, _) => {}
    }
    // Anybody can give a process that name. But the component may also run with fewer rights than
    // root has, as podman's aardvark-dns does. So the name shows nothing, and permits nothing.
    let is_listed = |name: &str| alive.names_process(name);
    if let Some(other) = state.lookalikes.iter().find(|l| {
        is_listed(&l.name)
            || multicall::parts(&l.name).any(is_listed)
            || l.name.is_empty() && !alive.processes.is_empty()
    }) {
        let why = format!("process {other} does not count: {}", other.doubt);
        return Liveness::Unknown(why);
    }
    if alive.processes.is_empty() {
        return Liveness::Unknown(format!("{name} has no process that would show it"));
    }
    if let Some(why) = unclear(component, state).or_else(|| unread(component, state)) {
        return Liveness::Unknown(why);
    }
    match (&state.processes, state.links.is_empty()) {
        (None, _) => Liveness::Unknown("the processes are not in this state".into()),
        (_, true) => Liveness::Unknown("the links are not in this state".into()),
        _ => match (off, trace(component, state)) {
            (None, None) => Liveness::Gone(format!("no process, link or file of {name} is left")),
            (Some(off), None) => {
                Liveness::Gone(format!("{off}, and no link or file of {name} is left"))
            }
            (None, Some(trace)) => {
                Liveness::SeemsGone(format!("no process of {name} is left, only {trace}"))
            }
            (Some(off), Some(trace)) => Liveness::SeemsGone(format!("{off}; left is {trace}")),
        },
    }
}

/// A running process of the component, if there is one. A program that does not say whether it holds
/// the component does if something of the component is there too.
pub fn process<'a>(component: &Component, state: &'a NodeState) -> Option<&'a Process> {
    let mut all = state.processes.iter().flatten();
    all.find(|process| match component.alive.part(process, state) {
        Some(Embedding::Runs) => true,
        Some(Embedding::Unclear(_)) => trace(component, state).is_some(),
        Some(Embedding::Off(_)) | None => false,
    })
}

/// The node's kubelet among `processes`, or the program that has it inside, if one is there.
pub fn kubelet(processes: &[Process]) -> Option<&Process> {
    // A test shows that the built-in catalogue gives no error.
    let components = builtin().ok()?;
    let kubelet = components.iter().find(|component| component.name == "kubelet")?;
    processes.iter().find(|process| kubelet.alive.names_process(&process.name))
}

/// The program that holds the component and runs with it switched off.
fn switched_off(component: &Component, state: &NodeState) -> Option<String> {
    state.processes.iter().flatten().find_map(|p| match component.alive.part(p, state)? {
        Embedding::Off(flag) => Some(format!("process {} ({}) runs with {flag}", p.name, p.pid)),
        Embedding::Runs | Embedding::Unclear(_) => None,
    })
}

/// The program that may hold the component.
fn unclear(component: &Component, state: &NodeState) -> Option<String> {
    let name = &component.name;
    state.processes.iter().flatten().find_map(|p| match component.alive.part(p, state)? {
        Embedding::Unclear(why) => {
            Some(format!("process {} ({}) may be with or without {name}: {why}", p.name, p.pid))
        }
        Embedding::Runs | Embedding::Off(_) => None,
    })
}

/// A sign of life that is no process.
fn sign(component: &Component, state: &NodeState) -> Option<String> {
    let alive = &component.alive;
    let file = || alive.files.iter().find(|path| has_file(state, path));
    let link = || link(&alive.links, state);
    let pod = pod(component, state, SYSTEM);
    pod.map(|pod| format!("the kubelet keeps its pod {pod} here"))
        .or_else(|| file().map(|path| format!("{path} is there")))
        .or_else(|| network(component, state, true).map(|path| format!("{path} is in use")))
        .or_else(|| link().map(|link| format!("the link {} is there", link.name)))
}

/// A pod of the component that the kubelet keeps on this node, in one of these namespaces if any are
/// given.
fn pod<'a>(component: &Component, state: &'a NodeState, namespaces: &[&str]) -> Option<&'a str> {
    let patterns = expressions(&component.alive.pods);
    let folder = format!("files{PODS}/");
    let folders = state.files.range(folder.clone()..).map(|(name, _)| name);
    // Without a kubelet nobody would delete the folder.
    kubelet(state.processes.as_deref().unwrap_or_default())?;
    let pods = folders.map_while(|name| name.strip_prefix(&folder)?.split_once('_'));
    let mut pods = pods.filter_map(|(namespace, rest)| {
        let is_of = namespaces.is_empty() || namespaces.contains(&namespace);
        rest.split('_').next().filter(|_| is_of)
    });
    pods.find(|pod| patterns.iter().any(|p| p.is_match(pod)))
}

/// The file that configures a plugin of the component for new pods, or one that does not any more.
fn network<'a>(component: &Component, state: &'a NodeState, is_used: bool) -> Option<&'a str> {
    let plugins = &component.alive.plugins;
    let mut networks = networks(state).into_iter().filter(|network| network.is_used == is_used);
    networks.find(|n| plugins.iter().any(|kind| n.has_plugin(kind))).map(|n| n.path)
}

/// Why a configuration or a pod of the component may have been missed.
fn unread(component: &Component, state: &NodeState) -> Option<String> {
    if !component.alive.pods.is_empty() && state.file(PODS).is_some() {
        return Some(format!("the pods in {PODS} are not known"));
    }
    let networks = networks(state);
    let mut unread = networks.iter().filter(|network| network.config.is_err());
    let unread = unread.find(|_| !component.alive.plugins.is_empty())?;
    Some(format!("{} is there, and what it configures is not known", unread.path))
}

/// What of the component is on the node and may outlive it.
fn trace(component: &Component, state: &NodeState) -> Option<String> {
    let traces = &component.alive.outlived_by;
    let file = || traces.files.iter().find(|path| has_file(state, path) && !is_idle(state, path));
    file()
        .cloned()
        .or_else(|| link(&traces.links, state).map(|link| format!("the link {}", link.name)))
        .or_else(|| network(component, state, false).map(|path| format!("{path}, not in use")))
        .or_else(|| pod(component, state, &[]).map(|pod| format!("a pod called {pod}")))
}

/// Whether the file is flannel's lease, and nothing on the node is in flannel's network: no link has
/// an address of it, no route leads there.
fn is_idle(state: &NodeState, path: &str) -> bool {
    let Some(lease) = state.flannel.as_ref().filter(|_| path == SUBNET_ENV) else { return false };
    let has = |addr| lease.networks.iter().any(|network| network.contains(&addr));
    let addresses = || state.links.iter().flat_map(|link| &link.addresses).map(|a| a.addr());
    let routes = || state.routes.iter().filter_map(|route| route.dst.split('/').next());
    let leads = |dst: &str| dst.parse().is_ok_and(has);
    !state.routes.is_empty() && !addresses().any(has) && !routes().any(leads)
}

fn link<'a>(patterns: &[String], state: &'a NodeState) -> Option<&'a Link> {
    let expressions = expressions(patterns);
    state.links.iter().find(|link| expressions.iter().any(|e| e.is_match(&link.name)))
}

/// The compiled patterns. The catalogue has already checked them, so an invalid one is skipped, not
/// reported.
fn expressions(patterns: &[String]) -> Vec<Expression> {
    patterns.iter().filter_map(|pattern| Expression::new(pattern).ok()).collect()
}

/// True if the state has a file with that path or a path below it, or may have: a folder above it was
/// not read, and stands for what is in it.
fn has_file(state: &NodeState, path: &str) -> bool {
    let key = format!("files{path}");
    let above = Path::new(path).ancestors().skip(1).filter_map(Path::to_str);
    let is_unread = |folder: &str| state.file(folder).is_some_and(str::is_empty);
    if above.into_iter().any(is_unread) {
        return true;
    }
    let below = format!("{key}/");
    state.files.contains_key(&key)
        || state.files.range(below.clone()..).next().is_some_and(|(k, _)| k.starts_with(&below))
}
