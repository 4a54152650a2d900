//! The table of results, and the limits that the results must keep.

use std::fs;
use std::process::Command;

use crate::measure::{LIMIT, Measured};
use crate::node::ENDPOINTS;
use crate::watch::Took;

/// The results for one generated node: one column of the table.
pub struct Column {
    pub services: usize,
    pub backend: &'static str,
    pub ours: Measured,
    pub grep: Took,
    pub kube_proxy: Took,
}

/// Renders the results as a Markdown table, with the machine on which they were measured.
pub fn table(columns: &[Column]) -> String {
    let mut text = format!("{}\n\n", machine());
    let row = |head: &str, cell: &dyn Fn(&Column) -> String| {
        let cells: Vec<String> = columns.iter().map(cell).collect();
        format!("| {head} | {} |\n", cells.join(" | "))
    };
    text += &row(&format!("services × {ENDPOINTS} endpoints"), &|c| {
        format!("{}, {}", thousands(c.services), c.backend)
    });
    text += &format!("|---|{}\n", "---:|".repeat(columns.len()));
    text += &row("lines of `iptables-save`", &|c| thousands(c.ours.dump.0));
    text += &row("`iptables-save` alone", &|c| seconds(c.ours.save));
    text += &row("`proxyshift plan`: capture and plan", &|c| seconds(c.ours.plan));
    text += &row("`proxyshift check`: its capture", &|c| seconds(c.ours.capture));
    text += &row("`proxyshift check`: all checks together", &|c| seconds(c.ours.checks));
    text +=
        &row("snapshot: write, restore in a namespace, compare", &|c| seconds(c.ours.validation));
    text += &row("**`proxyshift cleanup`: apply and verify**", &|c| {
        format!("**{}**", seconds(c.ours.apply_and_verify))
    });
    text += &row("`iptables-save \\| grep -v KUBE- \\| iptables-restore`", &|c| seconds(c.grep));
    text += &row("kube-proxy's way: `iptables-restore --noflush`, `-X` a chain", &|c| {
        seconds(c.kube_proxy)
    });
    text += &row("`cleanup` as a whole: snapshot, rehearsal, apply, verify", &|c| {
        seconds(c.ours.whole_cleanup)
    });
    text += &row("`rollback` as a whole", &|c| seconds(c.ours.whole_rollback));
    text += &row("`iptables-save` after the rollback", &|c| seconds(c.ours.save_after_rollback));
    text += &row("peak memory of `plan`, × the dump (its children)", &|c| {
        memory(c, c.ours.plan_memory)
    });
    text += &row("peak memory of `cleanup`, × the dump (its children)", &|c| {
        memory(c, c.ours.cleanup_memory)
    });
    text
}

/// The limits that the results exceed, each as a sentence.
pub fn missed(columns: &[Column]) -> Vec<String> {
    let mut missed = Vec::new();
    let mut ask = |c: &Column, holds: bool, what: &str| {
        if !holds {
            missed.push(format!("{} services, {}: {what}", c.services, c.backend));
        }
    };
    for c in columns {
        let ours = &c.ours;
        if c.services == 5000 {
            let checks = ours.checks.seconds().zip(ours.capture.seconds());
            let quick = checks.is_some_and(|(checks, capture)| checks * 2.0 <= capture);
            ask(c, quick, "all checks take more than half of the capture");
        }
        if c.services == 5000 && c.backend == "nft" {
            let others = c.kube_proxy.seconds().unwrap_or(LIMIT.as_secs_f64());
            let apply = ours.apply_and_verify.seconds().is_some_and(|s| s * 10.0 < others);
            ask(c, apply, "apply and verify take more than a tenth of kube-proxy's way");
            let plan = ours
                .plan
                .seconds()
                .zip(ours.save.seconds())
                .is_some_and(|(plan, save)| plan <= 2.0 * save);
            ask(c, plan, "capture and plan take more than twice `iptables-save`");
            for (own, what) in [(ours.plan_memory.0, "plan"), (ours.cleanup_memory.0, "cleanup")] {
                let small = own < 5 * ours.dump.1 as u64;
                ask(c, small, &format!("{what} needs more memory than 5 dumps"));
            }
        }
        // When a line takes twice the time that it takes on the smallest node, the growth is no
        // longer linear.
        let first = columns.iter().find(|f| f.backend == c.backend).unwrap_or(c);
        let grown = c.ours.dump.0 as f64 / first.ours.dump.0 as f64;
        for (what, of) in [
            ("capture and plan", (|m| m.plan) as fn(&Measured) -> Took),
            ("validation", |m| m.validation),
            ("apply and verify", |m| m.apply_and_verify),
        ] {
            if of(ours) == Took::Refused {
                continue;
            }
            let linear = of(ours)
                .seconds()
                .zip(of(&first.ours).seconds())
                .is_some_and(|(b, a)| b <= 2.0 * grown * a);
            ask(c, linear, &format!("{what} grow faster than the node"));
        }
    }
    missed
}

fn seconds(took: Took) -> String {
    match took {
        Took::No => "–".into(),
        Took::Refused => "refused: rule of 2 s".into(),
        Took::TooLong => format!("> {} s", LIMIT.as_secs()),
        Took::Seconds(s) if s < 10.0 => format!("{s:.2} s"),
        Took::Seconds(s) => format!("{s:.0} s"),
    }
}

fn memory(column: &Column, (own, children): (u64, u64)) -> String {
    let dump = column.ours.dump.1 as f64;
    format!("{:.1} ({:.1})", own as f64 / dump, children as f64 / dump)
}

fn thousands(n: usize) -> String {
    if n < 1000 { n.to_string() } else { format!("{},{:03}", n / 1000, n % 1000) }
}

/// The versions of the kernel and of iptables, and the number of cores.
fn machine() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let output = Command::new("iptables-nft").arg("--version").output();
    let iptables = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let iptables = iptables.unwrap_or_default();
    let version = iptables.split(' ').nth(1).unwrap_or("of an unknown version").trim();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let kernel = kernel.trim();
    format!(
        "Linux {kernel}, iptables {version}, {cores} cores; –: failed, or not within an hour in all; \
         refused: reading the table takes too long under the lock that others wait for."
    )
}
