//! Steady traffic during a change, which notices the failures that the change causes.

use std::io::{Error, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::clients::{PATIENCE, to_and_fro};
use crate::kube_proxy;
use crate::network::{NODE, at, connect, query, socket_address};

/// One kind of traffic: from where, how, to which address, and how often.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    from: &'static str,
    how: How,
    to: &'static str,
    /// How many attempts a second there are at full rate, at most.
    rate: u32,
}

#[derive(Clone, Copy)]
enum How {
    /// Opens a new TCP connection for each attempt.
    Connect,
    /// Sends a UDP query for each attempt, from a new source port.
    Query,
    /// Keeps one TCP connection open, and has a line echoed on it for each attempt.
    Stream,
}

const fn kind(
    name: &'static str,
    from: &'static str,
    how: How,
    to: &'static str,
    rate: u32,
) -> Kind {
    Kind { name, from, how, to, rate }
}

const KINDS: [Kind; 6] = [
    kind("ClusterIP from a pod", "pod", How::Connect, "10.96.1.1:80", 10),
    kind("ClusterIP from the node", NODE, How::Connect, "10.96.1.1:80", 10),
    kind("NodePort from outside", "outside", How::Connect, "192.168.100.1:30080", 5),
    kind("DNS from a pod", "pod", How::Query, "10.96.0.10:53", 5),
    kind("container to the outside", "box", How::Connect, "192.168.100.2:8080", 1),
    kind("container's stream to the outside", "box", How::Stream, "192.168.100.2:8080", 1),
];

/// A stream to a service. It ends when the virtual server that it goes through is removed.
const THROUGH_A_SERVICE: Kind =
    kind("stream through a service", "pod", How::Stream, "10.96.1.1:80", 1);

/// A stream that no service carries. While it stands still, so does the emulated CPU.
const CONTROL: Kind =
    kind("stream to a pod's own address", "pod", How::Stream, "10.244.0.11:8080", 5);

/// Traffic that flows until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    began: Instant,
    kinds: Vec<(&'static str, JoinHandle<Count>)>,
    control: Option<JoinHandle<Count>>,
}

#[derive(Default)]
struct Count {
    tries: usize,
    failures: Vec<Failure>,
    /// When attempts took more than half of a client's patience.
    slow: Vec<Range<Duration>>,
}

/// A failed attempt.
struct Failure {
    /// From when to when it was tried, since the traffic began.
    during: Range<Duration>,
    error: Error,
}

impl Failure {
    /// Whether the client's patience ended while the machine stood still.
    fn is_by_stall(&self, stalls: &[Range<Duration>]) -> bool {
        let Range { start, end } = &self.during;
        matches!(self.error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
            && stalls.iter().any(|stall| stall.start < *end && *start < stall.end)
    }
}

impl Traffic {
    /// Starts all kinds of traffic but a stream through a service, at a fifth of their rates but at
    /// least once a second, which an emulated CPU can bear.
    pub fn start() -> Traffic {
        Traffic::of(&KINDS.map(|kind| Kind { rate: kind.rate.div_ceil(5), ..kind }))
    }

    /// Starts all kinds of traffic at the rates of a busy node, and one stream through a service.
    pub fn dense() -> Traffic {
        Traffic::of(&[&KINDS[..], &[THROUGH_A_SERVICE]].concat())
    }

    /// Starts all kinds of traffic at two thirds of their rates, a new connection every 45 ms. Beside
    /// it a stream goes straight to a pod: what times out while that stream stands still does not
    /// count as a failure, because then the emulated CPU stands still.
    pub fn controlled() -> Traffic {
        let rate = |kind: Kind| (2 * kind.rate).div_ceil(3);
        let mut traffic = Traffic::of(&KINDS.map(|kind| Kind { rate: rate(kind), ..kind }));
        traffic.control = Some(traffic.start_one(CONTROL));
        traffic
    }

    fn of(kinds: &[Kind]) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let mut traffic = Traffic { stop, began: Instant::now(), kinds: Vec::new(), control: None };
        traffic.kinds = kinds.iter().map(|&kind| (kind.name, traffic.start_one(kind))).collect();
        traffic
    }

    fn start_one(&self, kind: Kind) -> JoinHandle<Count> {
        let (stop, began) = (Arc::clone(&self.stop), self.began);
        std::thread::spawn(move || at(kind.from, || flow(&stop, began, kind)))
    }

    /// Stops the traffic, prints how many attempts failed, and fails if any did.
    pub fn stop(self, when: &str) {
        let failed = self.failures(when);
        assert!(failed.is_empty(), "{when}: {failed:#?}");
    }

    /// Stops the traffic, prints how many attempts failed, and returns the failures.
    pub fn failures(self, when: &str) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs();
        let when = format!("{when}, kube-proxy {}", kube_proxy::version());
        let control = self.control.map(|control| control.join().expect("the control flows"));
        let stalls = control.map_or_else(Vec::new, |control| {
            let stalls = control.slow.len();
            println!("{when}: {}: stood still {stalls} times in {}", CONTROL.name, control.tries);
            control.slow
        });
        let (mut failed, mut tries, mut stalled) = (Vec::new(), 0, 0);
        for (name, kind) in self.kinds {
            let count = kind.join().expect("traffic flows");
            assert!(count.tries > 0, "{name}: nothing flowed");
            tries += count.tries;
            let (by_stall, failures): (Vec<Failure>, Vec<Failure>) =
                count.failures.into_iter().partition(|failure| failure.is_by_stall(&stalls));
            println!("{when}: {name}: {} of {} failed", failures.len(), count.tries);
            stalled += by_stall.len();
            failed.extend(failures.into_iter().map(|Failure { during, error }| {
                format!("{name}: after {:.1} s: {error}", during.start.as_secs_f32())
            }));
        }
        println!("{when}: {} of {tries} failed in {seconds} s", failed.len());
        if stalled > 0 {
            println!("{when}: {stalled} more timed out while the machine stood still");
        }
        failed
    }
}

fn flow(stop: &AtomicBool, began: Instant, kind: Kind) -> Count {
    let mut count = Count::default();
    let mut stream = None;
    while !stop.load(Ordering::Relaxed) {
        let at = began.elapsed();
        count.tries += 1;
        let result = match kind.how {
            How::Connect => connect(kind.to).map(drop),
            How::Query => query(kind.to).map(drop),
            How::Stream => to_and_fro(&mut stream, socket_address(kind.to)),
        };
        let during = at..began.elapsed();
        if during.end - during.start > PATIENCE / 2 {
            count.slow.push(during.clone());
        }
        if let Err(error) = result {
            count.failures.push(Failure { during, error });
        }
        let every = Duration::from_secs(1) / kind.rate;
        std::thread::sleep(every.saturating_sub(began.elapsed() - at));
    }
    count
}
