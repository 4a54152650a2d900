//! Locks that say who holds them.
