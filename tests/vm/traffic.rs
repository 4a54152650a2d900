//! Steady traffic, which notices what a change breaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::network::{NODE, tcp, udp};

/// Each kind of traffic: its name, where it begins, whether by TCP, and where it goes.
const KINDS: [(&str, &str, bool, &str); 5] = [
    ("ClusterIP from a pod", "pod", true, "10.96.1.1:80"),
    ("ClusterIP from the node", NODE, true, "10.96.1.1:80"),
    ("NodePort from outside", "outside", true, "192.168.100.1:30080"),
    ("DNS from a pod", "pod", false, "10.96.0.10:53"),
    ("container to the outside", "box", true, "192.168.100.2:8080"),
];

/// Two tries of each kind in a second: more would be all that an emulated CPU does.
const EVERY: Duration = Duration::from_millis(500);

/// Traffic that flows until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    kinds: Vec<(&'static str, JoinHandle<Count>)>,
}

#[derive(Default)]
struct Count {
    tries: usize,
    failures: Vec<String>,
}

impl Traffic {
    pub fn start() -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let kinds = KINDS.map(|(name, from, is_tcp, to)| {
            let stop = Arc::clone(&stop);
            (name, std::thread::spawn(move || flow(&stop, from, is_tcp, to)))
        });
        Traffic { stop, kinds: kinds.into() }
    }

    /// Stops it, prints the counts, and fails if any try failed.
    pub fn stop(self, when: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut failed = Vec::new();
        for (name, kind) in self.kinds {
            let count = kind.join().expect("traffic flows");
            println!("{when}: {name}: {} of {} failed", count.failures.len(), count.tries);
            assert!(count.tries > 0, "{name}: nothing flowed");
            failed.extend(count.failures.into_iter().map(|f| format!("{name}: {f}")));
        }
        assert!(failed.is_empty(), "{when}: {failed:#?}");
    }
}

fn flow(stop: &AtomicBool, from: &str, is_tcp: bool, to: &str) -> Count {
    let (mut count, began) = (Count::default(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let at = began.elapsed();
        count.tries += 1;
        if let Err(e) = if is_tcp { tcp(from, to) } else { udp(from, to) } {
            count.failures.push(format!("after {:.1} s: {e}", at.as_secs_f32()));
        }
        std::thread::sleep(EVERY.saturating_sub(began.elapsed() - at));
    }
    count
}
