//! The snapshots in the store.
