//! The capture of a node: every file of a node state, read from this namespace.
