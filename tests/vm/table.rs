//! The results of all cases, as a page of the documentation.

use std::fmt::Write;

use crate::machine::{TOOK, has_passed};

/// The page about the output of these trials. `logs` has the output of the first run, and that of a
/// second run if failed trials were run again.
pub fn page(trials: &[String], logs: &[String]) -> String {
    let log = logs.join("\n");
    let kernel = log.lines().find_map(|l| l.strip_prefix("kernel: ")).unwrap_or("unknown");
    let mut page = format!(
        "# Soak\n\n\
         Written by `make soak` on {}: every case of the virtual machine, with the real kernel\n\
         ({kernel}) and kube-proxy of two versions. What each proves is in its name and in\n\
         `tests/vm/cases`.\n\n\
         | case | kube-proxy | result | seconds |\n|---|---|---|---|\n",
        &proxyshift::clock::now()[..10],
    );
    for trial in trials {
        let result = match logs.iter().position(|log| has_passed(trial, log)) {
            Some(0) => "ok",
            Some(_) => "ok, the second time",
            None => "FAILED",
        };
        let took = format!("{trial}{TOOK}");
        let seconds = log.lines().find_map(|l| l.strip_prefix(&*took)).unwrap_or("");
        let (case, version) = trial.split_once('@').expect("a version");
        let name = case.trim_start_matches("cases::").replace("soak_", "").replace('_', " ");
        let name = name.replace("::", ": ");
        writeln!(page, "| {name} | {version} | {result} | {seconds} |").expect("text");
    }
    page += "\nThe traffic beside these, and what of it failed. A new connection, question or line to and\n\
             fro that gets no answer within 5 s has failed.\n\n\
             | when | what | tries | failed |\n|---|---|---|---|\n";
    for (when, what, failed, tries) in log.lines().filter_map(count) {
        writeln!(page, "| {when} | {what} | {tries} | {failed} |").expect("text");
    }
    page
}

/// The part of the page about the boots in which the power was cut; the run that each
/// power cut interrupted was resolved by the next boot.
pub fn reboots(cuts: &[&str], seconds: &[u64]) -> String {
    let mut part = "\nThe power was cut in these stages on the way from iptables mode, and the next boot undid what\n\
        was begun. Each boot resolves the cut before it, then comes to its own.\n\n\
        | to, and cut at | undone | seconds of both boots |\n|---|---|---|\n"
        .to_owned();
    for (cut, boots) in cuts.iter().zip(seconds.windows(2)) {
        writeln!(part, "| {cut} | ok | {} |", boots[0] + boots[1]).expect("text");
    }
    part
}

/// The parts of a line `WHEN: WHAT: 0 of 42 failed`: when, what, and both numbers.
fn count(line: &str) -> Option<(&str, &str, &str, &str)> {
    // The first line that a case prints follows the name of the case on the same line.
    let line = line.rsplit_once(" ... ").map_or(line, |(_, output)| output);
    let (when, rest) = line.strip_suffix(" failed")?.split_once(": ")?;
    let (what, counts) = rest.split_once(": ")?;
    let (failed, tries) = counts.split_once(" of ")?;
    Some((when, what, failed, tries))
}
