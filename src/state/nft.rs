//! `nft -j list table`: native nf_tables objects, kept as they are.
