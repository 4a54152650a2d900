//! Nodes as people have them, captured after public reports. Each test says what must be seen on a
//! node. The same must be seen on a copy with other addresses, names and process ids, so that nothing
//! is recognised by the example.

mod case;
#[path = "../common/mod.rs"]
mod common;
mod eyes;
mod kube_proxy;
mod left;
mod nftables;
#[path = "../nodes/mod.rs"]
mod nodes;
mod owners;
mod report;
mod settings;
mod signs;

use case::Case;

#[test]
fn every_case_is_read_under_both_names() {
    for entry in std::fs::read_dir("tests/cases/nodes").expect("the cases") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        let [plain, renamed] = Case::both(&name);
        assert_ne!(plain.files(), renamed.files(), "{name}");
        let rules = |case: &Case| case.json("plan")["objects"].as_array().map(Vec::len);
        assert_eq!(rules(&plain), rules(&renamed), "{name}");
    }
}
