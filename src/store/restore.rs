//! `restore.sh`: the last resort, by hand.
