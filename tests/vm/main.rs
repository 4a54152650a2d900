//! Real ipvs and real kube-proxy, in a virtual machine with Debian's kernel.
//!
//! `every_case_passes_in_the_vm` boots it once and runs the tests marked `#[ignore]` inside, each
//! in namespaces of its own. To run some of them only: `PROXYSHIFT_CASES=back cargo test --test vm`.
//! Those with `soak` in their names take long, and run only so. `make soak` runs them all, and writes
//! what it found to docs/soak.md.

#[path = "../common/mod.rs"]
mod common;

mod api;
mod cluster;
mod kube_proxy;
mod machine;
mod network;
#[path = "../wizard/pty.rs"]
#[allow(dead_code, reason = "the wizard's own tests use the rest")]
mod pty;
#[path = "../ansible/site.rs"]
mod site;
mod table;
mod traffic;

mod cases;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;

/// Selects the test that boots the machine again and again, and no case.
const REBOOT: &str = "reboot";

/// The name of the test that boots it once.
const OUTSIDE: &str = "every_case_passes_in_the_vm";

#[test]
fn every_case_passes_in_the_vm() {
    let wanted = std::env::var("PROXYSHIFT_CASES").unwrap_or_default();
    if wanted == REBOOT {
        return;
    }
    let cases = machine::cases(&wanted);
    assert!(!cases.is_empty(), "no case has `{wanted}` in its name");
    let log = machine::run(&wanted);
    println!("{log}");
    let mut failed = machine::failed(&cases, &log);
    if soak_page().is_some() {
        // It is long, and an emulated CPU slow: what failed is seen once more, and the page says so.
        let mut logs = vec![log];
        if !failed.is_empty() {
            println!("once more: {failed:?}");
            logs.push(machine::run(&failed.join(" ")));
            println!("{}", logs[1]);
            failed = machine::failed(&failed, &logs[1]);
        }
        let text = table::page(&cases, &logs);
        write(&text, File::options().write(true).create(true).truncate(true));
    }
    assert!(failed.is_empty(), "{OUTSIDE}: {failed:?}");
}

#[test]
fn a_migration_cut_off_by_a_reboot_is_resolved_by_the_next_boot() {
    let wanted = std::env::var("PROXYSHIFT_CASES").unwrap_or_default();
    if wanted.is_empty() || wanted == REBOOT {
        let stages = ["switch", "clean", "confirm"];
        let seconds = machine::reboots(&stages);
        write(&table::reboots(&stages, &seconds), File::options().append(true));
    }
}

/// Where the soak's page is to be written, when it is wanted.
fn soak_page() -> Option<OsString> {
    std::env::var_os("PROXYSHIFT_SOAK_PAGE")
}

/// Writes a part of the soak's page, when that is wanted.
fn write(text: &str, how: &OpenOptions) {
    if let Some(path) = soak_page() {
        how.open(path).and_then(|mut page| page.write_all(text.as_bytes())).expect("the page");
    }
}
