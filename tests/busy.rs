//! A node so busy that reading a legacy table under the xtables lock takes longer than other
//! programs may be made to wait. proxyshift tries again, gives up if nothing is changed yet, and
//! undoes a run that has begun all the same.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use common::node::{Case, assert_same};
use common::{in_namespace, run};
use proxyshift::state::Backend;

/// The file that holds how many further reads of a table under the xtables lock are to be slow.
const SLOW: &str = "/run/slow";

impl Case {
    /// Replaces the programs of iptables-legacy by a wrapper. The wrapper slows down the reads that
    /// are given a lock file, as many of them as the file [`SLOW`] says.
    fn new() -> Case {
        let program = "/usr/sbin/xtables-legacy-multi";
        let (real, slow) = ("/mnt/xtables-legacy-multi", "/mnt/slowly");
        // The programs are in /mnt because a rehearsal has its own /run; the rehearsal still finds
        // the programs, but not the counter in /run that makes them slow.
        run("mount -t tmpfs slow /mnt");
        fs::copy(program, real).expect(real);
        let script = format!(
            "#!/bin/bash\n\
             if [[ $0 = *-save && -n $XTABLES_LOCKFILE ]]; then\n\
             times=$(cat {SLOW} 2>/dev/null || echo 0)\n\
             [ $times = 0 ] || {{ echo $((times - 1)) >{SLOW}; sleep 1.1; }}\n\
             fi\n\
             exec -a \"${{0##*/}}\" {real} \"$@\"\n"
        );
        fs::write(slow, script).expect(slow);
        fs::set_permissions(slow, fs::Permissions::from_mode(0o755)).expect(slow);
        run(&format!("mount --bind {slow} {program}"));
        Case::of("half-migrated-ipvs-1.20", Backend::Legacy)
    }

    fn slow(&self, times: u32) {
        fs::write(SLOW, times.to_string()).expect(SLOW);
    }
}

#[test]
fn a_busy_moment_is_waited_for() {
    if !in_namespace("a_busy_moment_is_waited_for") {
        return;
    }
    let case = Case::new();
    case.slow(2);
    let ended = case.proxyshift.expect(0, "cleanup --yes");
    ended.reports(&["under the xtables lock, and others wait", "trying again"]);
    assert_ne!(case.node.rules(), case.before);
}

#[test]
fn on_a_node_that_stays_busy_nothing_is_changed() {
    if !in_namespace("on_a_node_that_stays_busy_nothing_is_changed") {
        return;
    }
    let case = Case::new();
    case.slow(1000);
    let ended = case.proxyshift.expect(3, "cleanup --yes -o json");
    assert_eq!(ended.json()["kind"], "busy", "{}", ended.out);
    assert_same(&case.node.rules(), &case.before, "refused");
    case.proxyshift.expect(0, "status");
}

#[test]
fn what_was_begun_is_undone_on_a_busy_node_too() {
    if !in_namespace("what_was_begun_is_undone_on_a_busy_node_too") {
        return;
    }
    let case = Case::new();
    // The run is killed after line 2 of its journal, which is about the first edit.
    case.proxyshift.killed("cleanup --yes", "after:2");
    assert_ne!(case.node.rules(), case.before);
    case.slow(1000);
    case.proxyshift.expect(0, "rollback").reports(&["for as long as it takes"]);
    assert_same(&case.node.rules(), &case.before, "undone");
}
