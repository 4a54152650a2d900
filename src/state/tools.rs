//! `tools.txt` and `processes.json`.
