//! `sysctl -a`.
