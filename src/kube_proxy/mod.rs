//! kube-proxy in its modes: the running mode, the services it serves, and the takeover by a new
//! mode.
//!
//! Every difference between modes is in [`mode`], which has one file for each mode.

pub mod api_services;
pub mod bridge;
pub mod convergence;
pub mod gap;
pub mod mode;
pub mod parity;
pub mod proxy_state;
pub mod reach;
pub mod running;
pub mod services;
pub mod stale_entries;
pub mod startup;
pub mod takeover;
