//! The programs needed, found once on a trusted path.
