//! Go's durations, in which kube-proxy's times are written: `1h30m`, `0.5s`.

use std::time::Duration;

/// The duration that `text` says; none if it is not one of Go's, or below zero. Source:
/// `time.ParseDuration` of Go.
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let unit = &rest[end..];
        let length = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        seconds += number * seconds_of(&unit[..length])?;
        rest = &unit[length..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

/// How many seconds a unit of Go's is.
fn seconds_of(unit: &str) -> Option<f64> {
    Some(match unit {
        "h" => 3600.0,
        "m" => 60.0,
        "s" => 1.0,
        "ms" => 1e-3,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_go_reads_them() {
        for (text, seconds) in [
            ("0", Some(0.0)),
            ("0s", Some(0.0)),
            ("900s", Some(900.0)),
            ("1h30m", Some(5400.0)),
            ("24h0m0s", Some(86400.0)),
            ("1.5m", Some(90.0)),
            ("250ms", Some(0.25)),
            ("", None),
            ("900", None),
            ("15 m", None),
            ("-1s", None),
            ("1d", None),
            ("h", None),
        ] {
            assert_eq!(go_duration(text).map(|d| d.as_secs_f64()), seconds, "{text}");
        }
    }
}
