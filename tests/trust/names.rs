//! Names that are commands to the programs that they are handed to. Who may make a link or a table
//! chooses its name; who makes a snapshot chooses all of them.

use std::fs;
use std::path::Path;

use proxyshift::state::Backend;

use crate::common::node::{Case, Proxyshift, captured};
use crate::common::{in_namespace, run, run_with};
use crate::{everyone_looks, soon};

#[test]
fn a_link_of_any_name_stops_nothing() {
    if !in_namespace("names::a_link_of_any_name_stops_nothing") {
        return;
    }
    let case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    let names =
        [r"$'\x01'", r"$'a\xff'", r"$'\x1b[31m'", "'#x'", "help", "type", "'q\"x'", "'a;b'"];
    let script: String =
        names.map(|name| format!("ip link add name {name} type bridge\n")).concat();
    run_with(&script, &["bash", "-e"]);
    run_with("ip link set dev help alias $'odd\\x02\\xfe'", &["bash", "-e"]);
    everyone_looks(&case.proxyshift);
    let rehearsed = soon(&case.proxyshift, "rehearse");
    assert_eq!(rehearsed.code, Some(0), "{}", rehearsed.err);
    assert_eq!(soon(&case.proxyshift, "cleanup --yes").code, Some(0));
    assert_eq!(soon(&case.proxyshift, "rollback").code, Some(0));
}

#[test]
fn a_link_of_a_snapshot_is_no_command() {
    if !in_namespace("names::a_link_of_a_snapshot_is_no_command") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    let node = captured("docker-iptables-1.30");
    for (file, from, to) in [
        ("addr.json", "docker0", r"z\nnetns add z\nnetns exec z touch /run/ran\n"),
        (
            "route.json",
            "default",
            r"default via 127.0.0.1\nnetns add z\nnetns exec z touch /run/ran\n",
        ),
    ] {
        run("rm -rf /run/hostile /run/ran");
        run(&format!("cp -r {} /run/hostile", node.display()));
        let path = format!("/run/hostile/{file}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file}");
        fs::write(&path, text.replace(&format!("\"{from}\""), &format!("\"{to}\""))).unwrap();
        for verb in ["rehearse", "plan", "check"] {
            let ended = soon(&proxyshift, &format!("{verb} --snapshot /run/hostile"));
            assert_eq!(ended.code, Some(3), "{verb} {file}: {}", ended.err);
            assert!(!Path::new("/run/ran").exists(), "{verb} {file} ran it");
        }
    }
}

#[test]
fn a_table_of_any_name_stops_nothing_and_is_no_command() {
    if !in_namespace("names::a_table_of_any_name_stops_nothing_and_is_no_command") {
        return;
    }
    let case = Case::of("half-migrated-ipvs-1.20", Backend::Nft);
    // nft itself takes no such name, so the kernel is told by a library.
    compile_table("/run/table");
    for name in ["x;delete table ip precious", "x;add table ip injected", "a b", "\u{1b}", "q\"x"] {
        run("nft add table ip x");
        run("nft add table ip precious");
        run_with(&format!("/run/table '{name}'"), &["sh", "-e"]);
        everyone_looks(&case.proxyshift);
        let tables = run("nft list tables");
        assert!(
            tables.contains("precious") && !tables.lines().any(|l| l == "table ip injected"),
            "{tables}"
        );
    }
    assert_eq!(soon(&case.proxyshift, "cleanup --yes").code, Some(0));
    assert_eq!(soon(&case.proxyshift, "rollback").code, Some(0));
}

/// A program that makes the table `ip NAME` over netlink, whatever NAME is.
fn compile_table(to: &str) {
    let source = r#"
unsafe extern "C" {
    fn socket(domain: i32, kind: i32, protocol: i32) -> i32;
    fn send(fd: i32, bytes: *const u8, length: usize, flags: i32) -> isize;
    fn recv(fd: i32, bytes: *mut u8, length: usize, flags: i32) -> isize;
}
fn message(kind: u16, flags: u16, seq: u32, family: u8, resource: u16, rest: &[u8]) -> Vec<u8> {
    let mut m = Vec::new();
    m.extend((20 + rest.len() as u32).to_ne_bytes());
    m.extend(kind.to_ne_bytes());
    m.extend(flags.to_ne_bytes());
    m.extend(seq.to_ne_bytes());
    m.extend(0u32.to_ne_bytes());
    m.extend([family, 0]);
    m.extend(resource.to_be_bytes());
    m.extend(rest);
    while m.len() % 4 != 0 { m.push(0); }
    m
}
fn main() {
    let name = std::env::args().nth(1).unwrap();
    let mut attribute = ((4 + name.len() + 1) as u16).to_ne_bytes().to_vec();
    attribute.extend(1u16.to_ne_bytes());
    attribute.extend(name.bytes());
    attribute.push(0);
    while attribute.len() % 4 != 0 { attribute.push(0); }
    let mut batch = message(16, 1, 1, 0, 10, &[]);
    batch.extend(message(10 << 8, 0x401 | 4, 2, 2, 0, &attribute));
    batch.extend(message(17, 1, 3, 0, 10, &[]));
    unsafe {
        let fd = socket(16, 3, 12);
        assert!(send(fd, batch.as_ptr(), batch.len(), 0) > 0);
        let mut answer = [0u8; 1024];
        let length = recv(fd, answer.as_mut_ptr(), 1024, 0);
        assert!(length >= 20);
        assert_eq!(i32::from_ne_bytes(answer[16..20].try_into().unwrap()), 0);
    }
}"#;
    crate::compile(source, to);
}

/// A snapshot whose rules would have iptables start a program.
#[test]
fn a_quoted_option_is_an_option() {
    if !in_namespace("names::a_quoted_option_is_an_option") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    run(&format!("cp -r {} /run/hostile", captured("docker-iptables-1.30").display()));
    let save = fs::read_dir("/run/hostile").unwrap().map(|e| e.unwrap().path());
    let save = { save }.find(|p| p.to_str().unwrap().contains("/iptables-")).unwrap();
    let text = fs::read_to_string(&save).unwrap();
    for option in ["\"-M\" /run/x", "\"--modprobe=/run/x\"", "-M/run/x"] {
        let rule = format!("*filter\n:INPUT ACCEPT [0:0]\n[0:0] -A INPUT {option} -j ACCEPT\n");
        fs::write(&save, text.replacen("*filter\n:INPUT ACCEPT [0:0]\n", &rule, 1)).unwrap();
        let text = fs::read_to_string(&save).unwrap();
        if !text.contains(option) {
            fs::write(&save, format!("{rule}COMMIT\n{text}")).unwrap();
        }
        let ended = soon(&proxyshift, "rehearse --snapshot /run/hostile");
        assert_eq!(ended.code, Some(3), "{option}: {}{}", ended.out, ended.err);
        assert!(ended.err.contains("names a program"), "{option}: {}", ended.err);
    }
}
