//! When two states mean the same.
