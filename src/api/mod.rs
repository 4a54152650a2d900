//! The API server, of which objects are read and written.
//!
//! What the server answers is data from outside: every request has a deadline and every answer a
//! limit, a redirect is not followed, and what is no object of the kind is an error. Only `apply` writes.

pub mod access;
mod failure;
mod follow;
pub mod kubeconfig;
pub mod read;
mod transport;
pub mod write;

pub use failure::{ApiFailure, ApiRefusal, ApiStatus};
pub use follow::{ApiObjects, ApiReader};
pub use transport::ApiClient;
