//! Handles Ctrl-C, SIGTERM and SIGHUP. A signal ends the program at once while nothing is being
//! changed, and never in the middle of a change. Until [`watch`] is called, these signals act as
//! usual.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::error::{Error, Kind, Result};

/// The number of changes under way. The mutex stays locked while the program ends, so that no
/// change can begin then.
static CHANGES: Mutex<usize> = Mutex::new(0);

/// Whether a signal arrived during a change.
static RAISED: AtomicBool = AtomicBool::new(false);

/// Marks a change as under way until it is dropped. Meanwhile no signal ends the program.
#[derive(Debug)]
pub struct ChangeGuard(());

/// Begins a change. From then on a signal does not end the program, but is recorded.
pub fn begin_change() -> ChangeGuard {
    *changes() += 1;
    ChangeGuard(())
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        *changes() -= 1;
    }
}

/// Whether a signal arrived during a change. If so, that change must be undone, and no other begun.
pub fn raised() -> bool {
    RAISED.load(Ordering::Relaxed)
}

/// Returns an error if a signal arrived during a change, so that the caller stops.
///
/// # Errors
/// [`Kind::Interrupted`], naming `object`.
pub fn check(object: &str) -> Result<()> {
    if raised() {
        return Err(Error::new(Kind::Interrupted, object, "interrupted by a signal"));
    }
    Ok(())
}

/// Lets a write beyond the limit for files (RLIMIT_FSIZE) fail with an error, as on a full disk.
/// Without this, the signal SIGXFSZ would end the program in the middle of a change.
pub fn outlive_file_limits() {
    // The flag itself says nothing: that the signal has a handler is what matters. Programs that
    // are started later have none, as usual.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
}

/// Ends the program with the exit code that `last_words` returns. A second caller waits until the
/// program has ended. The caller must hold no [`ChangeGuard`].
pub fn end(last_words: impl FnOnce() -> u8) -> ! {
    let _no_change_begins = changes();
    exit(last_words().into())
}

/// Handles the signals in a thread of its own. While nothing is being changed, a signal ends the
/// program with the exit code of `last_words`. During a change, it is recorded, and `noted` is
/// called for the first one.
///
/// # Errors
/// When the signals cannot be handled.
pub fn watch(
    noted: impl Fn() + Send + 'static,
    last_words: impl Fn() -> u8 + Send + 'static,
) -> Result<()> {
    let failed = |e| Error::new(Kind::Unexpected, "signal handler", e);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed)?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let under_way = changes();
            if *under_way == 0 {
                exit(last_words().into());
            }
            drop(under_way);
            if !RAISED.swap(true, Ordering::Relaxed) {
                noted();
            }
        }
    });
    Ok(())
}

/// Locks [`CHANGES`], even if it is poisoned, because the poison only means that a thread panicked
/// while counting.
fn changes() -> MutexGuard<'static, usize> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}
