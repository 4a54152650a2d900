//! The verb `completions`: shell completions, generated from the definitions of the arguments.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::error::{Error, Kind, Result};
use crate::front::cli::args::Args;
use crate::front::cli::command::Invocation;
use crate::ui::OutputFormat;

pub(in crate::front) fn run(command: &Invocation<'_>, shell: Shell) -> Result<u8> {
    if command.ui.output == OutputFormat::Json {
        return Err(Error::new(Kind::Usage, "completions", "a script is no document")
            .hint("leave out -o json"));
    }
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut shown(), "proxyshift", &mut script);
    command.ui.print_script(&String::from_utf8_lossy(&script));
    Ok(0)
}

/// The command line without the hidden verbs, which only proxyshift itself calls.
pub fn shown() -> clap::Command {
    let whole = Args::command();
    let mut shown = clap::Command::new("proxyshift")
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments())
        .subcommands(whole.get_subcommands().filter(|verb| !verb.is_hide_set()));
    if let (Some(about), Some(long)) = (whole.get_about(), whole.get_long_about()) {
        shown = shown.about(about.clone()).long_about(long.clone());
    }
    shown
}
