//! Ctrl-C, SIGTERM and SIGHUP. A signal ends the program at once while nothing is being changed,
//! and never in the middle of a change.
//!
//! Until a program calls [`watch`], signals act as usual.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Kind, Result};

/// How many changes are under way. Locked while the program ends, so that no change begins then.
static CHANGES: Mutex<usize> = Mutex::new(0);

/// Whether a signal arrived during a change.
static RAISED: AtomicBool = AtomicBool::new(false);

/// A change under way, until dropped. No signal ends the program meanwhile.
#[derive(Debug)]
pub struct ChangeGuard(());

/// Begins a change. A signal is only recorded from here on.
pub fn begin_change() -> ChangeGuard {
    *changes() += 1;
    ChangeGuard(())
}

impl Drop for ChangeGuard {
    fn drop(&mut self) {
        *changes() -= 1;
    }
}

/// Whether a signal arrived during a change. The change is then to be undone, and no other begun.
pub fn raised() -> bool {
    RAISED.load(Ordering::Relaxed)
}

/// The error of a change that a signal interrupted.
///
/// # Errors
/// [`Kind::Interrupted`], once a signal arrived.
pub fn check(object: &str) -> Result<()> {
    if raised() {
        return Err(Error::new(Kind::Interrupted, object, "interrupted by a signal"));
    }
    Ok(())
}

/// Ends the program with the exit code of `last_words`. Another caller waits meanwhile. The caller
/// must have no [`ChangeGuard`].
pub fn end(last_words: impl FnOnce() -> u8) -> ! {
    let _no_change_begins = changes();
    exit(last_words().into())
}

/// Handles the signals in a thread of its own. A signal ends the program while nothing is being
/// changed; else it is recorded, and `noted` is called.
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

/// Recovers a poisoned lock: it only means that a thread panicked while counting.
fn changes() -> MutexGuard<'static, usize> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}
