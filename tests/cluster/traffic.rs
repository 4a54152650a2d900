//! Dense traffic to Services while kube-proxy changes its mode: no failure of some milliseconds goes
//! unnoticed.

pub mod bridge;
pub mod pods;

use std::fmt;
use std::io::Result;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::common::clients::{at, connect, echo, query, small, to_and_fro};

/// How often each kind of traffic opens another connection, however long the others take.
const EVERY: Duration = Duration::from_millis(10);

/// How often a line goes to and fro on each stream.
const LINE: Duration = Duration::from_millis(100);

/// The longest that traffic flows, should nobody stop it.
const LIMIT: Duration = Duration::from_secs(900);

/// One kind of traffic: from the namespace `from`, to each of the addresses `to` in turn; a stream to
/// the first of them.
#[derive(Clone)]
pub struct Kind {
    pub name: String,
    pub from: String,
    pub how: How,
    pub to: Vec<SocketAddr>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Opens a TCP connection each time, and has a line echoed.
    Connect,
    /// Sends a UDP query each time, from a new port.
    Query,
    /// Keeps one TCP connection open, and has a line echoed each time.
    Stream,
}

/// Traffic that flows until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    began: Instant,
    flows: Vec<JoinHandle<Flow>>,
}

/// How often one kind of traffic was tried, and what failed.
struct Flow {
    name: String,
    tries: usize,
    slowest: Duration,
    failures: Vec<Failure>,
}

struct Failure {
    /// How long after the traffic began the attempt did.
    after: Duration,
    /// How long it took.
    took: Duration,
    to: SocketAddr,
    error: std::io::Error,
}

/// What became of all traffic.
pub struct Tally {
    pub tries: usize,
    pub failures: Vec<String>,
    /// When the attempts that failed began, in order.
    pub failed: Vec<Instant>,
}

impl Traffic {
    pub fn start(kinds: Vec<Kind>) -> Traffic {
        let (stop, began) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let flowing = kinds.into_iter().map(|kind| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || at(&kind.from, || flow(&stop, began, &kind)))
        });
        let flows = flowing.collect();
        Traffic { stop, began, flows }
    }

    /// Stops the traffic, and says how much of it failed.
    pub fn stop(mut self, when: &str) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let seconds = self.began.elapsed().as_secs_f32();
        assert!(self.began.elapsed() < LIMIT, "{when}: the traffic ended by itself");
        let flows = std::mem::take(&mut self.flows).into_iter();
        let flows = flows.map(|flow| flow.join().expect("traffic flows"));
        let flows: Vec<Flow> = flows.collect();
        for flow in &flows {
            println!("{when}: {flow}");
            assert!(flow.tries > 0, "{}: nothing flowed", flow.name);
        }
        let mut failures: Vec<(&Flow, &Failure)> =
            flows.iter().flat_map(|flow| flow.failures.iter().map(move |f| (flow, f))).collect();
        failures.sort_by_key(|(_, failure)| failure.after);
        let failed = failures.iter().map(|(_, failure)| self.began + failure.after).collect();
        let failures = failures.iter().map(|(flow, failure)| format!("{}: {failure}", flow.name));
        let failures: Vec<String> = failures.collect();
        let tries = flows.iter().map(|flow| flow.tries).sum();
        println!("{when}: {} of {tries} failed in {seconds:.1} s", failures.len());
        Tally { tries, failures, failed }
    }
}

impl Drop for Traffic {
    /// No traffic of a case that failed flows on beside the next one.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Flow { name, tries, slowest, failures } = self;
        write!(f, "{name}: {} of {tries} failed, slowest {slowest:.0?}", failures.len())?;
        let (Some(first), Some(last)) = (failures.first(), failures.last()) else { return Ok(()) };
        write!(f, ", from {:.2?} to {:.2?}", first.after, last.after)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { after, took, to, error } = self;
        write!(f, "{to} after {after:.2?}, {took:.2?} later: {error}")
    }
}

fn flow(stop: &AtomicBool, began: Instant, kind: &Kind) -> Flow {
    let flow =
        Flow { name: kind.name.clone(), tries: 0, slowest: Duration::ZERO, failures: Vec::new() };
    let flow = Mutex::new(flow);
    let goes_on = || !stop.load(Ordering::Relaxed) && began.elapsed() < LIMIT;
    let attempt = |to: SocketAddr, work: &mut dyn FnMut() -> Result<()>| {
        let after = began.elapsed();
        let result = work();
        let took = began.elapsed() - after;
        let mut flow = flow.lock().expect("no attempt panics");
        flow.tries += 1;
        flow.slowest = flow.slowest.max(took);
        flow.failures.extend(result.err().map(|error| Failure { after, took, to, error }));
    };
    match kind.how {
        How::Connect => dense(&kind.to, &goes_on, &|to| {
            attempt(to, &mut || connect(to).and_then(|(_, mut stream)| echo(&mut stream)));
        }),
        How::Query => dense(&kind.to, &goes_on, &|to| attempt(to, &mut || query(to).map(drop))),
        How::Stream => {
            let (to, mut stream) = (kind.to[0], None);
            while goes_on() {
                attempt(to, &mut || to_and_fro(&mut stream, to));
                std::thread::sleep(LINE);
            }
        }
    }
    let mut flow = flow.into_inner().expect("no attempt panics");
    flow.failures.sort_by_key(|failure| failure.after);
    flow
}

/// Begins an attempt every [`EVERY`], each in a thread of its own, to each of the addresses in turn.
fn dense(to: &[SocketAddr], goes_on: &dyn Fn() -> bool, attempt: &(dyn Fn(SocketAddr) + Sync)) {
    std::thread::scope(|scope| {
        let began = Instant::now();
        for (number, to) in (1..).zip(to.iter().copied().cycle()).take_while(|_| goes_on()) {
            small().spawn_scoped(scope, move || attempt(to)).expect("a thread starts");
            let next = began + EVERY * number;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
}
