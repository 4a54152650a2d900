//! Pauses that double.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_secs(1);

/// The longest pause, unless another is given.
const LONGEST: Duration = Duration::from_secs(60);

/// The pauses between attempts: 1 s at first, then twice as long each time, up to a longest one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backoff {
    pause: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses of 60 s at most.
    pub(super) fn new() -> Backoff {
        Backoff::up_to(LONGEST)
    }

    /// Pauses of `longest` at most.
    pub(super) fn up_to(longest: Duration) -> Backoff {
        Backoff { pause: Duration::ZERO, longest }
    }

    /// Whether there was no attempt yet.
    pub(super) fn is_new(&self) -> bool {
        self.pause.is_zero()
    }

    /// The pause after the last attempt; zero before the first.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// Notes that an attempt was made. Returns the pause before the next.
    pub(super) fn next(&mut self) -> Duration {
        self.pause = if self.is_new() { FIRST } else { self.longest.min(self.pause * 2) };
        self.pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new();
        assert!(backoff.is_new());
        let pauses: Vec<u64> = (0..8).map(|_| backoff.next().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }
}
