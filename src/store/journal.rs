//! The journal of a run: append-only JSON lines.
