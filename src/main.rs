//! Arguments → command → exit code.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::Parser;
use proxyshift::cli::{self, args::Args};

/// The C library gives large freed blocks back to the kernel only while this is set; left alone it
/// raises the limit with the first that is freed, and a large node's peak is half as high again.
const GIVE_BACK: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "131072");

fn main() -> ExitCode {
    if std::env::var_os(GIVE_BACK.0).is_none()
        && let Ok(own) = std::env::current_exe()
    {
        // It is read once, when a program starts. If that fails, all works with more memory.
        let mut args = std::env::args_os();
        let mut again = Command::new(own);
        again.arg0(args.next().unwrap_or_default()).args(args).env(GIVE_BACK.0, GIVE_BACK.1);
        let _ = again.exec();
    }
    // clap prints its own usage errors and exits with 2, the documented code.
    ExitCode::from(cli::run(&Args::parse()))
}
