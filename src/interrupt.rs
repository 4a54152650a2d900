//! Ctrl-C, SIGTERM and a closed terminal: at once while nothing is changed, and never in the middle
//! of a change.
//!
//! Until a program [`watch`]es, signals do what they always do.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Kind, Result};

/// How many changes are under way. Held locked by who ends the program, so that none begins then.
static CHANGES: Mutex<usize> = Mutex::new(0);

/// Whether a signal came while something was being changed.
static RAISED: AtomicBool = AtomicBool::new(false);

/// A change under way, until it is dropped: no signal ends the program meanwhile.
#[derive(Debug)]
pub struct Change(());

/// From here on a signal is only noted.
pub fn change() -> Change {
    *changes() += 1;
    Change(())
}

impl Drop for Change {
    fn drop(&mut self) {
        *changes() -= 1;
    }
}

/// Whether a signal came while something was being changed: to be undone, and nothing more begun.
pub fn raised() -> bool {
    RAISED.load(Ordering::Relaxed)
}

/// The error of a change that a signal interrupted.
///
/// # Errors
/// [`Kind::Interrupted`], once one came.
pub fn check(object: &str) -> Result<()> {
    match raised() {
        true => Err(Error::new(Kind::Interrupted, object, "interrupted by a signal")),
        false => Ok(()),
    }
}

/// Ends the program with the exit code that `last_words` gives; whoever else wants to meanwhile
/// waits for that. The caller has no [`Change`] under way.
pub fn end(last_words: impl FnOnce() -> u8) -> ! {
    let _no_change_begins = changes();
    exit(last_words().into())
}

/// Takes the signals, in a thread of its own: with nothing being changed, one ends the program;
/// else `noted` says that it was heard.
///
/// # Errors
/// When the signals cannot be had.
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

/// A poisoned lock only means that a thread died while counting.
fn changes() -> MutexGuard<'static, usize> {
    CHANGES.lock().unwrap_or_else(PoisonError::into_inner)
}
