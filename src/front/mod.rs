//! Front ends: the command line, the Ansible module, the wizard.

pub mod ansible;
pub mod cli;
mod wizard;
