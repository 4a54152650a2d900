//! kubeadm's DaemonSet, arranged so that nodes move one by one: what a cluster has, what is to be
//! written there, and what must not be. Pure functions of what the API server says.
//!
//! Each node is either one of the original DaemonSet, or, by the label `proxyshift.dev/mode`, one of a
//! second DaemonSet in the other mode. docs/cluster.md has the objects.

pub mod admission;
mod affinity;
mod arrangement;
mod config;
pub mod intent;
pub mod overview;
pub mod refusal;
pub mod state;
#[cfg(test)]
mod tests;

pub use affinity::{excludes, requires};
pub use arrangement::{ArrangementFlaw, verify};
pub use config::ConfigLocation;
