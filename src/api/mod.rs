//! The API server, of which Services and EndpointSlices are read.
//!
//! What the server answers is data from outside: every request has a deadline and every answer a
//! limit, a redirect is not followed, and what is no list of such objects is an error. Nothing is
//! written to the API server.

pub mod access;
mod follow;
pub mod kubeconfig;
mod read;
mod transport;

pub use follow::{ApiObjects, ApiReader};
