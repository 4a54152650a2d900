//! proxyshift moves a Kubernetes node's kube-proxy from one mode to another without breaking
//! anything foreign, and restores the node when something fails.
//!
//! ```text
//!             capture                     pure functions of data                 the only code that changes a node
//!  live node ─────────► NodeState ──► owners ──► plan (edits) ──► run: rehearse → apply → verify
//!  snapshot  ─────────►     └───────► store ◄───────────────────── rollback (a plan like any other) ◄── journal
//! ```
//!
//! Imports go one way only: `event error yaml clock runtime interrupt visible allocator ← state ←
//! owners ← kube_proxy ← plan ← checks`; `plan ← cluster`; `state ← api`; `owners, api ← node`;
//! `state ← store`; `cluster, node ← apply`;
//! `checks, store, apply ← run, guard`; all of these `← front`; `event ← ui ← front`. The test
//! `tests/layers` verifies that.

pub mod allocator;
pub mod api;
pub mod apply;
pub mod checks;
pub mod clock;
pub mod cluster;
pub mod error;
pub mod event;
pub mod front;
pub mod guard;
pub mod interrupt;
pub mod kube_proxy;
pub mod node;
pub mod owners;
pub mod plan;
pub mod run;
pub mod runtime;
pub mod state;
pub mod store;
pub mod ui;
pub mod visible;
pub mod yaml;

// The code that loads captured nodes names the crate `proxyshift` also in unit tests, because
// integration tests use the same code.
#[cfg(test)]
extern crate self as proxyshift;
