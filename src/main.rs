//! Arguments → command → exit code.

use std::process::ExitCode;

use clap::Parser;
use proxyshift::cli::{self, args::Args};

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    ExitCode::from(match Args::try_parse_from(&words) {
        Ok(args) => cli::run(&args),
        Err(error) => cli::usage::told(&error, &words),
    })
}
