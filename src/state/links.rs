//! `ip -j` addresses, routes and rules.
