//! Arguments → command, or task of Ansible's → exit code.

use std::process::ExitCode;

use clap::Parser;
use proxyshift::cli::{self, ansible, args::Args};

fn main() -> ExitCode {
    if let Some(task) = ansible::task(std::env::args_os()) {
        return ExitCode::from(ansible::run(&task));
    }
    // clap prints its own usage errors and exits with 2, the documented code.
    ExitCode::from(cli::run(&Args::parse()))
}
