//! Reads how an administrator reaches the API server: the kubeconfig that kubectl would take.
//!
//! The file is the caller's own, so whoever may read it may use it.

use std::env;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::api::access::ApiAccess;
use crate::api::kubeconfig::{Kubeconfig, Material};
use crate::error::{Error, Kind, Result};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 4 << 20;

/// The next step where a kubeconfig cannot be used.
const HINT: &str = "name one that holds a certificate or a token: --kubeconfig FILE, and --context \
                    NAME for another context than its current one";

/// Reads the address of the API server and the credentials: of the kubeconfig `named`, or of the one
/// that the environment variable KUBECONFIG names, or of `~/.kube/config`; of the context `context`, or
/// of the current one.
///
/// # Errors
/// When there is none, or more than one; when it, or what it names, cannot be read; and when it is not
/// supported, such as one that has a program give the credentials.
pub fn read(named: Option<&Path>, context: Option<&str>) -> Result<ApiAccess> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => find(env::var_os("KUBECONFIG"), env::home_dir())?,
    };
    let name = path.display().to_string();
    let parsed = Kubeconfig::parse(&name, &text_of(&path)?, context).map_err(|e| e.hint(HINT))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let text = |material: &Material| match material {
        Material::Inline(text) => Ok(text.clone()),
        Material::File(file) => text_of(&folder.join(file)),
    };
    let client = match &parsed.client {
        Some((certificate, key)) => Some((text(certificate)?, text(key)?)),
        None => None,
    };
    let token = parsed.token.as_ref().map(text).transpose()?;
    let authorities = text(&parsed.authorities)?;
    Ok(ApiAccess { whose: name, authorities, client, token, server: parsed.server })
}

/// The path of the kubeconfig, by the value of KUBECONFIG, which may be a list, and the home folder.
fn find(variable: Option<std::ffi::OsString>, home: Option<PathBuf>) -> Result<PathBuf> {
    let listed: Vec<PathBuf> =
        variable.as_deref().map(env::split_paths).into_iter().flatten().collect();
    let listed: Vec<PathBuf> =
        listed.into_iter().filter(|path| !path.as_os_str().is_empty()).collect();
    match &listed[..] {
        [] => {}
        [one] => return Ok(one.clone()),
        _ => {
            let cause = "names several files, which are not merged";
            return Err(Error::new(Kind::Usage, "KUBECONFIG", cause).hint(
                "write them into one, `kubectl config view --flatten --raw > FILE`, and name it: \
                 --kubeconfig FILE",
            ));
        }
    }
    let standard = home.map(|home| home.join(".kube/config")).filter(|path| path.exists());
    standard.ok_or_else(|| {
        let cause = "neither --kubeconfig nor KUBECONFIG names one, and there is no ~/.kube/config";
        Error::new(Kind::NotFound, "kubeconfig", cause)
            .hint("on a control plane node of kubeadm: --kubeconfig /etc/kubernetes/admin.conf")
    })
}

fn text_of(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| {
        let hint = "name a kubeconfig that you can read: --kubeconfig FILE";
        Error { hint: Some(hint.into()), ..Error::io(path, &e) }
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LIMIT {
        let cause = "is too large for a file of credentials";
        return Err(Error::new(Kind::Parse, path.display().to_string(), cause));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const KUBECONFIG: &str = "current-context: c\n\
        clusters: [{name: k, cluster: {server: 'https://10.20.0.1:6443', \
        certificate-authority: pki/ca.crt}}]\n\
        contexts: [{name: c, context: {cluster: k, user: u}}, {name: d, context: {cluster: k, \
        user: v}}]\n\
        users: [{name: u, user: {token: abc}}, {name: v, user: {exec: {command: aws}}}]\n";

    #[test]
    fn what_is_relative_is_beside_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        fs::write(&path, KUBECONFIG).unwrap();
        let failure = |context| read(Some(&path), context).err().map(|e| e.to_string());
        assert!(failure(None).is_some_and(|e| e.contains("pki/ca.crt")));
        fs::create_dir(dir.path().join("pki")).unwrap();
        fs::write(dir.path().join("pki/ca.crt"), "authority").unwrap();
        let access = read(Some(&path), None).unwrap();
        assert_eq!(access.authorities, "authority");
        assert_eq!(access.token.as_deref(), Some("abc"));
        assert_eq!(access.whose, path.display().to_string());
        assert!(failure(Some("d")).is_some_and(|e| e.contains("`exec` is not supported")));
        assert!(failure(Some("e")).is_some_and(|e| e.contains("no context of that name")));
    }

    #[test]
    fn the_variable_counts_before_the_home_folder() {
        let dir = tempfile::tempdir().unwrap();
        let home = || Some(dir.path().to_owned());
        assert!(find(None, home()).unwrap_err().to_string().contains("there is no ~/.kube/config"));
        fs::create_dir(dir.path().join(".kube")).unwrap();
        let standard = dir.path().join(".kube/config");
        fs::write(&standard, "").unwrap();
        assert_eq!(find(None, home()).unwrap(), standard);
        assert_eq!(find(Some("".into()), home()).unwrap(), standard);
        assert_eq!(find(Some(":/a".into()), home()).unwrap(), Path::new("/a"));
        assert!(find(Some("/a:/b".into()), home()).unwrap_err().to_string().contains("several"));
    }
}
