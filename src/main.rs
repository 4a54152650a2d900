//! Arguments → command → exit code.

use std::process::ExitCode;

use clap::Parser;
use proxyshift::cli::{self, args::Args};

fn main() -> ExitCode {
    // clap prints its own usage errors and exits with 2, the documented code.
    ExitCode::from(cli::run(&Args::parse()))
}
