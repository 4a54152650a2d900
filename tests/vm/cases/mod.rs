//! The cases, each in namespaces of its own.

mod back;
mod black_holes;
mod forward;
mod migrate;
pub mod reboot;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::node::{Ended, Proxyshift};
use crate::common::run;

/// All virtual servers that there are now, a line each and one for each of their real servers.
fn servers() -> BTreeSet<String> {
    run("ipvsadm -Sn").lines().map(str::to_owned).collect()
}

/// The names of all ipsets.
fn sets() -> BTreeSet<String> {
    run("ipset list -n").lines().map(str::to_owned).collect()
}

/// Runs proxyshift, which must succeed. On an emulated CPU with little of the real one it may hold
/// the lock of legacy tables for too long for its own taste; then it changes nothing, and says that
/// one may try again.
fn succeeds(proxyshift: &Proxyshift, words: &str) -> Ended {
    for _ in 0..3 {
        let ended = proxyshift.run(words);
        println!("{}", ended.err);
        if ended.code != Some(3) || !ended.err.contains("try again when the node is less busy") {
            assert_eq!(ended.code, Some(0), "proxyshift {words}\n{}", ended.out);
            return ended;
        }
    }
    panic!("proxyshift {words}: this machine is too busy");
}

/// The objects that a plan made now would remove, as its JSON has them.
fn removals(proxyshift: &Proxyshift) -> Vec<Value> {
    let plan = proxyshift.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects").clone();
    objects.into_iter().filter(|o| o["action"] == "remove").collect()
}

/// What of a plan is of a kind: `chain`, `set`, `virtual-server`, `link`.
fn names<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a str> {
    let of_kind = objects.iter().filter(|o| o["kind"] == kind);
    of_kind.map(|o| o["name"].as_str().expect("a name")).collect()
}
