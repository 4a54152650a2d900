//! The systemd unit that undoes a migration after a reboot. It exists from the moment when the
//! run's watchdog is armed until the run is resolved.

use std::path::Path;

use crate::apply::systemd;
use crate::error::Result;
use crate::run::Context;
use crate::store::run::Run;

const UNIT: &str = "proxyshift-rollback.service";

/// Writes and enables the unit. It starts `program` with the store `store`.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write(program: &Path, store: &Path) -> Result<()> {
    systemd::write(UNIT, &text(program, store))?;
    systemd::enable(UNIT)
}

/// Removes the unit, if `run` is a migration; warns when that fails. A clean-up or a fix has no boot
/// unit and removes none, because the unit could be that of a pending migration in another network
/// namespace.
pub(super) fn remove(context: &Context<'_>, run: &Run) {
    if run.migration().is_none() {
        return;
    }
    if let Err(e) = systemd::remove(UNIT) {
        context.sink.warning(format!("the boot unit is still there: {e}"));
    }
}

fn text(program: &Path, store: &Path) -> String {
    format!(
        "# Written by proxyshift for a run that is not confirmed yet; it goes with the run.\n\
         [Unit]\n\
         Description=Undo what an unconfirmed proxyshift run changed before a reboot\n\
         After=local-fs.target network.target\n\
         Before=kubelet.service\n\n\
         [Service]\n\
         Type=oneshot\n\
         ExecStart={} --progress plain --store {} rollback\n\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        systemd::exec_path(program),
        systemd::exec_argument(store),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_the_program_with_the_store() {
        assert!(text(Path::new("/s %/runs/1/proxyshift"), Path::new("/s %")).contains(
            "ExecStart=\"/s %%/runs/1/proxyshift\" --progress plain --store \"/s %%\" rollback\n"
        ));
    }
}
