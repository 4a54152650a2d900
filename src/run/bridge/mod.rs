//! The bridge of a run while somebody waits for kube-proxy: it is put back where it is gone, and follows
//! the API server.

pub(super) mod files;
pub(super) mod follow;
pub(super) mod keeper;
