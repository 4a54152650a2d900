//! Programs that proxyshift runs, when it is killed itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::time::Duration;

use proxyshift::state::Backend;

use crate::common::node::{Case, Proxyshift, assert_same};
use crate::common::{in_namespace, poll, run, run_with};

const NODE: &str = "canal-stale-flannel-1.20";

/// The lock file of all who write rules.
const LOCK: &str = "/run/xtables.lock";

/// A file that is there when a program has begun to write.
const BEGUN: &str = "/run/begun";

/// Another's rules, at the top of chains of which proxyshift removes rules.
const OTHERS: [(&str, &str); 3] = [
    ("filter", "FORWARD -s 192.0.2.0/24 -j RETURN"),
    ("nat", "POSTROUTING -s 192.0.2.0/24 -j RETURN"),
    ("nat", "PREROUTING -s 192.0.2.0/24 -j RETURN"),
];

/// Puts a script in front of iptables-legacy that does `script` first when a table is written.
/// `$real` is the program, which ends the script.
fn in_front(script: &str) {
    let program = "/usr/sbin/xtables-legacy-multi";
    run("mount -t tmpfs slow /mnt");
    fs::copy(program, "/mnt/real").expect("a copy");
    let text = format!(
        "#!/bin/bash\n\
         real() {{ exec -a \"${{0##*/}}\" /mnt/real \"$@\"; }}\n\
         if [[ $0 = *-restore && -n $XTABLES_LOCKFILE && $* = --noflush && -e /run/slowly ]]; then\n\
         echo $$ >{BEGUN}\n{script}\n\
         fi\n\
         exec -a \"${{0##*/}}\" /mnt/real \"$@\"\n"
    );
    fs::write("/mnt/script", text).expect("written");
    fs::set_permissions("/mnt/script", fs::Permissions::from_mode(0o755)).expect("executable");
    run(&format!("mount --bind /mnt/script {program}"));
}

/// Puts a script in front of the iptables of `backend` that kills itself at its call number N, if
/// /run/dies-at holds N. The calls in a sandbox, which has a /run of its own, do not count.
fn dies_when_told(backend: Backend) {
    let program = match backend {
        Backend::Legacy => "/usr/sbin/xtables-legacy-multi",
        Backend::Nft => "/usr/sbin/xtables-nft-multi",
    };
    run("mount -t tmpfs dies /mnt");
    fs::copy(program, "/mnt/real").expect("a copy");
    let text = "#!/bin/bash\n\
         if [ -e /run/dies-at ]; then\n\
         echo >>/run/calls\n\
         [ $(wc -l </run/calls) != $(cat /run/dies-at) ] || kill -KILL $$\n\
         fi\n\
         exec -a \"${0##*/}\" /mnt/real \"$@\"\n";
    fs::write("/mnt/script", text).expect("written");
    fs::set_permissions("/mnt/script", fs::Permissions::from_mode(0o755)).expect("executable");
    run(&format!("mount --bind /mnt/script {program}"));
}

/// Whichever call of a program fails, the node is as before or the clean-up is done.
fn no_call_that_dies_loses_a_rule(backend: Backend) {
    dies_when_told(backend);
    let Case { node, proxyshift, before } = Case::of(NODE, backend);
    let mut undone = 0;
    for call in 1.. {
        let _ = fs::remove_file("/run/calls");
        fs::write("/run/dies-at", call.to_string()).expect("written");
        let ended = proxyshift.run("cleanup --yes");
        fs::remove_file("/run/dies-at").expect("removed");
        let calls = fs::read_to_string("/run/calls").expect("counted").len();
        let (code, after) = (ended.code.expect("an exit code"), node.rules());
        match code {
            0 => assert_ne!(after, before, "call {call}"),
            3 | 4 => assert_same(&after, &before, &format!("call {call}: {}", ended.err)),
            // The death came in the undo: what is left is named, and done next.
            5 => {
                proxyshift.expect(0, "rollback");
                assert_same(&node.rules(), &before, &format!("call {call}: {}", ended.err));
            }
            _ => panic!("call {call}: {code}\n{}", ended.err),
        }
        undone += usize::from(code == 4);
        if code == 0 {
            proxyshift.expect(0, "rollback");
            assert_same(&node.rules(), &before, &format!("call {call}, rolled back"));
        }
        if calls < call {
            break;
        }
    }
    assert!(undone > 1, "{undone} of the calls came after a change");
}

/// Runs a clean-up until its program begins to write, and kills the clean-up, not the program.
fn killed_while_a_program_writes(proxyshift: &Proxyshift) {
    let mut command = proxyshift.command("cleanup --yes");
    fs::write("/run/slowly", "").expect("written");
    let mut child: Child = command.process_group(0).spawn().expect("it starts");
    poll("a program writes", || fs::read_to_string(BEGUN).is_ok_and(|pid| !pid.is_empty()));
    child.kill().expect("killed");
    child.wait().expect("dead");
    fs::remove_file("/run/slowly").expect("removed");
}

/// Another writer, who waits for the lock and then inserts rules.
fn another_writes() {
    run_with("", &["flock", "-w", "20", LOCK, "true"]);
    for (table, rule) in OTHERS {
        run(&format!("iptables-legacy -w 20 -t {table} -I {rule}"));
    }
}

/// The rules of the node without the other's.
fn without_others(rules: &str) -> String {
    let lines = rules.lines().filter(|line| !OTHERS.iter().any(|(_, rule)| line.contains(rule)));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The delay stands for a node that is short of memory, or whose disk hangs.
fn nobodys_rule_is_lost(script: &str) {
    in_front(script);
    let Case { node, proxyshift, before } = Case::of(NODE, Backend::Legacy);
    killed_while_a_program_writes(&proxyshift);
    another_writes();
    std::thread::sleep(Duration::from_secs(5));
    proxyshift.expect(0, "rollback");
    let after = node.rules();
    for (_, rule) in OTHERS {
        assert!(after.contains(rule), "{rule} is gone");
    }
    assert_same(&without_others(&after), &before, "after the rollback");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(node.rules(), after, "something still writes");
}

#[test]
fn a_program_that_dies_loses_no_rule() {
    if in_namespace("children::a_program_that_dies_loses_no_rule") {
        no_call_that_dies_loses_a_rule(Backend::Nft);
    }
}

#[test]
fn a_program_that_dies_loses_no_rule_on_legacy() {
    if in_namespace("children::a_program_that_dies_loses_no_rule_on_legacy") {
        no_call_that_dies_loses_a_rule(Backend::Legacy);
    }
}

#[test]
fn a_program_dies_with_proxyshift() {
    if in_namespace("children::a_program_dies_with_proxyshift") {
        nobodys_rule_is_lost("cat >/run/text; sleep 3; exec </run/text");
    }
}

/// The kernel kills the child, but not what the child itself started.
#[test]
fn what_outlives_proxyshift_keeps_the_lock() {
    if in_namespace("children::what_outlives_proxyshift_keeps_the_lock") {
        nobodys_rule_is_lost("cat >/run/text; (sleep 3; real \"$@\") </run/text & wait; exit");
    }
}

/// The rollback must not look before such a program has ended.
#[test]
fn a_rollback_waits_for_what_outlives_proxyshift() {
    if !in_namespace("children::a_rollback_waits_for_what_outlives_proxyshift") {
        return;
    }
    in_front("cat >/run/text; (sleep 3; real \"$@\") </run/text & wait; exit");
    let Case { node, proxyshift, before } = Case::of(NODE, Backend::Legacy);
    killed_while_a_program_writes(&proxyshift);
    proxyshift.expect(0, "rollback");
    std::thread::sleep(Duration::from_secs(4));
    assert_same(&node.rules(), &before, "after the rollback");
}

/// A full /tmp must not stop a run, and a killed one leaves nothing.
#[test]
fn nothing_is_left_in_tmp_and_no_room_is_needed_there() {
    if !in_namespace("children::nothing_is_left_in_tmp_and_no_room_is_needed_there") {
        return;
    }
    in_front("sleep 3");
    run("mount -t tmpfs -o size=64k,nr_inodes=8 small /tmp");
    let Case { node, proxyshift, before } = Case::of(NODE, Backend::Legacy);
    killed_while_a_program_writes(&proxyshift);
    assert_eq!(fs::read_dir("/tmp").expect("/tmp").count(), 0);
    // No block and no inode is free.
    run_with(
        "head -c 64k /dev/zero >/tmp/a; touch /tmp/b /tmp/c /tmp/d /tmp/e /tmp/f /tmp/g /tmp/h; true",
        &["sh"],
    );
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &before, "after the rollback");
    proxyshift.expect(0, "cleanup --yes");
    proxyshift.expect(0, "rollback");
    let left: Vec<String> = fs::read_dir("/run/proxyshift")
        .expect("the folder of the locks")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    assert_eq!(left, ["runs"]);
    assert_eq!(fs::read_dir("/run/proxyshift/runs").expect("copies").count(), 0);
}

/// An index that arrives late removes whatever is there then.
#[test]
fn a_rule_is_named_by_its_text() {
    if !in_namespace("children::a_rule_is_named_by_its_text") {
        return;
    }
    in_front("cat >/run/text.$$; real \"$@\" </run/text.$$");
    let Case { node, proxyshift, .. } = Case::of(NODE, Backend::Legacy);
    // A copy of a rule of flannel's: of two equal ones, one goes, by its index.
    run(
        "iptables-legacy -w -t nat -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.75.0/24 -j RETURN",
    );
    let before = node.rules();
    fs::write("/run/slowly", "").expect("written");
    proxyshift.expect(0, "cleanup --yes");
    let texts = run_with("cat /run/text.*", &["sh"]);
    let removed: Vec<&str> = texts.lines().filter(|line| line.starts_with("-D ")).collect();
    assert!(!removed.is_empty(), "{texts}");
    let by_index = |line: &&&str| line.split(' ').nth(2).is_some_and(|w| w.parse::<u32>().is_ok());
    let counted: Vec<_> = removed.iter().filter(by_index).collect();
    for line in &counted {
        let chain = line.split(' ').nth(1).expect("a chain");
        let rules: Vec<&str> =
            before.lines().filter(|l| l.starts_with(&format!("-A {chain} "))).collect();
        let equal = rules.iter().any(|a| rules.iter().filter(|b| a == *b).count() > 1);
        assert!(equal, "{line}: {rules:?}");
    }
    assert!(counted.len() < removed.len(), "{removed:?}");
    assert_eq!((counted.len(), removed.len()), (1, 2), "{removed:?}");
    proxyshift.expect(0, "rollback");
    assert_same(&node.rules(), &before, "after the rollback");
}
