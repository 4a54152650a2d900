//! The names of the bridge's table in the kernel.

/// The name of the table, in each address family.
pub const TABLE: &str = "proxyshift-bridge";

/// The name of the counter of all connections that a bridge translates.
pub const TRANSLATED: &str = "translated";
