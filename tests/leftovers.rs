use std::path::Path;
use proxyshift::owners::catalogue::Catalogue;
use proxyshift::owners::matcher::Ownership;
use proxyshift::plan::leftovers::leftovers;
use proxyshift::state::{Files, NodeState};

#[test]
fn scratch() {
    let catalogue = Catalogue::builtin().unwrap();
    for e in std::fs::read_dir("snapshots").unwrap() {
        let d = e.unwrap().path();
        if !d.is_dir() { continue; }
        let s = load(&d);
        let o = Ownership::of(&catalogue, &s);
        println!("== {} {:?}", d.display(), proxyshift::owners::mode::running(&s, &o));
        let t = std::time::Instant::now();
        let p = leftovers(&catalogue, &s, &o);
        println!("{:?}", t.elapsed());
        for r in &p.objects { println!("{:?} {:?} {:?} {} {:?} {} {:?} [{}] {} -- {}", r.action, r.kind, r.family, r.backend, r.table, r.name, r.position, r.text, r.owner, r.reason); }
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
