//! Measures how long it takes to get the xtables lock, and finds its holder if it is not free in
//! time.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::Kind;
use crate::node::locks::XTABLES_LOCK;
use crate::node::locks::XtablesLock;

/// The longest time to wait for the lock.
const LONGEST: Duration = Duration::from_secs(1);

/// Takes the xtables lock and releases it at once. Returns the time that this took, or else the
/// holder.
pub(super) fn wait() -> (Option<Duration>, Option<String>) {
    wait_for(Path::new(XTABLES_LOCK), LONGEST)
}

fn wait_for(path: &Path, longest: Duration) -> (Option<Duration>, Option<String>) {
    // A missing lock file means that nobody holds the lock. Taking the lock would create the file,
    // but a probe changes nothing.
    if !path.exists() {
        return (Some(Duration::ZERO), None);
    }
    let began = Instant::now();
    let result = XtablesLock::acquire(path, longest).map(drop);
    let took = began.elapsed();
    match result {
        Ok(()) => (Some(took), None),
        Err(e) if e.kind == Kind::Lock => (Some(took), Some(e.cause)),
        Err(_) => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_holder_and_makes_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let short = Duration::from_millis(50);
        assert_eq!(wait_for(&path, short), (Some(Duration::ZERO), None));
        assert!(!path.exists());
        let held = XtablesLock::acquire(&path, short).unwrap();
        let (took, holder) = wait_for(&path, short);
        assert!(took.unwrap() >= short);
        assert!(holder.unwrap().contains(&format!("pid {}", std::process::id())));
        drop(held);
        assert_eq!(wait_for(&path, short).1, None);
    }
}
