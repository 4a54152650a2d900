//! What the bridge on a node does meanwhile, as its counters tell.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proxyshift::kube_proxy::bridge::TABLE;
use serde_json::Value;

use crate::common::clients::at;

/// How often the counters are read.
pub const EVERY: Duration = Duration::from_millis(50);

/// Looks at a node's bridge until it is stopped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    looks: Option<JoinHandle<Vec<Look>>>,
}

/// The bridge at one moment.
#[derive(Clone, Copy)]
struct Look {
    /// How long after the first look.
    after: Duration,
    /// How many connections it has translated, in each family; none where it is not there.
    translated: [Option<u64>; 2],
}

/// What the bridge did in one family while it was there.
pub struct Served {
    /// How many connections it translated.
    pub translated: u64,
    /// How long it was there after the last of them.
    pub idle: Duration,
}

impl Watch {
    /// Begins to look at the bridge of a node, by the name of the node's namespace.
    pub fn start(node: &str) -> Watch {
        let (stop, node) = (Arc::new(AtomicBool::new(false)), node.to_owned());
        let stopped = Arc::clone(&stop);
        let look = move || {
            let (mut looks, began) = (Vec::new(), Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                looks.push(Look { after: began.elapsed(), translated: translated() });
                std::thread::sleep(EVERY);
            }
            looks
        };
        Watch { stop, looks: Some(std::thread::spawn(move || at(&node, look))) }
    }

    /// What the bridge did in each family.
    pub fn stop(mut self) -> [Served; 2] {
        self.stop.store(true, Ordering::Relaxed);
        let looks = self.looks.take().expect("not stopped yet").join().expect("nft lists counters");
        [0, 1].map(|family| Served::of(&looks, family))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Served {
    /// A new bridge counts from nothing.
    fn of(looks: &[Look], family: usize) -> Served {
        let (mut served, mut last) = (Served { translated: 0, idle: Duration::ZERO }, None);
        let mut moved = Duration::ZERO;
        for Look { after, translated } in looks {
            if let Some(now) = translated[family] {
                let before = last.filter(|before| *before <= now).unwrap_or(0);
                if last != Some(now) {
                    moved = *after;
                }
                served.translated += now - before;
                served.idle = *after - moved;
            }
            last = translated[family];
        }
        served
    }
}

/// How many connections the bridge in this namespace has translated until now, in each family.
fn translated() -> [Option<u64>; 2] {
    let output = Command::new("nft").args(["-j", "list", "counters"]).output().expect("nft");
    let text = String::from_utf8_lossy(&output.stdout);
    let listed: Value = serde_json::from_str(&text).unwrap_or_default();
    let of_family = |family: &str| {
        let mut objects = listed["nftables"].as_array().into_iter().flatten();
        let own = |object: &&Value| {
            let counter = &object["counter"];
            counter["family"] == family && counter["table"] == TABLE
        };
        objects.find(own)?["counter"]["packets"].as_u64()
    };
    ["ip", "ip6"].map(of_family)
}
