//! Conntrack entries that lead past their service, on the real kernel.

#[path = "../vm/clients.rs"]
mod clients;
#[path = "../common/mod.rs"]
mod common;
#[path = "../vm/network.rs"]
#[allow(dead_code, reason = "the virtual machine uses the rest")]
mod network;

mod delete;
mod missed;
mod sctp;
