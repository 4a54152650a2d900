//! The cases that run in the virtual machine, each in namespaces of its own.

mod back;
mod black_holes;
mod bridge;
mod deadline;
mod forward;
mod migrate;
pub mod reboot;
mod stale_entries;
mod watchdog;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::node::{Ended, Proxyshift};
use crate::common::run;

/// All virtual servers and real servers, as the lines of `ipvsadm -Sn`.
fn servers() -> BTreeSet<String> {
    run("ipvsadm -Sn").lines().map(str::to_owned).collect()
}

/// The names of all ipsets.
fn sets() -> BTreeSet<String> {
    run("ipset list -n").lines().map(str::to_owned).collect()
}

/// Calls `does`, which runs proxyshift, until proxyshift succeeds, up to three times. On an
/// emulated CPU that gets little time, the xtables lock may be held for too long at every try of
/// the program. Then the program changes nothing, and may be run again.
fn patiently(does: impl Fn() -> Ended) -> Ended {
    for _ in 0..3 {
        let ended = does();
        if ended.code == Some(0) {
            return ended;
        }
        let output = ended.out + &ended.err;
        assert!(output.contains("under the xtables lock, and others wait"), "{output}");
        assert!(matches!(ended.code, Some(3 | 4)), "{:?}", ended.code);
    }
    panic!("this machine is too busy");
}

/// Runs proxyshift with the arguments `words`. It must succeed.
fn succeeds(proxyshift: &Proxyshift, words: &str) -> Ended {
    patiently(|| {
        let ended = proxyshift.run(words);
        println!("{}", ended.err);
        ended
    })
}

/// The objects that a plan made now would remove, as JSON.
fn removals(proxyshift: &Proxyshift) -> Vec<Value> {
    let plan = proxyshift.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects").clone();
    objects.into_iter().filter(|o| o["action"] == "remove").collect()
}

/// The names of the objects of a kind in a plan; kinds are `chain`, `set`, `virtual-server` and
/// `link`.
fn names<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a str> {
    let of_kind = objects.iter().filter(|o| o["kind"] == kind);
    of_kind.map(|o| o["name"].as_str().expect("a name")).collect()
}
