//! The files that the set-up scripts put into the cache of the user who runs the test.

use std::path::PathBuf;

/// The version of Kubernetes that Debian's source package has.
pub const OLD: &str = "1.20.2";

/// The folder for caches of the user who runs the test.
pub fn cache() -> PathBuf {
    std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache")
    })
}

/// A program or file that the VM tests need, such as `kube-proxy/kube-proxy` or `kernel/vmlinuz`.
/// Fails if the file is not in the cache.
pub fn cached(name: &str) -> PathBuf {
    let path = cache().join("proxyshift/vm").join(name);
    // Made absolute, so that the path means the same file from every working directory.
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}: run `make vm`", path.display()))
}

/// A program or file that a real cluster needs, such as `programs/containerd`. Fails if it is not in
/// the cache.
pub fn of_cluster(name: &str) -> PathBuf {
    let path = cache().join("proxyshift/cluster").join(name);
    path.canonicalize().unwrap_or_else(|e| panic!("{}: {e}: run `make cluster`", path.display()))
}

/// An image of the cluster's pods as a file, such as `pause-1`.
pub fn image(name: &str) -> PathBuf {
    of_cluster(&format!("images/{name}.tar"))
}

/// A program of this version of Kubernetes, such as `kube-proxy`. Fails if it is not in the cache.
pub fn kubernetes(version: &str, program: &str) -> PathBuf {
    if version == OLD {
        return cached(&format!("{program}-{version}/{program}"));
    }
    let path = cache().join("proxyshift/kubernetes").join(version).join(program);
    let there = path.canonicalize();
    there.unwrap_or_else(|e| panic!("{}: {e}: run `make kubernetes`", path.display()))
}
