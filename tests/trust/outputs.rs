//! Outputs that are closed, full, or read by nobody, and a limit for the size of files. None of
//! them ends a run in the middle, or changes the exit code of a verb that changes the node.

use std::fs;
use std::process::{Command, Stdio};

use proxyshift::state::Backend;
use serde_json::json;

use crate::common::in_namespace;
use crate::common::node::{Case, Ended, assert_same};
use crate::common::program;

/// Standard output and standard error as they may be when nobody is there any more.
const WAYS: [&str; 8] = [
    ">&-",
    "2>&-",
    ">&- 2>&-",
    ">/dev/full",
    "2>/dev/full",
    ">/dev/full 2>/dev/full",
    "unread",
    "unread, both",
];

/// Runs the command with its outputs in this `way`. Returns the exit code.
fn code(command: &Command, way: &str) -> i32 {
    let line = |redirection: &str| {
        let mut sh = Command::new("timeout");
        sh.args(["60", "sh", "-c", &format!("exec \"$@\" {redirection}"), "sh"]);
        sh.arg(command.get_program()).args(command.get_args());
        sh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        sh
    };
    let mut started = match way {
        "unread" | "unread, both" => {
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            let mut sh = line("");
            if way == "unread, both" {
                sh.stderr(writer.try_clone().expect("a copy"));
            }
            sh.stdout(writer);
            sh
        }
        way => line(way),
    };
    let status = started.status().expect("timeout, of coreutils");
    status.code().unwrap_or_else(|| panic!("{way}: {status}"))
}

fn case() -> Case {
    Case::of("half-migrated-ipvs-1.20", Backend::Nft)
}

#[test]
fn no_output_stops_a_change_or_hides_it() {
    if !in_namespace("outputs::no_output_stops_a_change_or_hides_it") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes");
    let clean = node.rules();
    proxyshift.expect(0, "rollback");
    for (n, way) in WAYS.into_iter().enumerate() {
        let form = ["", "-o json --progress json "][n % 2];
        let end = |words: &str, wanted: i32, rules: &str| {
            let words = format!("{form}{words}");
            assert_eq!(code(&proxyshift.command(&words), way), wanted, "{words}, {way}");
            assert_same(&node.rules(), rules, &format!("{words}, {way}"));
        };
        end("cleanup --yes --confirm-within 5m", 0, &clean);
        end("status", 6, &clean);
        end("cleanup --yes", 6, &clean);
        end("extend 10m", 0, &clean);
        end("confirm", 0, &clean);
        end("rollback", 0, before);
    }
    // What could not be written is said where it can be.
    let mut command = proxyshift.command("cleanup --yes");
    command.stdout(fs::File::options().write(true).open("/dev/full").expect("a device"));
    let ended = Ended::of(command);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    ended.reports(&["the result is not all written", "standard output", "No space left"]);
}

#[test]
fn a_fix_of_a_check_needs_no_output() {
    if !in_namespace("outputs::a_fix_of_a_check_needs_no_output") {
        return;
    }
    let Case { node, proxyshift, before } = &Case::of("canal-stale-flannel-1.20", Backend::Nft);
    let fix = "check --only cni.flannel-rules --fix --yes";
    for way in WAYS {
        assert_eq!(code(&proxyshift.command(fix), way), 0, "{way}");
        assert_ne!(node.rules(), *before, "{way}");
        assert_eq!(code(&proxyshift.command("rollback"), way), 0, "{way}");
        assert_same(&node.rules(), before, way);
    }
}

/// Their output is all that these verbs make. A reader that has seen enough is no failure.
#[test]
fn a_verb_that_can_tell_nothing_fails() {
    if !in_namespace("outputs::a_verb_that_can_tell_nothing_fails") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes");
    proxyshift.expect(0, "rollback");
    for words in [
        "plan",
        "plan -o json",
        "plan --progress json",
        "cleanup --dry-run",
        "check --only tools.disk-room",
        "check --list",
        "status",
        "status -o json",
        "report",
        "snapshot list",
        "snapshot show",
        "snapshot verify -o json",
        "snapshot diff latest latest",
        "completions bash",
    ] {
        let good = proxyshift.run(words).code.expect("an exit code");
        assert_eq!(good, 0, "{words}");
        for way in WAYS {
            let wanted = if way.starts_with(">/dev/full") { 3 } else { good };
            assert_eq!(code(&proxyshift.command(words), way), wanted, "{words}, {way}");
        }
        let mut command = proxyshift.command(words);
        command.stdout(fs::File::options().write(true).open("/dev/full").expect("a device"));
        let ended = Ended::of(command);
        ended.reports(&["standard output", "No space left", "nothing was changed"]);
    }
    assert_same(&node.rules(), before, "after looking");
}

#[test]
fn a_module_whose_answer_nobody_reads_ends_as_it_would() {
    if !in_namespace("outputs::a_module_whose_answer_nobody_reads_ends_as_it_would") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    fs::copy(program(), "/run/AnsiballZ_proxyshift").expect("a copy");
    let module = |options: serde_json::Value, way: &str| {
        let mut all = json!({
            "store": proxyshift.store, "lock_wait": 30, "_ansible_check_mode": false,
            "_ansible_diff": true, "_ansible_no_log": false, "_ansible_verbosity": 0,
        });
        for (key, value) in options.as_object().expect("options") {
            all[key] = value.clone();
        }
        fs::write("/run/task", all.to_string()).expect("written");
        let mut command = Command::new("/run/AnsiballZ_proxyshift");
        command.arg("/run/task");
        code(&command, way)
    };
    let checked = module(json!({"state": "checked"}), "");
    for way in WAYS {
        assert_eq!(module(json!({"state": "checked"}), way), checked, "{way}");
        assert_eq!(module(json!({"state": "cleaned"}), way), 0, "{way}");
        assert_ne!(node.rules(), *before, "{way}");
        assert_eq!(module(json!({"state": "rolled_back"}), way), 0, "{way}");
        assert_same(&node.rules(), before, way);
        assert_eq!(module(json!({"state": "nonsense"}), way), 2, "{way}");
    }
}

/// A write beyond the limit is an error, and the signal of it ends nothing.
#[test]
fn a_limit_for_files_is_a_full_disk() {
    if !in_namespace("outputs::a_limit_for_files_is_a_full_disk") {
        return;
    }
    let Case { node, proxyshift, before } = &case();
    proxyshift.expect(0, "cleanup --yes");
    let clean = node.rules();
    proxyshift.expect(0, "rollback");
    let limited = |limit: u64, words: &str| {
        let verb = proxyshift.command(words);
        let mut command = Command::new("prlimit");
        command.arg(format!("--fsize={limit}")).arg(verb.get_program()).args(verb.get_args());
        command
    };
    let mut stopped = 0;
    for words in ["cleanup --yes", "cleanup --yes --confirm-within 5m"] {
        for power in 0..=14 {
            let limit = 1 << (2 * power);
            let ended = Ended::of(limited(limit, words));
            let shown = format!("{words}, {limit}: {:?} {}{}", ended.code, ended.out, ended.err);
            match ended.code {
                Some(0) => assert_same(&node.rules(), &clean, &shown),
                Some(3 | 4) => {
                    assert_same(&node.rules(), before, &shown);
                    ended.reports(&["File too large", "next:"]);
                    stopped += 1;
                }
                _ => panic!("{shown}"),
            }
            if ended.code == Some(0) {
                proxyshift.expect(0, "rollback");
                assert_same(&node.rules(), before, &shown);
            }
        }
    }
    assert!((10..28).contains(&stopped), "{stopped}");
    // The result itself goes to a file.
    let mut plan = limited(10, "plan");
    plan.stdout(fs::File::create("/run/plan").expect("a file"));
    let ended = Ended::of(plan);
    assert_eq!(ended.code, Some(3), "{}", ended.err);
    ended.reports(&["standard output", "File too large"]);
}
