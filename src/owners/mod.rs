//! Who owns each object: the catalogue and the matcher.

pub mod catalogue;
pub mod life;
pub mod matcher;
