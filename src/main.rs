//! Arguments → command, or task of Ansible's → exit code.

use std::process::ExitCode;

use clap::Parser;
use proxyshift::front::ansible;
use proxyshift::front::cli;
use proxyshift::front::cli::args::Args;

fn main() -> ExitCode {
    proxyshift::allocator::give_back_early();
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(task) = ansible::task(&words) {
        return ExitCode::from(ansible::run(&task));
    }
    ExitCode::from(match Args::try_parse_from(&words) {
        Ok(args) => cli::run(&args),
        Err(error) => cli::usage::told(&error, &words),
    })
}
