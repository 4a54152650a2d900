//! Asks the live node what no file says. Nothing is changed, and no module is loaded.

mod proxy_mode;

use std::path::Path;

use crate::state::NodeState;
use crate::state::measured::Measured;

/// Asks what can be asked; `store` is the store's directory, if it is not the default one.
pub fn measure(state: &NodeState, _store: Option<&Path>) -> Measured {
    Measured {
        proxy_mode: proxy_mode::ask(state),
        privileged: rustix::process::geteuid().is_root(),
        ..Measured::default()
    }
}
