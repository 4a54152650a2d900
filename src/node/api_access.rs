//! Reads how kube-proxy reaches the API server on this node, and by which credentials.
//!
//! Only files count that nobody but root can have put there. Credentials rotate, so they are read
//! anew for each request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::foreign::{Allowance, Root};
use crate::api::access::ApiAccess;
use crate::api::kubeconfig::{Kubeconfig, Material};
use crate::error::{Error, Kind, Result};
use crate::state::kube_proxy::controller::StaticPod;
use crate::state::kube_proxy::edit::{command_line, host_path};
use crate::state::kube_proxy::{ConfigSource, Controller, kubeconfig_of_file, kubeconfig_of_flags};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// Where kube-proxy's credentials are. Holds paths and no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiSource {
    /// The path of the kubeconfig on this node.
    kubeconfig: PathBuf,
    /// The paths on this node of the files that the kubeconfig names, by the paths that it names; none
    /// if these are the same.
    files: Option<BTreeMap<PathBuf, PathBuf>>,
}

impl ApiSource {
    /// A kubeconfig that names files by their paths on this node.
    pub fn of_host(kubeconfig: PathBuf) -> ApiSource {
        ApiSource { kubeconfig, files: None }
    }
}

/// Finds where the credentials of the kube-proxy are that `controller` runs and `source` configures; of
/// a DaemonSet's, those of the kubelet.
///
/// # Errors
/// When its configuration names no kubeconfig; and when the kubeconfig, or what it names, cannot be
/// read or is not supported.
pub fn find(controller: &Controller, source: &ConfigSource) -> Result<ApiSource> {
    // The service account of a pod ends with the pod, and so while kube-proxy moves.
    if let Controller::DaemonSet(pair) = controller {
        let source = ApiSource::of_host(pair.kubeconfig.clone());
        return read(&source).map(|_| source);
    }
    let manifest = match controller {
        Controller::StaticPod(StaticPod { manifest }) => {
            let name = manifest.display().to_string();
            let text = trusted(manifest)?;
            Some((name, text))
        }
        _ => None,
    };
    let on_node = |path: &Path| match &manifest {
        Some((name, text)) => host_path(name, text, &path.to_string_lossy()),
        None => Ok(path.to_owned()),
    };
    let named = match (source, &manifest) {
        (ConfigSource::File(path), _) => {
            kubeconfig_of_file(&path.display().to_string(), &trusted(path)?)?
        }
        (ConfigSource::Manifest(_), Some((name, text))) => {
            kubeconfig_of_flags(&command_line(name, text)?)
        }
        (ConfigSource::Manifest(_), None) | (ConfigSource::ConfigMap(_), _) => None,
    };
    let inside = named.ok_or_else(|| {
        let cause = "names no kubeconfig for kube-proxy";
        Error::new(Kind::NotFound, source.to_string(), cause)
    })?;
    if !inside.is_absolute() {
        let cause = "names a kubeconfig by a path that is not absolute";
        return Err(Error::new(Kind::Parse, source.to_string(), cause));
    }
    let kubeconfig = on_node(&inside)?;
    let parsed = parse(&kubeconfig)?;
    let files = match manifest {
        None => None,
        Some(_) => {
            let named = parsed.files().map(|path| beside(&inside, path));
            Some(named.map(|path| Ok((path.clone(), on_node(&path)?))).collect::<Result<_>>()?)
        }
    };
    // What is relative is beside the kubeconfig as the container has it.
    let source = ApiSource { kubeconfig, files };
    read(&source).map(|_| source)
}

/// Reads the address of the API server, and the credentials as they are now.
///
/// # Errors
/// When one of the files cannot be read, or is not supported.
pub fn read(source: &ApiSource) -> Result<ApiAccess> {
    let ApiSource { kubeconfig, files } = source;
    let parsed = parse(kubeconfig)?;
    let text = |material: &Material| match material {
        Material::Inline(text) => Ok(text.clone()),
        Material::File(path) => trusted(&path_on_node(kubeconfig, files.as_ref(), path)?),
    };
    let client = match &parsed.client {
        // A kubelet has both in one file, and another one in its place after each rotation.
        Some((certificate, key)) if certificate == key => {
            let both = text(certificate)?;
            Some((both.clone(), both))
        }
        Some((certificate, key)) => Some((text(certificate)?, text(key)?)),
        None => None,
    };
    let token = parsed.token.as_ref().map(text).transpose()?;
    Ok(ApiAccess {
        whose: kubeconfig.display().to_string(),
        authorities: text(&parsed.authorities)?,
        client,
        token,
        server: parsed.server,
    })
}

/// The path on this node of a file that the kubeconfig names.
fn path_on_node(
    kubeconfig: &Path,
    files: Option<&BTreeMap<PathBuf, PathBuf>>,
    named: &Path,
) -> Result<PathBuf> {
    let Some(files) = files else { return Ok(beside(kubeconfig, named)) };
    let mut known = files.iter().filter(|(inside, _)| inside.ends_with(named));
    known.next().map(|(_, path)| path.clone()).ok_or_else(|| {
        let cause = "its kubeconfig has not named it before";
        Error::new(Kind::NotFound, named.display().to_string(), cause)
    })
}

/// The path `named` in the kubeconfig at `kubeconfig`.
fn beside(kubeconfig: &Path, named: &Path) -> PathBuf {
    kubeconfig.parent().unwrap_or(Path::new("/")).join(named)
}

fn parse(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::parse(&path.display().to_string(), &trusted(path)?, None)
}

/// The text of a file that nobody but root can have put there.
fn trusted(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    let root = Root::of_root_alone().map_err(|e| Error::io(path, &e))?;
    let text = root.text(&name, LIMIT, &mut Allowance::of_a_capture());
    match text {
        Ok(Some(text)) => Ok(text),
        Ok(None) => Err(Error::new(Kind::NotFound, name, "does not exist")),
        Err(why) => Err(Error::new(Kind::Permission, name, format!("is not read: {why}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    const KUBECONFIG: &str = "current-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://10.20.0.1:6443', \
        certificate-authority: ca.crt}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}]\n\
        users: [{name: u, user: {tokenFile: /c/token}}]\n";

    #[test]
    fn the_files_of_a_static_pod_are_those_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let host = dir.path().display();
        fs::write(at("k.conf"), KUBECONFIG).unwrap();
        fs::write(at("ca.crt"), "authority").unwrap();
        fs::write(at("token"), "first").unwrap();
        let config = "kind: KubeProxyConfiguration\nclientConnection: {kubeconfig: /c/k.conf}\n";
        fs::write(at("config.conf"), config).unwrap();
        let manifest = format!(
            "spec:\n  containers:\n  - name: kube-proxy\n    command: [kube-proxy, \
             --kubeconfig=/c/k.conf]\n    volumeMounts:\n    - {{name: c, mountPath: /c}}\n  \
             volumes:\n  - {{name: c, hostPath: {{path: {host}}}}}\n"
        );
        fs::write(at("kube-proxy.yaml"), manifest).unwrap();
        let pod = Controller::StaticPod(StaticPod { manifest: at("kube-proxy.yaml") });
        for source in
            [ConfigSource::File(at("config.conf")), ConfigSource::Manifest(at("kube-proxy.yaml"))]
        {
            let found = find(&pod, &source).unwrap();
            assert_eq!(found.kubeconfig, at("k.conf"));
            let access = read(&found).unwrap();
            assert_eq!(access.server, "https://10.20.0.1:6443");
            assert_eq!(access.authorities, "authority");
            assert_eq!(access.token.as_deref(), Some("first"));
            // A token rotates, and its folder goes with the manifest when kube-proxy is stopped.
            fs::write(at("token"), "second").unwrap();
            let kept: ApiSource =
                serde_json::from_str(&serde_json::to_string(&found).unwrap()).unwrap();
            assert_eq!(read(&kept).unwrap().token.as_deref(), Some("second"));
            fs::write(at("token"), "first").unwrap();
        }
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let unit = serde_json::from_str(r#"{"systemd": "kube-proxy.service"}"#).unwrap();
        let source = ConfigSource::File(at("config.conf"));
        let found = |config: &str| {
            fs::write(at("config.conf"), config).unwrap();
            find(&unit, &source).unwrap_err().to_string()
        };
        assert!(found("kind: KubeProxyConfiguration\n").contains("names no kubeconfig"));
        let named = format!("clientConnection: {{kubeconfig: {}}}\n", at("k.conf").display());
        assert!(found(&named).ends_with("k.conf: does not exist"));
        fs::write(at("k.conf"), KUBECONFIG.replace("tokenFile: /c/token", "exec: {}")).unwrap();
        assert!(found(&named).contains("`exec`"));
        fs::write(at("k.conf"), KUBECONFIG.replace("/c/token", "token")).unwrap();
        fs::write(at("token"), "first").unwrap();
        let error = found(&named);
        assert!(error.ends_with("ca.crt: does not exist"), "{error}");
        assert!(found("clientConnection: {kubeconfig: k.conf}\n").contains("not absolute"));
    }

    #[test]
    fn what_others_may_have_put_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("shared/own")).unwrap();
        fs::write(at("shared/own/file"), "x").unwrap();
        symlink("shared/own/file", at("link")).unwrap();
        let mode = |path: &str, mode| {
            fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        let read = || trusted(&at("link")).map_err(|e| e.to_string());
        for (name, bits) in [("shared", 0o755), ("shared/own", 0o700), ("shared/own/file", 0o600)] {
            mode(name, bits);
        }
        assert_eq!(read(), Ok("x".into()));
        // In a folder like /tmp nobody can replace what is root's.
        mode("shared", 0o1777);
        assert_eq!(read(), Ok("x".into()));
        let is_refused = || read().is_err_and(|e| e.ends_with("not only root can write to it"));
        for (name, before, wrong) in [
            ("shared", 0o755, 0o777),
            ("shared/own", 0o755, 0o775),
            ("shared/own/file", 0o644, 0o646),
        ] {
            mode("shared", 0o755);
            mode(name, wrong);
            assert!(is_refused(), "{name}: {:?}", read());
            mode(name, before);
        }
        chown(at("shared/own"), Some(65534), None).unwrap();
        assert!(is_refused(), "{:?}", read());
    }
}
