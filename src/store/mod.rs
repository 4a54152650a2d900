//! The store: snapshots, runs, journals and locks. Files only; it knows nothing of the kernel.

pub mod archive;
pub mod journal;
pub mod lock;
pub mod manifest;
pub mod restore;
pub mod runs;
pub mod snapshots;
