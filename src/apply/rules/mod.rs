//! Edits rules, one table at a time: xtables tables in both backends, and native nf_tables tables.

pub(super) mod legacy;
pub(super) mod native;
pub(super) mod nft;
mod payload;
mod table;
