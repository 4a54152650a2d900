//! proxyshift moves a Kubernetes node's kube-proxy from one mode to another without breaking
//! anything that is not kube-proxy's, and brings the node back when something goes wrong.
//!
//! ```text
//!             capture                     pure functions of data                 the only code that changes a node
//!  live node ─────────► NodeState ──► owners ──► plan (edits) ──► run: rehearse → apply → verify
//!  snapshot  ─────────►     └───────► store ◄───────────────────── rollback (a plan like any other) ◄── journal
//! ```
//!
//! Imports run one way: `event error yaml clock here interrupt memory ← state ← owners ← plan`; `state ← node`,
//! `state ← store`; `plan, node ← apply`; all of these `← run ← cli`; `event ← ui ← cli`.
//! `tests/layers.rs` holds the code to it.

pub mod apply;
pub mod checks;
pub mod cli;
pub mod clock;
pub mod error;
pub mod event;
pub mod here;
pub mod interrupt;
pub mod memory;
pub mod node;
pub mod owners;
pub mod plan;
pub mod run;
pub mod state;
pub mod store;
pub mod ui;
pub mod yaml;
