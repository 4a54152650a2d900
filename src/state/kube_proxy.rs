//! kube-proxy's configuration.
