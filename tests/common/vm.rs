//! The files that `make vm` put into this user's cache.

use std::path::PathBuf;

/// The cache of this user.
pub fn cache() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache")
    })
}

/// A program or file of the VM tests: `kube-proxy/kube-proxy`, `kernel/vmlinuz`. Fails if it is
/// not there.
pub fn cached(name: &str) -> PathBuf {
    let path = cache().join("proxyshift/vm").join(name);
    // Resolved, so that it is the same file from every working directory.
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}: run `make vm`", path.display()))
}
