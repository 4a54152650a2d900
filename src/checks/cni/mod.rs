//! Pod networks: their rules, sets and configuration.
