//! Which mode of kube-proxy runs.
