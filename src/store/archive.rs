//! Snapshots as one `.tar.gz`, out and in.
