//! Reads this node: runs programs, and reads files and netlink. Changes nothing, which tests/layers
//! verifies; all changes are in `apply`.
//!
//! Everything in this module reads the current namespaces. No function has a namespace argument.

pub mod admin_access;
pub mod affinity;
pub mod api_access;
pub mod bridge;
pub mod build_info;
pub mod capture;
mod cluster_capture;
pub mod command;
pub mod config_files;
pub mod conntrack;
pub mod environment;
pub mod files;
mod foreign;
pub mod kube_proxy_api;
pub mod kube_proxy_controller;
pub mod kubelet;
pub mod launcher;
pub mod live_facts;
pub mod locks;
pub mod lossy_save;
pub mod modules;
mod native_rules;
pub mod nfnetlink;
pub mod observe;
mod prerequisites;
pub mod processes;
mod reading;
pub mod secrets;
pub mod subsystems;
pub mod sysctls;
pub mod systemd;
pub mod tcp_connections;
pub mod tools;
pub mod trust;
