//! Detects kube-proxy as a static pod, whose manifest is a file of this node.

use std::path::{Path, PathBuf};

use super::kind::{Origin, ReadController};
use crate::error::{Error, Kind, Result};
use crate::node::files;
use crate::node::foreign::{Allowance, Root};
use crate::state::cgroup;
use crate::state::kube_proxy::controller::StaticPod;
use crate::state::kube_proxy::edit::{host_path, runs_kube_proxy};
use crate::state::kube_proxy::{CommandLine, ConfigSource, Controller};
use crate::state::tools::Process;

/// The default folder of kubelet's static pod manifests, below the root.
pub(super) const MANIFESTS: &str = "etc/kubernetes/manifests";

/// The size up to which a manifest is read, in bytes.
const LARGEST: u64 = 64 << 10;

pub(super) fn detect(origin: &Origin<'_>) -> Result<Option<Controller>> {
    if !origin.is_pod() {
        return Ok(None);
    }
    let mut found = manifests(&origin.root.join(MANIFESTS));
    let Some(manifest) = found.pop() else { return Ok(None) };
    if let Some(other) = found.pop() {
        let cause = format!("both {} and {} run kube-proxy", other.display(), manifest.display());
        return Err(
            Error::new(Kind::NotFound, &origin.object, cause).hint("take the wrong one away")
        );
    }
    Ok(Some(Controller::StaticPod(StaticPod { manifest })))
}

/// The manifests in a folder that run kube-proxy. Files whose names begin with a dot are skipped,
/// as kubelet skips them.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let Ok(root) = Root::ours() else { return Vec::new() };
    let folder = folder.to_string_lossy();
    let mut allowance = Allowance::of_a_capture();
    let mut runs = |path: &String| {
        root.text(path, LARGEST, &mut allowance)
            .is_ok_and(|text| text.is_some_and(|text| runs_kube_proxy(&text)))
    };
    let names = root.names(&folder).unwrap_or_default().into_iter();
    let paths = names.filter(|name| !name.starts_with('.')).map(|name| format!("{folder}/{name}"));
    paths.filter(|path| runs(path)).map(PathBuf::from).collect()
}

impl ReadController for StaticPod {
    /// Any pod's kube-proxy, because a cgroup does not name the manifest of its pod.
    fn owns(&self, text: &str) -> bool {
        cgroup::is_pod(&cgroup::paths(text))
    }

    fn config_source(&self, _: &Process, line: CommandLine) -> Result<ConfigSource> {
        let Some(config) = line.config else {
            return Ok(ConfigSource::Manifest(self.manifest.clone()));
        };
        let name = self.manifest.display().to_string();
        let text = files::read(&self.manifest)?.ok_or_else(|| {
            Error::new(Kind::NotFound, name.as_str(), "no such manifest of a static pod")
        })?;
        Ok(ConfigSource::File(host_path(&name, &text, &config)?))
    }
}
