//! Evidence that a component lives on the node.
