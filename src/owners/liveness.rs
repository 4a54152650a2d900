//! Liveness: whether a component is alive on the node, and the evidence.

use crate::owners::component::Component;
use crate::owners::expression::Expression;
use crate::state::{NodeState, multicall};

/// Whether a component is alive on this node, with the evidence as a phrase for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Liveness {
    /// Alive: one of the component's processes, links or files exists.
    Alive(String),
    /// Gone: the state has the node's processes and links, but none of the component's processes,
    /// links and files.
    Gone(String),
    /// Unknown: nothing shows that the component is alive, but either the state lacks the node's
    /// processes or links, or the catalogue lists no process of the component, or a process that
    /// does not count has the component's name.
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

    /// The evidence, as a phrase for people.
    pub fn evidence(&self) -> &str {
        match self {
            Liveness::Alive(e) | Liveness::Gone(e) | Liveness::Unknown(e) => e,
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
    if let Some(file) = alive.files.iter().find(|path| has_file(state, path)) {
        return Liveness::Alive(format!("{file} is there"));
    }
    // The catalogue has already checked these expressions, so an invalid one is skipped, not
    // reported.
    let expressions: Vec<Expression> =
        alive.links.iter().filter_map(|p| Expression::new(p).ok()).collect();
    let link = |l: &&crate::state::links::Link| expressions.iter().any(|e| e.is_match(&l.name));
    if let Some(link) = state.links.iter().find(link) {
        return Liveness::Alive(format!("the link {} is there", link.name));
    }
    // Anybody can give a process that name. But the component may also run with fewer rights than
    // root has, as podman's aardvark-dns does. So the name shows nothing, and permits nothing.
    let is_listed = |name: &str| alive.processes.iter().any(|listed| listed == name);
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
    match (&state.processes, state.links.is_empty()) {
        (None, _) => Liveness::Unknown("the processes are not in this state".into()),
        (_, true) => Liveness::Unknown("the links are not in this state".into()),
        _ => Liveness::Gone(format!("no process, link or file of {name} is left")),
    }
}

/// A running process of the component, if there is one.
pub fn process<'a>(
    component: &Component,
    state: &'a NodeState,
) -> Option<&'a crate::state::tools::Process> {
    let listed = |p: &&crate::state::tools::Process| component.alive.processes.contains(&p.name);
    state.processes.iter().flatten().find(listed)
}

/// True if the state has a file with that path or a path below it.
fn has_file(state: &NodeState, path: &str) -> bool {
    let key = format!("files{path}");
    let below = format!("{key}/");
    state.files.contains_key(&key)
        || state.files.range(below.clone()..).next().is_some_and(|(k, _)| k.starts_with(&below))
}
