//! Looking again and again, until something is so.

use std::thread;
use std::time::{Duration, Instant};

use crate::error::Result;

/// The shortest pause between two looks, and how often it is asked whether to go on.
const PAUSE: Duration = Duration::from_millis(500);

/// What a look finds.
pub(super) enum Seen<T, M> {
    /// It is so.
    There(T),
    /// It is not yet; what is missing.
    Missing(M),
}

/// Looks until it is so, or until `patience` is over; then what is still missing. Between two looks
/// `go_on` is asked again and again whether to wait any longer. A pause is as long as the look before
/// it, so that a node with little to spare has half of that for what it is waited for.
///
/// # Errors
/// What `look` and `go_on` say.
pub(super) fn until<T, M>(
    patience: Duration,
    go_on: &dyn Fn() -> Result<()>,
    mut look: impl FnMut() -> Result<Seen<T, M>>,
) -> Result<Seen<T, M>> {
    let start = Instant::now();
    loop {
        let began = Instant::now();
        let seen = look()?;
        if matches!(seen, Seen::There(_)) || start.elapsed() >= patience {
            return Ok(seen);
        }
        let again = Instant::now() + began.elapsed().max(PAUSE);
        let again = again.min(start + patience);
        loop {
            go_on()?;
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

    fn third(looks: &mut u32) -> Seen<u32, u32> {
        *looks += 1;
        if *looks == 3 { Seen::There(*looks) } else { Seen::Missing(3 - *looks) }
    }

    #[test]
    fn it_looks_until_it_is_so_or_until_late() {
        let mut looks = 0;
        let all = until(Duration::from_secs(60), &|| Ok(()), || Ok(third(&mut looks)));
        assert!(matches!(all, Ok(Seen::There(3))));
        let mut looks = 0;
        let once = until(Duration::ZERO, &|| Ok(()), || Ok(third(&mut looks)));
        assert!(matches!(once, Ok(Seen::Missing(2))));
    }

    #[test]
    fn it_ends_when_it_is_told_to() {
        use crate::error::{Error, Kind};
        let stop = || Err(Error::new(Kind::Interrupted, "here", "now"));
        let mut looks = 0;
        let ended = until(Duration::from_secs(60), &stop, || Ok(third(&mut looks)));
        assert!(ended.is_err_and(|e| e.kind == Kind::Interrupted));
        assert_eq!(looks, 1);
    }
}
