//! Looking again and again, until something is so.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::Result;

/// The shortest pause between two looks, and how often it is asked whether to go on.
const PAUSE: Duration = Duration::from_millis(500);

/// What a look finds.
pub(super) enum Poll<T, M> {
    /// It is so.
    There(T),
    /// It is not yet; what is missing.
    Missing(M),
}

/// Looks until it is so, or until `timeout` is over; then what is still missing. Between two looks
/// `keep_waiting` is asked again and again whether to wait any longer. A pause is as long as the look before
/// it, so that a node with little to spare has half of that for what it is waited for.
///
/// # Errors
/// What `look` and `keep_waiting` say.
pub(super) fn poll<T, M>(
    timeout: Duration,
    keep_waiting: &dyn Fn() -> Result<()>,
    mut look: impl FnMut() -> Result<Poll<T, M>>,
) -> Result<Poll<T, M>> {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let seen = look()?;
        if matches!(seen, Poll::There(_)) || start.elapsed() >= timeout {
            return Ok(seen);
        }
        let again = Instant::now() + began.elapsed().max(PAUSE);
        let again = again.min(start + timeout);
        loop {
            keep_waiting()?;
            let left = again.saturating_duration_since(Instant::now());
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

    fn third(looks: &mut u32) -> Poll<u32, u32> {
        *looks += 1;
        if *looks == 3 { Poll::There(*looks) } else { Poll::Missing(3 - *looks) }
    }

    #[test]
    fn it_looks_until_it_is_so_or_until_late() {
        let mut looks = 0;
        let all = poll(Duration::from_secs(60), &|| Ok(()), || Ok(third(&mut looks)));
        assert!(matches!(all, Ok(Poll::There(3))));
        let mut looks = 0;
        let once = poll(Duration::ZERO, &|| Ok(()), || Ok(third(&mut looks)));
        assert!(matches!(once, Ok(Poll::Missing(2))));
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        use crate::error::{Error, Kind};
        let stop = || Err(Error::new(Kind::Interrupted, "here", "now"));
        let mut looks = 0;
        let ended = poll(Duration::from_secs(60), &stop, || Ok(third(&mut looks)));
        assert!(ended.is_err_and(|e| e.kind == Kind::Interrupted));
        assert_eq!(looks, 1);
    }
}
