//! Reaching this node: its tools, its commands, netlink, and the capture.
//!
//! Everything here acts on the namespaces it runs in; nothing takes a namespace argument.

pub mod capture;
pub mod commands;
pub mod nfnetlink;
pub mod processes;
pub mod tools;
