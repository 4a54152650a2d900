//! Stops and starts kube-proxy as a static pod: kubelet stops the pod when its manifest disappears,
//! and starts it when the manifest appears.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Operate, Time, start_after, stop};
use crate::apply::files::{exchange, try_exchange};
use crate::error::{Error, Kind, Result};
use crate::node::kube_proxy_controller::ReadController;
use crate::state::kube_proxy::ConfigSource;
use crate::state::kube_proxy::controller::StaticPod;

impl Operate for StaticPod {
    /// Renames the manifest to `.NAME.stopped`, in the same folder.
    fn request_stop(&self, _within: Duration) -> Result<()> {
        rename(&self.manifest, &parked_path(&self.manifest))
    }

    /// Renames the manifest back from `.NAME.stopped`.
    fn request_start(&self, _within: Duration) -> Result<()> {
        rename(&parked_path(&self.manifest), &self.manifest)
    }

    fn log_and_hint(&self) -> (String, String) {
        let hint = "see kubelet's log, and /var/log/pods/kube-system_kube-proxy-*";
        (String::new(), hint.to_owned())
    }

    /// A manifest that is missing is an error even if no kube-proxy runs.
    fn stop_must_succeed(&self) -> bool {
        true
    }

    /// Stops the pod before the manifest is changed, because a kubelet whose manifest changes again
    /// while the old pod is ending may start the new pod twice (observed with 1.20.2). If the stop
    /// fails, the manifest is changed and put back all the same, because an undo needs both.
    fn configure(
        &self,
        source: &ConfigSource,
        from: &str,
        to: &str,
        within: Duration,
    ) -> Result<u32> {
        let before = self.processes()?;
        let stopped = stop(self, &before, &Time::new(within));
        let configured = self.exchange(source, from, to);
        start_after(self, stopped.and(configured), &before, within)
    }

    fn configure_stopped(&self, source: &ConfigSource, from: &str, to: &str) -> Result<()> {
        let configured = self.exchange(source, from, to);
        let parked = parked_path(&self.manifest);
        if parked.exists() {
            rename(&parked, &self.manifest)?;
        }
        configured
    }

    /// The manifest must be movable as well, because that is how the pod is stopped.
    fn can_configure(&self, source: &ConfigSource, _from: &str, _to: &str) -> Result<()> {
        try_exchange(source.path()?)?;
        if self.manifest != source.path()? {
            try_exchange(&self.manifest)?;
        }
        let parked = parked_path(&self.manifest);
        if self.is_in_place() && fs::symlink_metadata(&parked).is_ok() {
            let cause = "something has the name that the manifest gets while the pod is stopped";
            return Err(Error::new(Kind::Blocked, parked.display().to_string(), cause)
                .hint("find out what it is, and move it away"));
        }
        Ok(())
    }

    fn is_in_place(&self) -> bool {
        self.manifest.exists()
    }
}

impl StaticPod {
    /// Replaces the text of the configuration, wherever the manifest is now.
    fn exchange(&self, source: &ConfigSource, from: &str, to: &str) -> Result<()> {
        let path = source.path()?;
        exchange(&self.current_path(path), path, from, to)
    }

    /// The path at which the file `path` is now. It differs from `path` only for the manifest of a
    /// stopped pod, which is at [`parked_path`].
    fn current_path(&self, path: &Path) -> PathBuf {
        if self.manifest == path && !path.exists() {
            return parked_path(&self.manifest);
        }
        path.to_owned()
    }
}

/// The path of the manifest while the pod is stopped. The file's name begins with a dot, because
/// kubelet ignores such files.
fn parked_path(manifest: &Path) -> PathBuf {
    let name = manifest.file_name().unwrap_or_default().to_string_lossy();
    manifest.with_file_name(format!(".{name}.stopped"))
}

/// Renames a manifest, and syncs its folder. Succeeds without renaming if only `to` exists.
fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == ErrorKind::NotFound && to.exists() => return Ok(()),
        renamed => renamed.map_err(|e| Error::io(from, &e))?,
    }
    let folder = from.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, &e))
}
