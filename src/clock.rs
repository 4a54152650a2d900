//! The only reader of wall time, boot time, boot id and randomness.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Now, in UTC, to the second: `2026-11-21T20:15:02Z`.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A new identifier that sorts by time: `20261121T201502Z-6hex`.
pub fn new_id() -> String {
    let mut bytes = [0u8; 3];
    fill_random(&mut bytes);
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    format!("{time}-{:02x}{:02x}{:02x}", bytes[0], bytes[1], bytes[2])
}

/// A random number, for scattering.
pub fn random() -> u64 {
    let mut bytes = [0u8; 8];
    fill_random(&mut bytes);
    u64::from_ne_bytes(bytes)
}

fn fill_random(bytes: &mut [u8]) {
    let flags = rustix::rand::GetRandomFlags::empty();
    // getrandom(2) does not fail for so few bytes once the pool is ready; zeros would only make
    // an identifier less unique, and the store refuses one that exists.
    let _ = rustix::rand::getrandom(bytes, flags);
}

/// Time since boot, sleep included: what deadlines are counted in.
pub fn boottime() -> Duration {
    let t = clock_gettime(ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// The kernel's name for this boot, or an empty string where /proc has none.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}
