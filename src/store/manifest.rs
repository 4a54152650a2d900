//! What a snapshot says of itself, and its checksums.
