//! Reading this node: its tools, its commands, netlink, and the capture. Nothing here changes the
//! node (tests/layers.rs proves it): that is done in `apply`.
//!
//! Everything here reads the namespaces it runs in; nothing takes a namespace argument.

pub mod capture;
pub mod command;
pub mod config_files;
pub mod conntrack;
pub mod files;
pub mod kube_proxy_api;
pub mod kube_proxy_controller;
pub mod live_facts;
pub mod locks;
pub mod lossy_save;
pub mod modules;
pub mod nfnetlink;
pub mod observe;
pub mod processes;
pub mod subsystems;
pub mod sysctls;
pub mod systemd;
pub mod tools;
