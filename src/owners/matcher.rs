//! Gives every object of a node state exactly one owner, or `unknown`.
