//! What stages change besides objects of the kernel's: each is written into the journal, with what
//! undoes it.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::apply::files::swap;
use crate::apply::sysctl;
use crate::error::{Error, Kind, Result};
use crate::node::{kube_proxy_controller, sysctls};
use crate::plan::change::Change;
use crate::plan::playbook::ControllerChoice;
use crate::state::kube_proxy::Controller;
use crate::state::tools::Process;

/// The texts of kube-proxy's configuration in the run's folder.
pub(super) const BEFORE: &str = "settings.before";
pub(super) const AFTER: &str = "settings.after";

/// Undoes a change of a file or a sysctl, if it is still as the run made it. Whether it was one.
///
/// # Errors
/// [`Kind::LostRace`] when someone has changed it since; it is left as found.
pub(super) fn undo(change: &Change) -> Result<bool> {
    match change {
        Change::File { path, from, to } => swap(path, to.as_deref(), from.as_deref())?,
        Change::Sysctl { name, from: Some(from), to } => {
            match sysctls::value_of(name)?.as_deref() {
                Some(now) if now == from => {}
                Some(now) if now != to => {
                    let cause =
                        format!("is {now} now, neither {from} nor {to}; it is left as found");
                    return Err(Error::new(Kind::LostRace, name, cause));
                }
                _ => sysctl::set(name, from)?,
            }
        }
        // It came with a module, which stays loaded.
        Change::Sysctl { from: None, .. } => {}
        // The merge undoes edits, and the old configuration comes back before anything else.
        Change::Objects(_) | Change::Configuration { .. } | Change::Irreversible(_) => {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes a text into the run's folder, where only root reads it.
pub(super) fn write_private(path: &Path, text: &str) -> Result<()> {
    let io = |e: std::io::Error| Error::io(path, &e);
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.write(true).create(true).truncate(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

/// The controller that the playbook names, or the one that is found.
pub(super) fn controller(chosen: &ControllerChoice, process: &Process) -> Result<Controller> {
    match chosen {
        ControllerChoice::Auto => kube_proxy_controller::detect(process, Path::new("/")),
        ControllerChoice::Named(controller) => Ok(controller.clone()),
    }
}
