//! Polls the node until a condition holds.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::Result;

/// The shortest pause between two probes of the condition, and the longest between two calls of
/// `keep_waiting` in a pause.
const PAUSE: Duration = Duration::from_millis(500);

/// The result of one probe of the condition.
pub(super) enum Poll<T, M> {
    /// The condition holds.
    Ready(T),
    /// The condition does not hold yet; the payload is what is still missing.
    NotYet(M),
}

/// Probes until the condition holds, or until `timeout` has passed; then returns what is still
/// missing. `keep_waiting` is called between two probes and may end the wait. A pause is at least
/// as long as the probe before it, so that on a slow node half of the CPU is left to the program
/// that is waited for.
///
/// # Errors
/// The errors of `probe` and `keep_waiting`.
pub(super) fn poll<T, M>(
    timeout: Duration,
    keep_waiting: &dyn Fn() -> Result<()>,
    mut probe: impl FnMut() -> Result<Poll<T, M>>,
) -> Result<Poll<T, M>> {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let result = probe()?;
        if matches!(result, Poll::Ready(_)) || start.elapsed() >= timeout {
            return Ok(result);
        }
        let next = Instant::now() + began.elapsed().max(PAUSE);
        let next = next.min(start + timeout);
        loop {
            keep_waiting()?;
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(PAUSE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn third(probes: &mut u32) -> Poll<u32, u32> {
        *probes += 1;
        if *probes == 3 { Poll::Ready(*probes) } else { Poll::NotYet(3 - *probes) }
    }

    #[test]
    fn it_probes_until_it_holds_or_times_out() {
        let mut probes = 0;
        let all = poll(Duration::from_secs(60), &|| Ok(()), || Ok(third(&mut probes)));
        assert!(matches!(all, Ok(Poll::Ready(3))));
        let mut probes = 0;
        let once = poll(Duration::ZERO, &|| Ok(()), || Ok(third(&mut probes)));
        assert!(matches!(once, Ok(Poll::NotYet(2))));
    }

    #[test]
    fn keep_waiting_ends_it() {
        use crate::error::{Error, Kind};
        let stop = || Err(Error::new(Kind::Interrupted, "here", "now"));
        let mut probes = 0;
        let ended = poll(Duration::from_secs(60), &stop, || Ok(third(&mut probes)));
        assert!(ended.is_err_and(|e| e.kind == Kind::Interrupted));
        assert_eq!(probes, 1);
    }
}
