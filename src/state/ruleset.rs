//! `iptables-save` text as tables, chains and rules.
