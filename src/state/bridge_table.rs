//! The names of the bridge's table in the kernel.

/// The name of the table, in each address family.
pub const TABLE: &str = "proxyshift-bridge";

/// The name of the counter of all connections that a bridge translates.
pub const TRANSLATED: &str = "translated";

/// What that counter counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Translated {
    /// The connections, by their first packets.
    pub packets: u64,
    /// The bytes of these packets.
    pub bytes: u64,
}
