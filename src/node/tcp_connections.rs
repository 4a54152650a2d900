//! Reads the established TCP connections of the programs in this network namespace.

use std::fs;
use std::io::ErrorKind;

use crate::error::{Error, Kind, Result};
use crate::state::tcp_connections::TcpConnection;

/// The established TCP connections of both families.
///
/// # Errors
/// [`Kind::Kernel`] when the kernel's list cannot be read.
pub fn established() -> Result<Vec<TcpConnection>> {
    let mut found = Vec::new();
    for file in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        match fs::read_to_string(file) {
            Ok(text) => found.extend(TcpConnection::parse(file, &text)?),
            // A kernel without IPv6.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::new(Kind::Kernel, file, e)),
        }
    }
    Ok(found)
}
