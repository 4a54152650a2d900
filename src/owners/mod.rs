//! Who owns each object: the catalogue and the matcher.

pub mod catalogue;
pub mod content;
pub mod life;
pub mod matcher;
pub mod mode;
mod servers;
pub mod template;
