//! Every object of the captured nodes has the owner that it should have.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::state::{Files, NodeState};

#[test]
fn scratch() {
    let catalogue = Catalogue::builtin().unwrap();
    for e in std::fs::read_dir("snapshots").unwrap() {
        let d = e.unwrap().path();
        if !d.is_dir() { continue; }
        let s = load(&d);
        let o = Ownership::of(&catalogue, &s);
        println!("== {}: {:#?}", d.display(), o.counts());
        for (id, r) in &s.rulesets { for t in &r.tables { for (c, i, rule) in t.rules() {
            let w = o.rule(*id, &t.name, &c.name, i).unwrap();
            if w.name == "unknown" { println!("{id} {} {}: {}", t.name, r.rule_text(rule), w.reason); }
        }}}
    }
    for e in std::fs::read_dir("/work/shared/dumps/whole").unwrap() {
        let p = e.unwrap().path();
        let text: Arc<str> = std::fs::read_to_string(&p).unwrap().into();
        let s = NodeState::parse(BTreeMap::from([("iptables-nft.save".to_string(), text)])).unwrap();
        let o = Ownership::of(&catalogue, &s);
        println!("== {}: {:?}", p.display(), o.counts().iter().map(|(k, c)| (*k, c.chains, c.rules)).collect::<Vec<_>>());
        for (id, r) in &s.rulesets { for t in &r.tables { for (c, i, rule) in t.rules() {
            let w = o.rule(*id, &t.name, &c.name, i).unwrap();
            if w.name == "unknown" { println!("{id} {} {}: {}", t.name, r.rule_text(rule), w.reason); }
        }}}
    }
}

fn load(directory: &Path) -> NodeState {
    let mut files = Files::new();
    collect(directory, directory, &mut files);
    NodeState::parse(files).unwrap()
}

fn collect(root: &Path, at: &Path, files: &mut Files) {
    for entry in std::fs::read_dir(at).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if let Ok(text) = std::fs::read_to_string(&path) {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.insert(name, text.into());
        }
    }
}
