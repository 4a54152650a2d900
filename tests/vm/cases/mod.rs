//! The cases, each in namespaces of its own.

mod back;
mod forward;
mod migrate;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::common::node::Proxyshift;
use crate::common::run;

/// All virtual servers that there are now, a line each and one for each of their real servers.
fn servers() -> BTreeSet<String> {
    run("ipvsadm -Sn").lines().map(str::to_owned).collect()
}

/// The names of all ipsets.
fn sets() -> BTreeSet<String> {
    run("ipset list -n").lines().map(str::to_owned).collect()
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
