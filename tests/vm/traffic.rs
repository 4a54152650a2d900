//! Steady traffic during a change, which notices the failures that the change causes.

use std::io::{BufRead, BufReader, Result, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::kube_proxy;
use crate::network::{NODE, at, connect, query};

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

/// Traffic that flows until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    began: Instant,
    kinds: Vec<(&'static str, JoinHandle<Count>)>,
}

#[derive(Default)]
struct Count {
    tries: usize,
    failures: Vec<String>,
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

    fn of(kinds: &[Kind]) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let flowing = kinds.iter().map(|&kind| {
            let stop = Arc::clone(&stop);
            (kind.name, std::thread::spawn(move || at(kind.from, || flow(&stop, kind))))
        });
        let kinds = flowing.collect();
        Traffic { stop, began: Instant::now(), kinds }
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
        let (mut failed, mut tries) = (Vec::new(), 0);
        for (name, kind) in self.kinds {
            let count = kind.join().expect("traffic flows");
            println!("{when}: {name}: {} of {} failed", count.failures.len(), count.tries);
            assert!(count.tries > 0, "{name}: nothing flowed");
            tries += count.tries;
            failed.extend(count.failures.into_iter().map(|f| format!("{name}: {f}")));
        }
        println!("{when}: {} of {tries} failed in {seconds} s", failed.len());
        failed
    }
}

fn flow(stop: &AtomicBool, kind: Kind) -> Count {
    let (mut count, began) = (Count::default(), Instant::now());
    let mut stream = None;
    while !stop.load(Ordering::Relaxed) {
        let at = began.elapsed();
        count.tries += 1;
        let result = match kind.how {
            How::Connect => connect(kind.to).map(drop),
            How::Query => query(kind.to).map(drop),
            How::Stream => to_and_fro(&mut stream, kind.to),
        };
        if let Err(e) = result {
            count.failures.push(format!("after {:.1} s: {e}", at.as_secs_f32()));
        }
        let every = Duration::from_secs(1) / kind.rate;
        std::thread::sleep(every.saturating_sub(began.elapsed() - at));
    }
    count
}

/// Has a line echoed on `stream`. If the stream is not open, opens it first; if it breaks, drops
/// it.
fn to_and_fro(stream: &mut Option<TcpStream>, to: &str) -> Result<()> {
    let mut open = match stream.take() {
        Some(open) => open,
        None => connect(to)?.1,
    };
    echo(&mut open)?;
    *stream = Some(open);
    Ok(())
}

/// Sends a line, and waits until it comes back.
pub fn echo(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"still there?\n")?;
    let mut line = String::new();
    BufReader::new(&*stream).read_line(&mut line)?;
    match &*line {
        "still there?\n" => Ok(()),
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}
