//! Passes the arguments to a command or an Ansible task, and turns the result into an exit code.

use std::process::ExitCode;

use clap::Parser;

use proxyshift::front;
use proxyshift::front::cli::args::Args;
use proxyshift::interrupt;

fn main() -> ExitCode {
    proxyshift::allocator::return_memory_early();
    interrupt::outlive_file_limits();
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(code) = front::launch(&words) {
        return ExitCode::from(code);
    }
    if let Some(task) = front::ansible::task(&words) {
        return ExitCode::from(front::ansible::run(&task));
    }
    ExitCode::from(match Args::try_parse_from(&words) {
        Ok(args) => front::run(&args),
        Err(error) => front::cli::usage::report(&error, &words),
    })
}
