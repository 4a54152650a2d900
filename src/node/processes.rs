//! The processes of this network namespace that own rules.
