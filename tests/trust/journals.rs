//! A journal that is not as it was written proves nothing: no damage to one ends in a rollback that
//! is said to be complete and is not.

use std::fs;
use std::path::{Path, PathBuf};

use proxyshift::state::Backend;

use crate::common::node::{Case, assert_same};
use crate::common::{in_machine, in_namespace, run, run_with};
use crate::failing_runs::switch_of_a_sleeper;

/// The folder of the only run.
fn folder(store: &Path) -> PathBuf {
    let mut runs = fs::read_dir(store.join("runs")).expect("runs").flatten();
    runs.next().expect("a run").path()
}

/// Journals that differ from this one, each with the words that name its damage.
fn damaged(journal: &[u8]) -> Vec<(String, Vec<u8>)> {
    let lines: Vec<&[u8]> = journal.split_inclusive(|byte| *byte == b'\n').collect();
    let mut all = Vec::new();
    let mut begin = 0;
    for (n, line) in lines.iter().enumerate() {
        for part in [3, 20, 40, 60, 80, 97, 100] {
            let at = begin + (line.len() - 1) * part / 100;
            let mut flipped = journal.to_vec();
            flipped[at] ^= 1 << ((n + part) % 7);
            all.push((format!("a bit of line {n}, at {part} %"), flipped));
        }
        let without = |lines: &[&[u8]]| lines.concat();
        all.push((format!("line {n} deleted"), without(&[&lines[..n], &lines[n + 1..]].concat())));
        all.push((format!("cut off before line {n}"), without(&lines[..n])));
        let twice = [&lines[..=n], &lines[n..]].concat();
        all.push((format!("line {n} twice"), twice.concat()));
        if n > 0 {
            let mut swapped = lines.clone();
            swapped.swap(n - 1, n);
            all.push((format!("lines {} and {n} swapped", n - 1), swapped.concat()));
        }
        begin += line.len();
    }
    let text = String::from_utf8(journal.to_vec()).expect("text");
    for (what, from, to) in [
        ("a rule with another text", "KUBE-SEP", "KUBE-PES"),
        ("a change of nothing", "\"kind\":\"done\"", "\"kind\":\"undone\""),
        ("a step with another number", "\"step\":1", "\"step\":7"),
        ("an older line", "\"v\":1", "\"v\":0"),
    ] {
        // A run that was cut off early has not all of these.
        if text.contains(from) {
            all.push((what.into(), text.replacen(from, to, 1).into()));
        }
    }
    all.push(("nothing".into(), Vec::new()));
    all.push(("zeros".into(), vec![0; journal.len()]));
    all
}

/// Tries each damaged journal on the run that `words` leaves, and the journal as it was.
fn none_is_believed(words: &str, crash: Option<&str>) {
    let Case { node, proxyshift, before } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    match crash {
        None => proxyshift.expect(0, words),
        Some(point) => proxyshift.killed(words, point),
    };
    let after = node.rules();
    let folder = folder(&proxyshift.store);
    let saved = "/run/saved";
    run(&format!("cp -a {} {saved}", folder.display()));
    let journal = fs::read(folder.join("journal.jsonl")).expect("a journal");
    let mut believed = 0;
    let all = damaged(&journal);
    for (what, bytes) in &all {
        run_with(&format!("rm -r {0}; cp -a {saved} {0}", folder.display()), &["sh", "-e"]);
        fs::write(folder.join("journal.jsonl"), bytes).expect("written");
        let ended = proxyshift.run("rollback");
        let shown = format!("{what}: {:?} {}{}", ended.code, ended.out, ended.err);
        let is_before = node.rules() == *before;
        if ended.code == Some(0) {
            assert!(is_before, "{shown}");
            believed += 1;
        } else {
            assert_eq!(ended.code, Some(5), "{shown}");
            assert!(!ended.out.contains("Rolled back"), "{shown}");
            assert!(
                ended.err.contains("different from the snapshot") || crash.is_some(),
                "{shown}"
            );
            // The same is said when it is tried again, and by the list of runs.
            let status = proxyshift.run("status");
            assert!(status.out.contains("undone-partly"), "{shown}{}", status.out);
        }
        if is_before || crash.is_some() {
            node.load_rules(&after);
        }
    }
    // Only a last line that may have been torn is believed, and then the kernel is asked.
    assert!(believed <= if crash.is_some() { 4 } else { 0 }, "{believed} of {}", all.len());
    run_with(&format!("rm -r {0}; cp -a {saved} {0}", folder.display()), &["sh", "-e"]);
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), before, "with its journal");
}

#[test]
fn no_damaged_journal_of_a_done_run_is_believed() {
    if in_namespace("journals::no_damaged_journal_of_a_done_run_is_believed") {
        none_is_believed("cleanup --yes", None);
    }
}

#[test]
fn no_damaged_journal_of_a_run_that_was_cut_off_is_believed() {
    if in_namespace("journals::no_damaged_journal_of_a_run_that_was_cut_off_is_believed") {
        none_is_believed("cleanup --yes", Some("after:4"));
    }
}

#[test]
fn a_run_whose_journal_is_damaged_can_be_kept() {
    if !in_namespace("journals::a_run_whose_journal_is_damaged_can_be_kept") {
        return;
    }
    let Case { node, proxyshift, .. } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    proxyshift.expect(0, "cleanup --yes --confirm-within 10m");
    let after = node.rules();
    let journal = folder(&proxyshift.store).join("journal.jsonl");
    fs::write(&journal, "{}\n").expect("written");
    fs::remove_dir_all("/run/proxyshift/runs").expect("no copy in memory");
    proxyshift.expect(0, "confirm").reports(&["journal.jsonl"]);
    proxyshift.expect(0, "status");
    proxyshift.expect(5, "rollback");
    fs::remove_file(&journal).expect("removed");
    proxyshift.expect(5, "rollback").reports(&["different from the snapshot"]);
    assert_same(&node.rules(), &after, "nothing was undone");
}

/// While a run is pending, its journal is in memory too.
#[test]
fn a_copy_in_memory_stands_for_a_damaged_journal() {
    if !in_machine("journals::a_copy_in_memory_stands_for_a_damaged_journal") {
        return;
    }
    let Case { node, proxyshift, before } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    type Damage = fn(&[u8]) -> Vec<u8>;
    let damages: [(&str, Damage); 4] = [
        ("nothing", |_| Vec::new()),
        ("other text", |bytes| vec![b'x'; 2 * bytes.len()]),
        ("half of it", |bytes| bytes[..bytes.len() / 2].to_vec()),
        ("another byte", |bytes| {
            let mut bytes = bytes.to_vec();
            bytes[40] ^= 1;
            bytes
        }),
    ];
    for (name, damage) in damages {
        proxyshift.expect(0, "cleanup --yes --confirm-within 10m");
        let journal = folder(&proxyshift.store).join("journal.jsonl");
        let whole = fs::read(&journal).expect("a journal");
        fs::write(&journal, damage(&whole)).expect("written");
        proxyshift.expect(0, "rollback");
        assert_same(&node.rules(), before, name);
        fs::remove_dir_all(folder(&proxyshift.store)).expect("no other run");
    }
}

#[test]
fn what_others_changed_is_named_by_a_rollback() {
    if !in_namespace("journals::what_others_changed_is_named_by_a_rollback") {
        return;
    }
    let Case { node, proxyshift, before } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    proxyshift.expect(0, "cleanup --yes");
    run(&format!("{} -t filter -N SOMEBODY-ELSES", node.program("")));
    let ended = proxyshift.expect(0, "rollback -o json");
    let document = ended.json();
    let others = document["others"].as_array().expect("a list");
    assert!(others.len() == 1 && others[0].to_string().contains("SOMEBODY-ELSES"), "{document}");
    run(&format!("{} -t filter -X SOMEBODY-ELSES", node.program("")));
    assert_same(&node.rules(), before, "rolled back");
}

/// kube-proxy's own rules are written anew by a migration and its undo; those of others are not.
#[test]
fn what_others_added_is_named_by_the_undo_of_a_migration() {
    if !in_machine("journals::what_others_added_is_named_by_the_undo_of_a_migration") {
        return;
    }
    let Case { node, proxyshift, .. } = &Case::of("docker-iptables-1.30", Backend::Nft);
    let added = "FORWARD -s 10.5.0.0/16 -j ACCEPT";
    let hook = added.split(' ').collect::<Vec<_>>().join(", ");
    let switch = switch_of_a_sleeper();
    let playbook = format!(
        "{switch}hooks: {{after_switch: [{{run: [iptables-nft, -A, {hook}], timeout: 20s, \
         again: safe}}]}}\n"
    );
    fs::write("/var/lib/playbook.yaml", playbook).expect("written");
    let migrate = "migrate --to ipvs --yes --no-confirm --playbook /var/lib/playbook.yaml";
    // This kube-proxy never serves, so the migration goes back by itself.
    let ended = proxyshift.expect(4, migrate);
    ended.reports(&["kept: new:", "10.5.0.0/16"]);
    assert_eq!(ended.err.matches("kept: new:").count(), 1, "{}", ended.err);
    assert!(node.rules().contains(added));
}

#[test]
fn who_began_a_run_is_kept_and_shown() {
    if !in_namespace("journals::who_began_a_run_is_kept_and_shown") {
        return;
    }
    let Case { proxyshift, .. } = &Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    let mut command = proxyshift.command("cleanup --yes");
    command.env("SUDO_USER", "jane").env("SSH_CONNECTION", "10.9.8.7 5000 10.9.8.1 22");
    command.env("AWX_JOB_ID", "4711\u{1b}[2J").env("SECRET", "hunter2");
    assert!(command.status().expect("the program starts").success());
    let journal = fs::read_to_string(folder(&proxyshift.store).join("journal.jsonl"));
    let journal = journal.expect("a journal");
    let status = proxyshift.expect(0, "status -o json").json();
    let report = proxyshift.expect(0, "report -o json").json();
    for by in [&status["runs"][0]["by"], &report["by"]] {
        assert_eq!(by["sudo_user"], "jane");
        assert_eq!(by["ssh"], "10.9.8.7 5000 10.9.8.1 22");
        assert!(by["words"].as_str().is_some_and(|words| words.ends_with("cleanup --yes")), "{by}");
    }
    let lines: Vec<&str> = journal.lines().collect();
    assert!(lines[0].contains("\"sudo_user\":\"jane\"") && !lines[1].contains("jane"));
    let shown = proxyshift.expect(0, "report").out;
    assert!(shown.contains("sudo by jane") && !shown.contains('\u{1b}'), "{shown}");
    assert!(!format!("{journal}{status}{report}").contains("hunter2"));
}
