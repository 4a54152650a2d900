//! Loads a node's ipsets, rules, native tables and virtual servers into the private namespace.
//! Rules go into the backend that they have on the node.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::subsystems;
use crate::node::tools::{Tool, Tools};
use crate::plan::change::{Direction, Edit, Target, native_table};
use crate::run::sandbox::prerequisites;
use crate::state::nft::{NftTable, rebuild};
use crate::state::{Backend, NodeState, RulesetId};

/// How many lines this kernel may refuse before loading fails.
const TRIES: usize = 40;

/// How many lines of a table go into one message to the kernel, when the whole table is too long
/// for one. Outside the initial user namespace, iptables-nft-restore cannot enlarge the buffer of
/// its socket.
const PIECE: usize = 100;

/// The error of iptables-nft-restore when a message is too long. The line that the error names is
/// not the cause.
const TOO_LONG: &str = "Message too long";

/// The names of the objects that this kernel does not support.
#[derive(Debug, Default)]
pub struct UnsupportedObjects {
    /// Lines of an ipset or iptables save, each with the kind of the save before it.
    pub lines: Vec<String>,
    /// The names of virtual servers.
    pub servers: Vec<String>,
}

impl UnsupportedObjects {
    /// The names of all these objects.
    pub fn into_names(self) -> Vec<String> {
        [self.lines, self.servers].concat()
    }
}

/// Loads what rules name, then rules, then native tables, then virtual servers. Returns what this
/// kernel does not support.
///
/// # Errors
/// A tool is missing, or a tool refuses its input without naming a line.
pub fn load(state: &NodeState, tools: &Tools) -> Result<UnsupportedObjects> {
    let mut lines = Vec::new();
    if !state.ipsets.sets.is_empty() {
        let command = Command::new(tools.tool(Tool::Ipset)?).args(["restore"]);
        load_lines(&command, "ipset", state.ipsets.render(), Search::No, &mut lines)?;
    }
    let missing = prerequisites::prepare(state, tools)?;
    for (id, ruleset) in &state.rulesets {
        let text = prerequisites::without(*id, ruleset, &missing, &mut lines);
        load_ruleset(*id, &text, tools, &mut lines)?;
    }
    load_native(state, tools, &mut lines)?;
    Ok(UnsupportedObjects { lines, servers: load_ipvs(state, tools)? })
}

/// Makes the native tables from the kernel's messages about them, or, where the state has none because
/// an older version captured it, from nft's JSON.
fn load_native(state: &NodeState, tools: &Tools, unsupported: &mut Vec<String>) -> Result<()> {
    let kernel = Kernel::new(tools, Duration::ZERO);
    let mut listed: Vec<&NftTable> = Vec::new();
    for table in state.native_tables() {
        let NftTable { family, name, .. } = table;
        let Some(native) = native_table(family, name, state) else { continue };
        let refused = if !native.messages.is_empty() {
            let target = Target::NativeTable(native);
            let edit = Edit { direction: Direction::Add, target };
            kernel.apply(&edit).err().map(|error| error.cause)
        } else if let Some(cause) = state.nft_messages.refusal(family, name) {
            Some(cause.to_owned())
        } else if table.has_xtables_part() {
            Some("of whose xtables matches and targets nft prints names alone".into())
        } else {
            listed.push(table);
            None
        };
        unsupported.extend(refused.map(|cause| format!("nft table {family} {name}: {cause}")));
    }
    if !listed.is_empty() {
        Command::new(tools.tool(Tool::Nft)?)
            .args(["-j", "-f", "-"])
            .stdin(rebuild(listed.iter().flat_map(|table| &table.objects)).to_string())
            .run()?;
    }
    Ok(())
}

/// Loads the virtual servers if this kernel has ipvs; otherwise returns their names.
fn load_ipvs(state: &NodeState, tools: &Tools) -> Result<Vec<String>> {
    let servers = &state.ipvs.servers;
    if servers.is_empty() {
        return Ok(Vec::new());
    }
    if !subsystems::ip_vs() {
        return Ok(servers.iter().map(|s| format!("virtual server {}", s.service)).collect());
    }
    // `lo` must be up, because a network namespace without any address accepts no virtual server.
    Command::new(tools.tool(Tool::Ip)?).args(["link", "set", "lo", "up"]).run()?;
    let command = Command::new(tools.tool(Tool::Ipvsadm)?).args(["-R"]);
    command.stdin(state.ipvs.render()).run()?;
    Ok(Vec::new())
}

fn load_ruleset(
    id: RulesetId,
    text: &str,
    tools: &Tools,
    unsupported: &mut Vec<String>,
) -> Result<()> {
    let command =
        Command::new(tools.tool(Tool::Restore(id))?).args(["-c"]).deadline(Duration::from_secs(60));
    let (what, before) = (id.to_string(), unsupported.len());
    let search = match id.backend {
        Backend::Legacy => Search::Yes,
        Backend::Nft => Search::No,
    };
    match load_lines(&command, &what, scattered(text), search, unsupported) {
        Err(e) if e.cause.contains(TOO_LONG) => unsupported.truncate(before),
        done => return done,
    }
    for (first, piece) in pieces(&scattered(text)) {
        let more = if first { None } else { Some("--noflush") };
        load_lines(&command.clone().args(more), &what, piece, Search::No, unsupported)?;
    }
    Ok(())
}

/// The save, with the declarations of its chains put into a scattered order, similar to the order
/// in which the owners of chains make them. After a restore of declarations in sorted order, every
/// later iptables-nft-save takes many times as long.
fn scattered(save: &str) -> String {
    let hash = |line: &&str| {
        let mut hasher = DefaultHasher::new();
        line.split(' ').next().hash(&mut hasher);
        hasher.finish()
    };
    let mut text = String::with_capacity(save.len());
    let lines: Vec<&str> = save.lines().collect();
    for run in lines.chunk_by(|a, b| a.starts_with(':') && b.starts_with(':')) {
        let mut run = run.to_vec();
        run.sort_by_cached_key(hash);
        for line in run {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Splits each table of a save into pieces. The piece marked `true` is the table's first and
/// empties the table; the others add to it.
fn pieces(text: &str) -> Vec<(bool, String)> {
    let mut all = Vec::new();
    for table in text.split("\nCOMMIT") {
        let mut lines = table.lines().skip_while(|line| !line.starts_with('*'));
        let Some(name) = lines.next() else { continue };
        let lines: Vec<&str> = lines.collect();
        let empty = [&lines[..0]];
        let chunks = empty.into_iter().chain(lines.chunks(PIECE));
        all.extend(
            chunks
                .enumerate()
                .map(|(i, chunk)| (i == 0, format!("{name}\n{}\nCOMMIT\n", chunk.join("\n")))),
        );
    }
    all
}

/// Whether to search for the rule that the kernel refuses, where the program names only the end of
/// its table, as iptables-legacy-restore does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Search {
    Yes,
    No,
}

/// Feeds `text` to `command`. When a line is refused, drops it, adds it to `unsupported`, and feeds
/// the rest again.
fn load_lines(
    command: &Command,
    what: &str,
    text: String,
    search: Search,
    unsupported: &mut Vec<String>,
) -> Result<()> {
    let mut text = Arc::new(text);
    let mut error = None;
    for _ in 0..TRIES {
        match command.clone().shared_stdin(text.clone()).run() {
            Ok(_) => return Ok(()),
            Err(e) if e.cause.contains(TOO_LONG) => {
                return Err(Error { kind: Kind::Rehearsal, ..e });
            }
            Err(e) => {
                let mut lines: Vec<&str> = text.lines().collect();
                let named = refused_line(&e.cause).and_then(|number| number.checked_sub(1));
                let bad = match named.filter(|at| *at < lines.len()) {
                    Some(end) if lines[end].trim() != "COMMIT" => Some(end),
                    Some(end) if search == Search::Yes => refused_rule(command, &lines[..end]),
                    _ => None,
                };
                let Some(bad) = bad else {
                    // The kernel refused the table as a whole, so there is no single line to drop.
                    return Err(Error { kind: Kind::Rehearsal, ..e });
                };
                unsupported.push(format!("{what}: {}", lines[bad]));
                lines[bad] = "#";
                let mut left = lines.join("\n");
                left.push('\n');
                text = Arc::new(left);
                error = Some(e);
            }
        }
    }
    let cause = error.map_or_else(String::new, |e| e.cause);
    Err(Error::new(
        Kind::Rehearsal,
        what,
        format!("too much that this kernel cannot load: {cause}"),
    ))
}

/// The index of the first rule that the kernel refuses in the last table of `lines`, which lack the
/// table's end. The kernel takes each rule by itself, so the rules up to that one are refused, and
/// those before it are not.
fn refused_rule(command: &Command, lines: &[&str]) -> Option<usize> {
    let table = lines.iter().rposition(|line| line.starts_with('*'))?;
    let is_rule = |at: &usize| lines[*at].starts_with(['-', '[']);
    let rules: Vec<usize> = (table..lines.len()).filter(is_rule).collect();
    let is_refused = |count: usize| {
        let left_out = rules.get(count..).unwrap_or_default();
        let kept = (table..lines.len()).filter(|at| left_out.binary_search(at).is_err());
        let text: String = kept.map(|at| format!("{}\n", lines[at])).collect();
        command.clone().stdin(text + "COMMIT\n").run().is_err()
    };
    if is_refused(0) {
        return None;
    }
    let (mut taken, mut refused) = (0, rules.len());
    while refused - taken > 1 {
        let middle = taken + (refused - taken) / 2;
        if is_refused(middle) { refused = middle } else { taken = middle }
    }
    refused.checked_sub(1).and_then(|last| rules.get(last).copied())
}

/// The line number in an error message: `line: 12`, `line 12 failed`, `Error in line 3`.
fn refused_line(message: &str) -> Option<usize> {
    let at = message.find("line")?;
    let digits: String = message[at + 4..]
        .trim_start_matches([':', ' '])
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{PIECE, pieces, refused_line, scattered};

    #[test]
    fn chains_are_scattered_and_nothing_else_moves() {
        let names = ["A", "B", "C", "D", "E", "F"];
        let declared: String = names.iter().map(|n| format!(":{n} - [0:0]\n")).collect();
        let save = format!("# x\n*nat\n:INPUT ACCEPT [1:2]\n{declared}[0:0] -A B\n-A A\nCOMMIT\n");
        let text = scattered(&save);
        assert_ne!(text, save);
        assert!(text.ends_with("[0:0] -A B\n-A A\nCOMMIT\n"), "{text}");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&text), sorted(&save));
    }

    #[test]
    fn pieces_hold_every_line_in_order() {
        let rules: Vec<String> =
            (0..PIECE + 1).map(|i| format!("-A A -m mark --mark {i}")).collect();
        let nat = format!("*nat\n:A - [0:0]\n{}", rules.join("\n"));
        let save = format!("# made by hand\n{nat}\nCOMMIT\n# done\n*raw\nCOMMIT\n# done\n");
        let pieces = pieces(&save);
        let kinds: Vec<(bool, &str)> = pieces.iter().map(|(first, p)| (*first, &p[..4])).collect();
        assert_eq!(kinds, [(true, "*nat"), (false, "*nat"), (false, "*nat"), (true, "*raw")]);
        let lines = pieces.iter().flat_map(|(_, piece)| piece.lines());
        let inner: Vec<&str> =
            lines.filter(|l| !l.is_empty() && !l.starts_with('*') && *l != "COMMIT").collect();
        assert_eq!(inner.join("\n"), nat["*nat\n".len()..]);
    }

    #[test]
    fn the_refused_line_is_found() {
        assert_eq!(refused_line("x: Error occurred at line: 12"), Some(12));
        assert_eq!(refused_line("iptables-restore: line 7 failed"), Some(7));
        assert_eq!(refused_line("ipset v7.17: Error in line 3: Unknown"), Some(3));
        assert_eq!(refused_line("Permission denied"), None);
    }
}
