//! What becomes of the exit code when the result cannot be written.

use crate::front::cli::args::{Args, SnapshotVerb, Verb};
use crate::front::cli::command::Invocation;

/// The exit code of a verb that ended with `code`. A verb that only tells something, and cannot
/// tell it, has failed. For any other verb the code says what became of the node, so a failed
/// output is only warned of.
pub(in crate::front) fn checked(command: &Invocation<'_>, code: u8) -> u8 {
    let Some(error) = command.ui.output_error() else { return code };
    if code == 0 && only_tells(command.args) {
        return command.ui.error(&error.hint("nothing was changed; send the output elsewhere"));
    }
    command.sink().warning(format!("the result is not all written: {error}"));
    code
}

/// Whether the verb's output is all that it makes.
fn only_tells(args: &Args) -> bool {
    match &args.verb {
        Some(Verb::Check(options)) => !options.fix && options.write_config.is_none(),
        Some(Verb::Snapshot(verb)) => matches!(
            verb,
            SnapshotVerb::List
                | SnapshotVerb::Show { .. }
                | SnapshotVerb::Verify { .. }
                | SnapshotVerb::Diff { .. }
        ),
        Some(Verb::Cleanup(options)) => options.dry_run,
        Some(
            Verb::Plan(_)
            | Verb::Rehearse(_)
            | Verb::Status
            | Verb::Report(_)
            | Verb::Completions { .. },
        ) => true,
        _ => false,
    }
}
