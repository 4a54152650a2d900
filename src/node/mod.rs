//! Reaching this node: its tools, its commands, netlink, and the capture.
//!
//! Everything here acts on the namespaces it runs in; nothing takes a namespace argument.

pub mod capture;
pub mod command;
pub mod config_files;
pub mod conntrack;
pub mod controller;
pub mod kernel;
pub mod kube_proxy_api;
pub mod live_facts;
pub mod locks;
pub mod lossy_save;
pub mod nfnetlink;
pub mod observe;
pub mod processes;
pub mod subsystems;
pub mod sysctls;
pub mod systemd;
pub mod tools;
