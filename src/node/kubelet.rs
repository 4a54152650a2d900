//! The kubelet's own credentials, by which the node acts at the API server.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::api_access::{self, ApiSource};
use super::processes::{self, flag_value};
use crate::api::access::{ApiAccess, client_name};
use crate::api::{ApiClient, ApiFailure, ApiStatus};
use crate::error::{Error, Kind, Result};

/// The program's name.
const KUBELET: &str = "kubelet";

/// Where kubeadm writes the kubelet's kubeconfig, below the root.
const KUBECONFIG: &str = "etc/kubernetes/kubelet.conf";

/// What the name of a node's user begins with
/// (<https://kubernetes.io/docs/reference/access-authn-authz/node/>).
const USER: &str = "system:node:";

/// The path of the kubelet's kubeconfig: the one that the kubelet of this node was started with, or
/// kubeadm's. None if there is none. `root` is `/`, except in tests.
///
/// # Errors
/// When /proc cannot be read.
pub fn kubeconfig(root: &Path) -> Result<Option<PathBuf>> {
    let of_kubeadm = root.join(KUBECONFIG);
    if root != Path::new("/") {
        return Ok(of_kubeadm.exists().then_some(of_kubeadm));
    }
    let all = processes::arguments(KUBELET)?;
    let mut named = all.iter().filter_map(|args| flag_value(args, "--kubeconfig"));
    let named = named.next().map(PathBuf::from).filter(|path| path.is_absolute());
    Ok(named.or_else(|| of_kubeadm.exists().then_some(of_kubeadm)))
}

/// The credentials in the kubelet's kubeconfig as they are now: its certificate rotates.
///
/// # Errors
/// When a file cannot be read, or is not supported.
pub fn access(kubeconfig: &Path) -> Result<ApiAccess> {
    api_access::read(&ApiSource::of_host(kubeconfig.to_owned()))
}

/// A client with the kubelet's credentials as they are now.
fn client(kubeconfig: &Path) -> Result<ApiClient, ApiFailure> {
    let access = access(kubeconfig).map_err(|e| ApiFailure::Credentials(e.to_string()))?;
    ApiClient::new(&access)
}

/// The name of the Node that the credentials are of.
///
/// # Errors
/// [`Kind::Blocked`] if they are no node's.
pub fn node_name(kubeconfig: &Path) -> Result<String> {
    let access = access(kubeconfig)?;
    let certificate = access.client.as_ref().map(|(certificate, _)| certificate.as_str());
    let name = certificate.and_then(|text| client_name(text, USER));
    name.ok_or_else(|| {
        let cause = format!("has no certificate of a user {USER}NAME");
        Error::new(Kind::Blocked, kubeconfig.display().to_string(), cause)
    })
}

/// A client with the kubelet's credentials as they are now, which waits for nothing after `until`.
///
/// # Errors
/// Credentials that cannot be used.
pub fn client_until(kubeconfig: &Path, until: Instant) -> Result<ApiClient, ApiFailure> {
    client(kubeconfig).map(|client| client.until(until))
}

/// The pause before a request is made again.
const PAUSE: Duration = Duration::from_millis(500);

/// How long one request may take, however little time is left: a server may be slow.
const SLOW: Duration = Duration::from_secs(15);

/// What `request` yields with the kubelet's credentials. It is made again `within` that time while the
/// server is away or busy, or does not know the credentials, which are read anew each time. Ends at most
/// 15 s after that time, also by a server that says nothing.
///
/// # Errors
/// The last failure.
pub fn request<T>(
    kubeconfig: &Path,
    within: Duration,
    request: impl Fn(&ApiClient) -> Result<T, ApiFailure>,
) -> Result<T, ApiFailure> {
    let until = Instant::now() + within;
    loop {
        let timeout = until.saturating_duration_since(Instant::now()).max(SLOW);
        let client = client_until(kubeconfig, Instant::now() + timeout);
        let failure = match client.and_then(|client| request(&client)) {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if !(failure.may_pass() || is_of_credentials(&failure)) || Instant::now() + PAUSE > until {
            return Err(failure);
        }
        thread::sleep(PAUSE);
    }
}

/// Whether other credentials may be answered otherwise: the kubelet's are renewed now and then.
fn is_of_credentials(failure: &ApiFailure) -> bool {
    matches!(failure, ApiFailure::Credentials(_))
        || failure.status() == Some(ApiStatus::Unauthorized)
}

/// The error that the API server does not do what was asked of `object`.
pub fn error(object: &str, failure: &ApiFailure) -> Error {
    let error = Error::new(Kind::Blocked, object, failure);
    if is_of_credentials(failure) {
        return error.hint("the kubelet acts by the same credentials: does its log complain too?");
    }
    if failure.may_pass() {
        return error.hint("try again once the API server answers: nobody else moves this node");
    }
    error
}
