//! The program as an Ansible module: alone, and under the real Ansible over the real ssh.
//!
//! What they need, `make test` gets first: `tests/ansible/setup`, and what `make dist` makes, in a place
//! of its own.

#[path = "../common/mod.rs"]
mod common;

mod collection;
mod fleet;
mod hosts;
mod module;
mod playbooks;
mod site;
