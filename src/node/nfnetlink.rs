//! nf_tables over netlink: generations, dumps, and batches bound to a generation.
