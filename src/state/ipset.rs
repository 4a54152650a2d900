//! `ipset save`.
