//! The runs in the store.
