//! kube-proxy in its modes: which one runs, what it serves, whether a new one has taken over.
//!
//! All that differs between modes is in [`mode`], one file a mode.

pub mod convergence;
pub mod mode;
pub mod parity;
pub mod running;
pub mod services;
pub mod takeover;

/// kube-proxy's name in the catalogue.
pub const NAME: &str = "kube-proxy";
