//! The system log, and the terminals of all users. No `logger` is needed for the log, because this
//! may be all that still works.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use crate::clock;
use crate::node::command;
use crate::runtime::NAME;
use crate::visible::visible;

/// The socket of the system's log daemon: journald, rsyslogd or another.
const SOCKET: &str = "/dev/log";

/// The log of the kernel, for a node without a log daemon.
const KERNEL_LOG: &str = "/dev/kmsg";

/// The facility `daemon` (3) and the severity `warning` (4), as RFC 3164 has them.
const PRIORITY: u8 = 3 * 8 + 4;

/// How long the log daemon may let this process wait.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The largest size of a message in bytes. Longer ones are cut, because RFC 3164 permits 1024 bytes,
/// and the kernel's log takes no more.
const LONGEST: usize = 900;

/// Writes to the system log; without a log daemon, to the kernel's log.
pub(super) fn log(text: &str) {
    let text = visible(text);
    if send(Path::new(SOCKET), &message(Some(&clock::syslog()), &text)).is_err() {
        let kernel_log = fs::File::options().write(true).open(KERNEL_LOG);
        // Whoever cannot be reached cannot be reached.
        let _ = kernel_log.and_then(|mut log| log.write_all(message(None, &text).as_bytes()));
    }
}

/// Writes to the terminals of all users, if `wall` is installed.
pub(super) fn broadcast(text: &str) {
    if let Ok(wall) = which::which_in("wall", Some(command::TRUSTED_PATH), "/") {
        let _ = command::Command::new(wall).args([format!("{NAME}: {}", visible(text))]).run();
    }
}

/// A message in the form of RFC 3164, as local programs send it: without the name of the host. The
/// kernel has a time of its own.
fn message(time: Option<&str>, text: &str) -> String {
    let time = time.map(|time| format!("{time} ")).unwrap_or_default();
    let mut end = LONGEST.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("<{PRIORITY}>{time}{NAME}[{}]: {}", std::process::id(), &text[..end])
}

fn send(socket: &Path, message: &str) -> std::io::Result<()> {
    let from = UnixDatagram::unbound()?;
    from.set_write_timeout(Some(TIMEOUT))?;
    from.send_to(message.as_bytes(), socket).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_form_of_rfc_3164() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        send(&path, &message(Some("Nov  9 06:05:04"), "run 1: undone")).unwrap();
        let mut text = [0; 2048];
        let length = daemon.recv(&mut text).unwrap();
        let pid = std::process::id();
        assert_eq!(
            std::str::from_utf8(&text[..length]).unwrap(),
            format!("<28>Nov  9 06:05:04 proxyshift[{pid}]: run 1: undone")
        );
        assert_eq!(message(None, "x"), format!("<28>proxyshift[{pid}]: x"));
        assert!(message(None, &"ü".repeat(2000)).len() < 1024);
        send(&dir.path().join("none"), "x").unwrap_err();
        let stamp = clock::syslog();
        assert_eq!((stamp.len(), stamp.as_bytes()[3], stamp.as_bytes()[6]), (15, b' ', b' '));
    }

    /// A log daemon that reads nothing must not stop the watchdog.
    #[test]
    fn nobody_waits_for_a_log_daemon_that_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let _daemon = UnixDatagram::bind(&path).unwrap();
        let begun = std::time::Instant::now();
        let mut sent = 0;
        while send(&path, "x").is_ok() {
            sent += 1;
            assert!(sent < 100_000, "the socket is never full");
        }
        assert!(begun.elapsed() < TIMEOUT * 20);
    }
}
