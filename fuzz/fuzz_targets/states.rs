//! States of nodes: captured nodes whose files are edited, and all that is concluded from them.
#![no_main]

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::{Corpus, fuzz_target};
use proxyshift::checks::{self, Facts, Verdict};
use proxyshift::kube_proxy::takeover::predict_takeover;
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::plan::change::{Change, Direction, Edit, Target, edits};
use proxyshift::plan::invariants::{
    EditProgress, progress, remaining_state, unexpected_changes, without,
};
use proxyshift::plan::leftovers::{black_holes, leftovers, leftovers_after};
use proxyshift::plan::merge::undo;
use proxyshift::run::stored::parse_snapshot;
use proxyshift::state::kube_proxy::Mode;
use proxyshift::state::ruleset::Ruleset;
use proxyshift::state::{Files, NodeState};
use proxyshift::ui::page::Page;
use proxyshift::visible::is_hidden;
use proxyshift_fuzz::{parsed, shown};

/// The captured nodes, sorted by name, and the names of all their files.
struct Captured {
    nodes: Vec<Files>,
    names: Vec<String>,
    catalogue: Catalogue,
}

/// Files that no captured node has, and that a parser reads.
const MORE: [&str; 7] = [
    "nft.messages",
    "ip6tables-legacy.save",
    "lookalikes.json",
    "files/etc/docker/daemon.json",
    "files/etc/iptables/rules.v4",
    "files/etc/nftables.conf",
    "files/etc/Corefile",
];

fn captured() -> &'static Captured {
    static CAPTURED: OnceLock<Captured> = OnceLock::new();
    CAPTURED.get_or_init(|| {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots"));
        let entries = fs::read_dir(root).expect("the captured nodes").flatten();
        let mut folders: Vec<_> = entries.map(|e| e.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        let mut nodes = vec![Files::new(); folders.len()];
        for (folder, files) in folders.iter().zip(&mut nodes) {
            read(folder, "", files);
        }
        let mut names: BTreeSet<String> = nodes.iter().flat_map(|n| n.keys()).cloned().collect();
        names.extend(MORE.map(str::to_owned));
        let catalogue = Catalogue::builtin().expect("the built-in catalogue");
        Captured { nodes, names: names.into_iter().collect(), catalogue }
    })
}

fn read(folder: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        match entry.path().is_dir() {
            true => read(&entry.path(), &format!("{name}/"), files),
            false => {
                drop(files.insert(
                    name,
                    fs::read_to_string(entry.path()).expect("a captured file").into(),
                ))
            }
        }
    }
}

// The input: a letter for the captured node, a letter for the mode to go to, then edits of files.
fuzz_target!(|input: &[u8]| -> Corpus {
    let all = captured();
    let [node, to, changes @ ..] = input else { return Corpus::Reject };
    let Some(node) = all.nodes.get(usize::from(node.wrapping_sub(b'a'))) else {
        return Corpus::Reject;
    };
    let to = match to {
        b'-' => None,
        to => match Mode::ALL.get(usize::from(to.wrapping_sub(b'a'))) {
            Some(mode) => Some(*mode),
            None => return Corpus::Reject,
        },
    };
    let mut files = node.clone();
    for change in changes.split(|byte| *byte == 0xff) {
        let Ok(change) = str::from_utf8(change) else { return Corpus::Reject };
        if !change.is_empty() && edit(&mut files, change).is_none() {
            return Corpus::Reject;
        }
    }
    let size = files.values().map(|text| text.len()).sum::<usize>();
    if let Some(state) = parsed(parse_snapshot(files.clone()), &"x".repeat(size)) {
        // Only what is imported must render to the same bytes.
        let _ = state.unfaithful_file();
        judge(&state, to);
    }
    Corpus::Keep
});

/// Carries out one edit: its verb, a letter for the file, and more.
fn edit(files: &mut Files, change: &str) -> Option<()> {
    let all = captured();
    let mut chars = change.chars();
    let (verb, file) = (chars.next()?, chars.next()?);
    let name = all.names.get((file as usize).checked_sub('A' as usize)?)?;
    let rest = chars.as_str();
    let text = files.get(name).map(|text| text.to_string()).unwrap_or_default();
    let mut lines: Vec<&str> = text.lines().collect();
    // Most edits are of a line: its number, a blank, and what becomes of it.
    let (number, new) = rest.split_once(' ').unwrap_or((rest, ""));
    let at = || number.parse::<usize>().ok()?.checked_rem(lines.len());
    let words;
    match verb {
        // The whole text.
        '=' => return files.insert(name.clone(), rest.into()).map_or(Some(()), |_| Some(())),
        // The file of another node.
        '@' => {
            let other = all.nodes.get(number.parse::<usize>().ok()?)?;
            return files
                .insert(name.clone(), other.get(name)?.clone())
                .map_or(Some(()), |_| Some(()));
        }
        '!' => return files.remove(name).map(drop),
        '-' => drop(lines.remove(at()?)),
        '+' => lines.insert(at()?, new),
        '*' => lines.insert(at()?, lines[at()?]),
        '<' => {
            let (one, other) = (at()?, new.parse::<usize>().ok()?.checked_rem(lines.len())?);
            lines.swap(one, other);
        }
        // A word of a line: its number, and what becomes of it.
        '~' => {
            let at = at()?;
            let (number, new) = new.split_once(' ').unwrap_or((new, ""));
            let mut all: Vec<&str> = lines[at].split(' ').collect();
            let word = number.parse::<usize>().ok()?.checked_rem(all.len())?;
            all[word] = new;
            words = all.join(" ");
            lines[at] = &words;
        }
        _ => return None,
    }
    let text: String = lines.iter().flat_map(|line| [*line, "\n"]).collect();
    files.insert(name.clone(), text.into());
    Some(())
}

fn judge(state: &NodeState, to: Option<Mode>) {
    let catalogue = &captured().catalogue;
    let ownership = Ownership::of(catalogue, state);
    let _ = ownership.counts();
    let plan = leftovers(catalogue, state, &ownership);
    let mut page = Page::new();
    for object in &plan.objects {
        assert!(object.id.present_in(state), "{}", object.id);
        assert!(ownership.of_object(&object.id).is_some(), "{}", object.id);
        page.columns(&[vec![object.id.to_string(), object.text().into_owned()]]);
        page.wrapped(&object.sentence(), "  ", "    ");
    }
    let removals = edits(&plan, state);
    assert_eq!(removals.iter().map(Edit::objects).sum::<usize>(), plan.removals().count());
    removed(state, &removals);
    let black_holes = parsed(black_holes(state, &ownership), &"x".repeat(1 << 20));
    black_holes.iter().flatten().for_each(|object| page.line(object.sentence()));
    for finding in checks::run(&Facts::of(state, catalogue, &ownership, to), &|_| true) {
        match finding.verdict {
            Verdict::Ok(text) | Verdict::Unknown(text) => page.indented(finding.id, &text),
            Verdict::Found(found) => {
                found.evidence.iter().for_each(|text| page.indented("evidence", text));
                page.indented("effect", &found.effect);
                page.lines(&found.remedy);
                let fixes = found.fix.into_iter().filter_map(|change| match change {
                    Change::Objects(edit) => Some(edit),
                    _ => None,
                });
                removed(state, &fixes.collect::<Vec<Edit>>());
            }
        }
    }
    if let Some(to) = to {
        let after = predict_takeover(catalogue, state, to).expect("what remains parses");
        let _ = leftovers_after(catalogue, &after, to);
    }
    assert!(page.text().lines().all(|line| !line.contains(is_hidden)));
    state.files.keys().for_each(|name| shown(name));
}

/// Removals leave a state that parses, to which nothing else happened, and can be undone.
fn removed(state: &NodeState, removals: &[Edit]) {
    assert!(removals.iter().all(|edit| edit.direction == Direction::Remove));
    if removals.is_empty() {
        return;
    }
    let rules = || NodeState { rulesets: state.rulesets.clone(), ..NodeState::default() };
    remaining_state(rules(), removals).expect("what remains parses");
    assert!(removals.iter().all(|edit| progress(edit, state, state) == EditProgress::NotDone));
    let mut after = rules();
    for removal in removals {
        let Target::Table(table) = &removal.target else { continue };
        let ruleset = after.rulesets.get_mut(&table.ruleset).expect("what is edited");
        let old = ruleset.table(&table.table).expect("what is edited");
        let line = |chain: &str, at: usize| old.chain(chain).expect("a chain").rules[at].line;
        let lines: HashSet<u32> =
            table.rules.iter().map(|rule| line(&rule.chain, rule.position)).collect();
        let text = ruleset.text_without_rules(&lines);
        *ruleset = Ruleset::parse("f", text.into()).expect("what remains parses");
        *ruleset = without(ruleset, table).expect("what remains parses");
        let gone: HashSet<&str> = table.chains.iter().map(|chain| &*chain.name).collect();
        let left = ruleset.table(&table.table).into_iter().flat_map(|table| table.rules());
        for (_, _, rule) in left {
            let target = rule.target.as_deref().unwrap_or_default();
            assert!(!gone.contains(target), "{} is left", ruleset.rule_text(rule));
        }
    }
    for (id, before) in &state.rulesets {
        let found = unexpected_changes(*id, Some(before), after.rulesets.get(id), removals);
        assert_eq!(found, []);
    }
    let tables = removals.iter().filter(|edit| matches!(edit.target, Target::Table(_)));
    let tables: Vec<Edit> = tables.cloned().collect();
    for removal in &tables {
        assert_eq!(progress(removal, state, &after), EditProgress::Done, "{removal}");
    }
    let back = undo(&tables, state, &after);
    assert_eq!(back.conflicts, [""; 0]);
    assert_eq!(back.edits.iter().map(Edit::objects).sum::<usize>(), {
        tables.iter().map(Edit::objects).sum::<usize>()
    });
}
