//! The owner of each object: the catalogue of components, and the matcher that applies it.

pub mod attribution;
pub mod backend;
pub mod catalogue;
pub mod component;
pub mod content;
pub(crate) mod expression;
pub mod files;
pub mod liveness;
pub mod matcher;
pub(crate) mod names;
pub(crate) mod native_content;
mod precedence;
mod rules;
pub(crate) mod servers;
pub mod signs;
pub mod template;
