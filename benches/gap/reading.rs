//! How long proxyshift takes to read a node in nftables mode, beside `nft -j list ruleset`.

use std::process::{Command, Stdio};
use std::time::Instant;

/// How often each is measured; the median counts.
const TIMES: usize = 3;

/// How many times as long as nft a whole capture and plan, or check, may take.
const LIMIT: f64 = 1.5;

/// The seconds that each takes on the node in this namespace.
pub struct Reading {
    nft: f64,
    plan: f64,
    check: f64,
}

impl Reading {
    /// Measures on the node in this namespace.
    pub fn of_this_node() -> Reading {
        let proxyshift = env!("CARGO_BIN_EXE_proxyshift");
        Reading {
            nft: median(&["nft", "-j", "list", "ruleset"]),
            plan: median(&[proxyshift, "--store", "/run/store", "plan", "-o", "json"]),
            check: median(&[proxyshift, "--store", "/run/store", "check", "-o", "json"]),
        }
    }

    /// Whether the capture and the plan, and the check, are within the limit.
    pub fn is_within_limit(&self) -> bool {
        self.plan.max(self.check) <= LIMIT * self.nft
    }

    /// The measurement as a row of a Markdown table.
    pub fn row(&self, services: usize, endpoints: usize) -> String {
        let Reading { nft, plan, check } = self;
        format!("| {services} × {endpoints} | {nft:.2} | {plan:.2} | {check:.2} |")
    }
}

fn median(words: &[&str]) -> f64 {
    let mut seconds: Vec<f64> = (0..TIMES)
        .map(|_| {
            let began = Instant::now();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
            let status = command.stderr(Stdio::null()).status().expect(words[0]);
            // 3: a check that blocks, such as that of a private namespace without a CNI plugin.
            assert!(matches!(status.code(), Some(0 | 3)), "{words:?}: {status}");
            began.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[TIMES / 2]
}
