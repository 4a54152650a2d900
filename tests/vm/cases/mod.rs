//! The cases, each in namespaces of its own.

mod migrate;
mod serving;
