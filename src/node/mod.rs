//! Reaching this node: its tools, its commands, netlink, and the capture.
//!
//! Everything here acts on the namespaces it runs in; nothing takes a namespace argument.

pub mod answers;
pub mod capture;
pub mod commands;
pub mod config_files;
pub mod conntrack;
pub mod controller;
pub mod kernel;
pub mod lock;
pub mod lossy;
pub mod measure;
pub mod nfnetlink;
pub mod present;
pub mod processes;
pub mod sysctls;
pub mod systemd;
pub mod tools;
