//! The command line: one file for each verb.

pub mod args;
pub(super) mod check;
pub(super) mod cleanup;
pub(super) mod cluster;
pub mod cluster_args;
pub(super) mod command;
pub mod completions;
pub(super) mod confirm;
pub(super) mod confirm_prompt;
pub(super) mod guard;
mod help;
pub(super) mod migrate;
pub(super) mod output;
pub(super) mod plan;
pub(super) mod rehearse;
pub(super) mod report;
pub(super) mod rollback;
pub(super) mod signals;
pub(super) mod snapshot;
pub(super) mod status;
mod target;
pub mod usage;
pub(super) mod watchdog;
pub(super) mod write_config;
