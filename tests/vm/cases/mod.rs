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

/// All virtual servers and their real servers, one a line.
fn servers() -> BTreeSet<String> {
    run("ipvsadm -Sn").lines().map(str::to_owned).collect()
}

/// The names of all ipsets.
fn sets() -> BTreeSet<String> {
    run("ipset list -n").lines().map(str::to_owned).collect()
}

/// Runs `words`, which must succeed. On an emulated, starved CPU the lock of legacy tables may be
/// held for too long every time; then nothing is changed, and a retry is allowed.
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

/// Runs proxyshift, which must succeed.
fn succeeds(proxyshift: &Proxyshift, words: &str) -> Ended {
    patiently(|| {
        let ended = proxyshift.run(words);
        println!("{}", ended.err);
        ended
    })
}

/// The removals of a plan made now, as JSON.
fn removals(proxyshift: &Proxyshift) -> Vec<Value> {
    let plan = proxyshift.expect(0, "plan -o json").json();
    let objects = plan["objects"].as_array().expect("objects").clone();
    objects.into_iter().filter(|o| o["action"] == "remove").collect()
}

/// The objects of a kind in a plan: `chain`, `set`, `virtual-server`, `link`.
fn names<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a str> {
    let of_kind = objects.iter().filter(|o| o["kind"] == kind);
    of_kind.map(|o| o["name"].as_str().expect("a name")).collect()
}
