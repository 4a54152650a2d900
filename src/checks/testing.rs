//! What the tests of checks share: captured nodes, and a check's judgement of one.

use std::path::Path;

use super::{Check, Facts, Verdict};
use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::Ownership;
use crate::state::kube_proxy::Mode;
use crate::state::live_facts::LiveFacts;
use crate::state::{Files, NodeState};

/// A captured node of `snapshots/`.
pub fn node(name: &str) -> NodeState {
    changed(name, |_| {})
}

/// The files of a captured node, to be changed before they are parsed.
pub struct Changes(Files);

impl Changes {
    /// Replaces text that must be there.
    pub fn replace(&mut self, file: &str, from: &str, to: &str) {
        let text = self.0[file].to_string();
        assert!(text.contains(from), "{file} has no `{from}`");
        self.put(file, &text.replace(from, to));
    }

    /// Puts a file there.
    pub fn put(&mut self, file: &str, text: &str) {
        self.0.insert(file.into(), text.into());
    }

    /// Takes a file, or all below a folder, away.
    pub fn remove(&mut self, file: &str) {
        let held = self.0.len();
        let below = format!("{file}/");
        self.0.retain(|name, _| name != file && !name.starts_with(&below));
        assert!(self.0.len() < held, "no {file}");
    }
}

/// A captured node with some files changed.
pub fn changed(name: &str, change: impl FnOnce(&mut Changes)) -> NodeState {
    let dir = Path::new("snapshots").join(name);
    let mut files = Files::new();
    read(&dir, &dir, &mut files);
    let mut changes = Changes(files);
    change(&mut changes);
    NodeState::parse(changes.0).expect("a captured node parses")
}

fn read(root: &Path, dir: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(dir).expect("a captured node") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("below").display().to_string();
            files.insert(name, std::fs::read_to_string(&path).expect("text").into());
        }
    }
}

/// What `check` says of `state`.
pub fn judged(check: &Check, state: &NodeState) -> Verdict {
    judged_to(check, state, None)
}

/// What `check` says of `state` on the way to a mode.
pub fn judged_to(check: &Check, state: &NodeState, to: Option<Mode>) -> Verdict {
    with_facts(state, to, |facts| {
        assert!((check.applies)(facts), "{} does not apply", check.id);
        (check.judge)(facts)
    })
}

/// Calls `work` with the facts of `state`, to be changed at will.
pub fn with_facts<T>(
    state: &NodeState,
    to: Option<Mode>,
    work: impl FnOnce(&mut Facts<'_>) -> T,
) -> T {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let ownership = Ownership::of(&catalogue, state);
    work(&mut Facts::of(state, &catalogue, &ownership, to))
}

/// What `check` says of `state` with an earlier look and a live node's answers.
pub fn judged_with(
    check: &Check,
    state: &NodeState,
    to: Option<Mode>,
    earlier: Option<&NodeState>,
    live: Option<&LiveFacts>,
) -> Verdict {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let ownership = Ownership::of(&catalogue, state);
    let facts = Facts { earlier, live, ..Facts::of(state, &catalogue, &ownership, to) };
    assert!((check.applies)(&facts), "{} does not apply", check.id);
    (check.judge)(&facts)
}

/// What `check` says of `state`, `seconds` after `earlier`.
pub fn judged_after(
    check: &Check,
    state: &NodeState,
    earlier: &NodeState,
    seconds: u64,
) -> Verdict {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let ownership = Ownership::of(&catalogue, state);
    let interval = Some(std::time::Duration::from_secs(seconds));
    let facts = Facts::of(state, &catalogue, &ownership, None);
    (check.judge)(&Facts { earlier: Some(earlier), interval, ..facts })
}

/// What `check` says of `state` with a live node's answers.
pub fn judged_live(
    check: &Check,
    state: &NodeState,
    asked: &crate::state::live_facts::LiveFacts,
) -> Verdict {
    let catalogue = Catalogue::builtin().expect("the catalogue");
    let ownership = Ownership::of(&catalogue, state);
    (check.judge)(&Facts { live: Some(asked), ..Facts::of(state, &catalogue, &ownership, None) })
}
