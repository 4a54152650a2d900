//! Programs and files that write rules and know nothing of Kubernetes.

pub(super) mod boot_files;
pub(super) mod changes;
pub(super) mod firewalld;
pub(super) mod lock;
pub(super) mod programs;

use super::Facts;

/// A program that writes rules for the whole host.
struct Writer {
    /// What it is called.
    name: &'static str,
    /// Its name among the processes, if it stays.
    process: Option<&'static str>,
    /// Its name as an owner in the catalogue.
    owner: Option<&'static str>,
    /// Its files, with the line that makes it active; with an empty one, any content does.
    files: &'static [(&'static str, &'static str)],
    /// Its units.
    units: &'static [&'static str],
    /// True if its files do nothing without its unit.
    unit_decides: bool,
}

impl Writer {
    /// What shows that it is active.
    fn traces(&self, facts: &Facts<'_>) -> Vec<String> {
        let mut traces = Vec::new();
        let processes = facts.now.processes.iter().flatten();
        for process in processes.filter(|p| Some(p.name.as_str()) == self.process) {
            traces.push(format!("process {} ({}) runs", process.name, process.pid));
        }
        if let Some(counts) = self.owner.and_then(|o| facts.ownership.counts().get(o).copied()) {
            let (chains, rules, tables) = (counts.chains, counts.rules, counts.tables);
            traces.push(format!("its own chains: {chains}, rules: {rules}, tables: {tables}"));
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

    /// What was missing to know, if nothing shows it.
    fn missing(&self, facts: &Facts<'_>) -> Option<String> {
        // A live node was just looked at: what was not captured is not there.
        if facts.live.is_some() {
            return None;
        }
        if self.process.is_some() && facts.now.processes.is_none() {
            return Some("the processes are not in this state".into());
        }
        let files = facts.now.files.keys().any(|k| k.starts_with("files/"));
        (!files && !self.files.is_empty()).then(|| "no configuration file is in this state".into())
    }
}

/// The file at `path`, with the line that is `wanted` (blanks, quotes, `;` and case aside).
fn active(facts: &Facts<'_>, path: &str, wanted: &str) -> Option<String> {
    let text = facts.now.file(path)?;
    if wanted.is_empty() {
        return (!text.trim().is_empty()).then(|| format!("{path} is there"));
    }
    let plain = |l: &str| l.replace([' ', ';', '"', '\''], "").to_lowercase();
    let (number, line) = (1..).zip(text.lines()).find(|(_, l)| plain(l) == plain(wanted))?;
    Some(format!("{path}:{number}: {line}"))
}
