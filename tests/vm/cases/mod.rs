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

/// Does what must succeed. On an emulated CPU with little of the real one, the lock of legacy tables
/// may be held for too long every time; then nothing is changed in the end, and one may try again.
fn patiently(does: impl Fn() -> Ended) -> Ended {
    for _ in 0..3 {
        let ended = does();
        if ended.code == Some(0) {
            return ended;
        }
        let said = ended.out + &ended.err;
        assert!(said.contains("under the xtables lock, and others wait"), "{said}");
        assert!(matches!(ended.code, Some(3 | 4)), "{:?}", ended.code);
    }
    panic!("this machine is too busy");
}

/// Runs proxyshift, which must succeed.
fn succeeds(proxyshift: &Proxyshift, words: &str) -> Ended {
    patiently(|| {
        let ended = proxyshift.run(words);
        println!("{}", ended.err);
        ended
    })
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
