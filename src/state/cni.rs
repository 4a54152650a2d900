//! flannel's `subnet.env` and the CNI configurations.
