//! Programs and files that write rules without regard to those of Kubernetes.

mod boot_files;
mod changes;
mod firewalld;
mod lock;
mod programs;

use super::{Check, Facts, NO_PROCESSES};

pub(super) const CHECKS: &[&Check] = &[
    &boot_files::CHECK,
    &changes::CHECK,
    &firewalld::CHECK,
    &lock::CHECK,
    &programs::FERM,
    &programs::NETFILTER_PERSISTENT,
    &programs::NFTABLES,
    &programs::PUPPET,
    &programs::SHOREWALL,
    &programs::UFW,
];

/// A program that writes rules for the whole host.
struct RulesWriter {
    /// The program's name in messages.
    name: &'static str,
    /// The name of the program's process, if it keeps running.
    process: Option<&'static str>,
    /// The program's name as an owner in the catalogue.
    owner: Option<&'static str>,
    /// The program's configuration files, each with the line that makes the program active. If that
    /// line is empty, any content of the file makes the program active.
    files: &'static [(&'static str, &'static str)],
    /// The program's systemd units.
    units: &'static [&'static str],
    /// True if the files have no effect unless one of the units is enabled.
    unit_decides: bool,
}

impl RulesWriter {
    /// The evidence that the program is active; empty if there is none.
    fn traces(&self, facts: &Facts<'_>) -> Vec<String> {
        let mut traces = Vec::new();
        let processes = facts.now.processes.iter().flatten();
        for process in processes.filter(|p| Some(p.name.as_str()) == self.process) {
            traces.push(format!("process {} ({}) runs", process.name, process.pid));
        }
        if let Some(counts) = self.owner.and_then(|o| facts.ownership.counts().get(o).copied()) {
            traces.push(format!(
                "its own chains: {}, rules: {}, tables: {}",
                counts.chains, counts.rules, counts.tables
            ));
        }
        let enabled = facts.live.and_then(|a| a.enabled_units.as_ref());
        let mut units = self.units.iter().filter(|u| enabled.is_some_and(|e| e.contains(**u)));
        let unit = units.next();
        traces.extend(unit.map(|u| format!("{u} starts at boot")));
        if unit.is_some() || enabled.is_none() || !self.unit_decides {
            traces.extend(self.files.iter().filter_map(|(path, line)| active(facts, path, line)));
        }
        traces
    }

    /// Which data is missing to tell whether the program is active; `None` if nothing is missing.
    fn missing(&self, facts: &Facts<'_>) -> Option<String> {
        // A live node was captured just now, so a file that the state lacks does not exist on the
        // node.
        if facts.live.is_some() {
            return None;
        }
        if self.process.is_some() && facts.now.processes.is_none() {
            return Some(NO_PROCESSES.into());
        }
        let files = facts.now.files.keys().any(|k| k.starts_with("files/"));
        (!files && !self.files.is_empty()).then(|| "no configuration file is in this state".into())
    }
}

/// Finds the line `wanted` in a file, regardless of blanks, quotes, `;` and case, and returns that
/// line with the file's path and the line number.
fn active(facts: &Facts<'_>, path: &str, wanted: &str) -> Option<String> {
    let text = facts.now.file(path)?;
    if wanted.is_empty() {
        return (!text.trim().is_empty()).then(|| format!("{path} is there"));
    }
    let plain = |l: &str| l.replace([' ', ';', '"', '\''], "").to_lowercase();
    let (number, line) = (1..).zip(text.lines()).find(|(_, l)| plain(l) == plain(wanted))?;
    Some(format!("{path}:{number}: {line}"))
}
