//! proxyshift as an Ansible module: started by the test alone, and by the real Ansible over real
//! ssh.
//!
//! `make test` first prepares what these tests need: what `tests/ansible/setup` installs, and the
//! output of `make dist`, in a folder of its own.

#[path = "../common/mod.rs"]
mod common;

mod collection;
mod fleet;
mod hosts;
mod module;
mod playbooks;
mod site;
