//! Whether a component lives on the node, and what shows it.

use crate::owners::component::Component;
use crate::owners::expression::Expression;
use crate::state::NodeState;

/// Whether a component lives here, with the evidence in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Liveness {
    /// It does: something of it runs or stands ready.
    Alive(String),
    /// It does not: everything that would show it is known to be missing.
    Gone(String),
    /// The state does not say.
    Unknown(String),
}

impl Liveness {
    /// True if it is known to live.
    pub fn is_alive(&self) -> bool {
        matches!(self, Liveness::Alive(_))
    }

    /// True if it is known to be gone.
    pub fn is_gone(&self) -> bool {
        matches!(self, Liveness::Gone(_))
    }

    /// The evidence, in words.
    pub fn evidence(&self) -> &str {
        match self {
            Liveness::Alive(e) | Liveness::Gone(e) | Liveness::Unknown(e) => e,
        }
    }
}

/// Whether a component lives on the node.
pub fn liveness(component: &Component, state: &NodeState) -> Liveness {
    let alive = &component.alive;
    let name = &component.name;
    if let Some(process) = process(component, state) {
        return Liveness::Alive(format!("process {} ({}) runs", process.name, process.pid));
    }
    if let Some(file) = alive.files.iter().find(|path| has_file(state, path)) {
        return Liveness::Alive(format!("{file} is there"));
    }
    // Compiled at load; the name alone is not a reason to fail here.
    let expressions: Vec<Expression> =
        alive.links.iter().filter_map(|p| Expression::new(p).ok()).collect();
    let link = |l: &&crate::state::links::Link| expressions.iter().any(|e| e.is_match(&l.name));
    if let Some(link) = state.links.iter().find(link) {
        return Liveness::Alive(format!("the link {} is there", link.name));
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

/// The process of a component that runs, if one does.
pub fn process<'a>(
    component: &Component,
    state: &'a NodeState,
) -> Option<&'a crate::state::tools::Process> {
    let listed = |p: &&crate::state::tools::Process| component.alive.processes.contains(&p.name);
    state.processes.iter().flatten().find(listed)
}

/// True for a captured file of that path, or below it.
fn has_file(state: &NodeState, path: &str) -> bool {
    let key = format!("files{path}");
    let below = format!("{key}/");
    state.files.contains_key(&key)
        || state.files.range(below.clone()..).next().is_some_and(|(k, _)| k.starts_with(&below))
}
