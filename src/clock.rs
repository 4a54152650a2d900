//! The only code that reads the wall clock, the time since boot, the boot id and random numbers.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The current time in UTC, to the second: `2026-11-21T20:15:02Z`.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The time in UTC after `time` from now, as [`now`] gives it.
pub fn after(time: Duration) -> String {
    let then = jiff::Timestamp::now().saturating_add(time).unwrap_or(jiff::Timestamp::MAX);
    then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The current local time as the system log has it: `Nov  9 06:05:04`.
pub fn syslog() -> String {
    jiff::Zoned::now().strftime("%b %e %H:%M:%S").to_string()
}

/// A new identifier that sorts by time: `20261121T201502Z-` and six hexadecimal digits. The digits
/// are the fraction of the second in units of 60 ns, so that two identifiers of the same second
/// sort too.
pub fn new_id() -> String {
    let now = jiff::Timestamp::now();
    let fraction = (u64::from(now.subsec_nanosecond().unsigned_abs()) << 24) / 1_000_000_000;
    format!("{}-{fraction:06x}", now.strftime("%Y%m%dT%H%M%SZ"))
}

/// Whether `text` has the form of [`new_id`].
pub fn is_id(text: &str) -> bool {
    let form = b"00000000T000000Z-xxxxxx";
    let fits = |(byte, form): (u8, &u8)| match form {
        b'0' => byte.is_ascii_digit(),
        b'x' => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        other => byte == *other,
    };
    text.len() == form.len() && text.bytes().zip(form).all(fits)
}

/// A random number, by which a packet can be recognised.
pub fn random() -> u64 {
    let mut bytes = [0u8; 8];
    // The error is ignored, because getrandom(2) does not fail for so few bytes once its pool is
    // ready. If it did, the number would be 0, and packets could not be told apart.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(bytes)
}

/// The time since boot, including sleep. Deadlines are counted in this time.
pub fn boottime() -> Duration {
    let t = clock_gettime(ClockId::Boottime);
    Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// The kernel's identifier of this boot, or an empty string without /proc.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|s| s.trim().to_owned())
        .unwrap_or_default()
}
