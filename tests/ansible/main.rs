//! The program as an Ansible module: alone, and under the real Ansible over the real ssh.
//!
//! `make test` prepares the requirements first: `tests/ansible/setup`, and the output of `make
//! dist`, in a folder of its own.

#[path = "../common/mod.rs"]
mod common;

mod collection;
mod fleet;
mod hosts;
mod module;
mod playbooks;
mod site;
