//! How much of others' files one capture reads.

use std::time::{Duration, Instant};

use super::refusal::Refusal;

/// What may be read in all, by one capture.
pub struct Allowance {
    files: usize,
    bytes: u64,
    until: Instant,
}

impl Allowance {
    /// Up to 256 files and 16 MiB, within 10 s: far more than any node's configuration has.
    pub fn of_a_capture() -> Allowance {
        Allowance { files: 256, bytes: 16 << 20, until: Instant::now() + Duration::from_secs(10) }
    }

    pub(super) fn take_file(&mut self) -> Result<(), Refusal> {
        self.files = self.files.checked_sub(1).ok_or(Refusal::UsedUp)?;
        if Instant::now() > self.until { Err(Refusal::UsedUp) } else { Ok(()) }
    }

    pub(super) fn take_bytes(&mut self, count: usize) -> Result<(), Refusal> {
        self.bytes = self.bytes.checked_sub(count as u64).ok_or(Refusal::UsedUp)?;
        if Instant::now() > self.until { Err(Refusal::UsedUp) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends() {
        let until = Instant::now() + Duration::from_secs(60);
        let mut allowance = Allowance { files: 1, bytes: 8, until };
        assert_eq!((allowance.take_file(), allowance.take_bytes(5)), (Ok(()), Ok(())));
        assert_eq!(allowance.take_bytes(5), Err(Refusal::UsedUp));
        assert_eq!(allowance.take_file(), Err(Refusal::UsedUp));
        let mut late = Allowance { files: 9, bytes: 99, until: Instant::now() };
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(
            (late.take_file(), late.take_bytes(1)),
            (Err(Refusal::UsedUp), Err(Refusal::UsedUp))
        );
    }
}
