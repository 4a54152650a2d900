//! Processes that have the name of a component.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use proxyshift::state::Backend;
use serde_json::Value;

use crate::common::node::{Case, Proxyshift};
use crate::common::{in_namespace, run, run_with};
use crate::{Stranger, compile, everyone_looks, newest_snapshot, soon};

const NODE: &str = "half-migrated-ipvs-1.20";

fn case() -> Case {
    Case::of(NODE, Backend::Nft)
}

/// The lookalikes that `check` names: how many, and the text of its evidence.
fn lookalikes(proxyshift: &Proxyshift) -> (usize, String) {
    let found = soon(proxyshift, "check --only kube-proxy.lookalikes -o json").json();
    let finding = &found["findings"][0];
    let evidence = finding["evidence"].as_array().filter(|_| finding["outcome"] == "found");
    (evidence.map_or(0, Vec::len), finding["evidence"].to_string())
}

/// The processes that the newest snapshot holds.
fn components(proxyshift: &Proxyshift) -> Vec<Value> {
    let dir = proxyshift.store.join("snapshots");
    let mut newest: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    newest.sort_by_key(|dir| fs::metadata(dir).unwrap().modified().unwrap());
    let json = fs::read_to_string(newest.last().unwrap().join("processes.json")).unwrap();
    serde_json::from_str(&json).unwrap()
}

#[test]
fn a_path_that_never_ends_is_not_read_for_a_stranger() {
    if !in_namespace("strangers::a_path_that_never_ends_is_not_read_for_a_stranger") {
        return;
    }
    let case = case();
    run("mkfifo -m 666 /run/pipe");
    for path in ["/proc/kmsg", "/run/pipe", "/dev/zero", "/proc/self/mem", "/dev/tty"] {
        let script = format!("exec -a kube-proxy bash -c 'sleep 1000; :' --config={path}");
        let _stranger = Stranger::unprivileged(&script).named("kube-proxy");
        everyone_looks(&case.proxyshift);
        let (count, evidence) = lookalikes(&case.proxyshift);
        assert!(count == 1 && evidence.contains("of user 1000"), "{evidence}");
    }
    let kept = newest_snapshot(&case.proxyshift);
    assert!(!kept.contains("files/proc") && !kept.contains("--config=/dev/tty"), "{kept}");
}

#[test]
fn a_document_without_an_end_is_not_parsed_for_a_stranger() {
    if !in_namespace("strangers::a_document_without_an_end_is_not_parsed_for_a_stranger") {
        return;
    }
    let case = case();
    for (name, part) in [("flow", "["), ("map", "{a: "), ("block", "- ")] {
        let path = format!("/run/{name}");
        fs::write(&path, part.repeat((1 << 20) / part.len())).unwrap();
        let script = format!("exec -a kube-proxy bash -c 'sleep 1000; :' --config={path}");
        let _stranger = Stranger::unprivileged(&script).named("kube-proxy");
        everyone_looks(&case.proxyshift);
    }
}

/// Root's own kube-proxy may have such a file too.
#[test]
fn a_document_without_an_end_is_refused() {
    if !in_namespace("strangers::a_document_without_an_end_is_refused") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    for part in ["[", "{a: ", "- ", "a: &a [*a,"] {
        fs::write("/run/config", part.repeat((60 << 10) / part.len())).unwrap();
        let script = "exec -a kube-proxy bash -c 'sleep 1000; :' --config=/run/config";
        let _one = Stranger::root(script).named("kube-proxy");
        everyone_looks(&proxyshift);
    }
}

/// A process that claims 1.5 GB of arguments and has a few MB itself (PR_SET_MM_MAP, prctl(2)).
const LONG_ARGUMENTS: &str = r#"
unsafe extern "C" {
    fn prctl(option: i32, a: u64, b: u64, c: u64, d: u64) -> i32;
    fn mmap(at: *mut u8, length: u64, prot: i32, flags: i32, fd: i32, offset: i64) -> *mut u8;
    fn sbrk(more: i64) -> *mut u8;
}
fn main() {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> = stat.rsplit_once(')').unwrap().1.split_whitespace()
        .map(|f| f.parse().unwrap_or(0)).collect();
    let field = |n: usize| fields[n - 3];
    let length = 1_500_000_000;
    let start = unsafe { mmap(std::ptr::null_mut(), length, 3, 0x4022, -1, 0) } as u64;
    unsafe { *(start as *mut u8) = b'x' };
    let map: [u64; 13] = [
        field(26), field(27), field(45), field(46), field(47), unsafe { sbrk(0) } as u64, field(28),
        start, start + length, field(50), field(51), 0, 0xffff_ffff_0000_0000,
    ];
    let set = unsafe { prctl(35, 14, map.as_ptr() as u64, 104, 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    std::fs::write("/run/ready/done", "").unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1000));
}"#;

#[test]
fn gigabytes_of_arguments_are_not_read() {
    if !in_namespace("strangers::gigabytes_of_arguments_are_not_read") {
        return;
    }
    let case = case();
    fs::create_dir("/run/ready").unwrap();
    fs::set_permissions("/run/ready", fs::Permissions::from_mode(0o777)).unwrap();
    // Whatever it is called: the arguments of each process were read.
    for name in ["kube-proxy", "innocent"] {
        let program = format!("/run/{name}");
        compile(LONG_ARGUMENTS, &program);
        let _stranger = Stranger::unprivileged(&format!("exec {program}"));
        crate::poll("its arguments", || Path::new("/run/ready/done").exists());
        fs::remove_file("/run/ready/done").unwrap();
        everyone_looks(&case.proxyshift);
    }
    // A root process of that kind is read as far as arguments go.
    let _root = Stranger::root("exec /run/kube-proxy");
    crate::poll("its arguments", || Path::new("/run/ready/done").exists());
    everyone_looks(&case.proxyshift);
}

#[test]
fn a_name_alone_makes_no_component() {
    if !in_namespace("strangers::a_name_alone_makes_no_component") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    fs::create_dir("/run/bin").unwrap();
    fs::copy("/bin/sleep", "/run/bin/kube-proxy").unwrap();
    // It becomes root as sudo does, in all three users.
    let setuid = "unsafe extern \"C\" { fn setresuid(r: u32, e: u32, s: u32) -> i32; }\n\
        fn main() { assert_eq!(unsafe { setresuid(0, 0, 0) }, 0);\n\
        std::thread::sleep(std::time::Duration::from_secs(1000)); }";
    compile(setuid, "/run/bin/setuid");
    fs::set_permissions("/run/bin/setuid", fs::Permissions::from_mode(0o4755)).unwrap();
    let user = "setpriv --reuid 1000 --regid 1000 --clear-groups";
    let (root, other) = ("its program is set-user-ID", "it does not run as root");
    for (why, doubt, script) in [
        ("its program", other, format!("exec {user} /run/bin/kube-proxy 1000")),
        (
            "its first argument",
            other,
            format!("exec {user} bash -c 'exec -a /x/kube-proxy sleep 1000'"),
        ),
        (
            "another user namespace",
            "it runs in another user namespace",
            "exec unshare -U -r /run/bin/kube-proxy 1000".to_owned(),
        ),
        (
            "without CAP_NET_ADMIN",
            "it lacks CAP_NET_ADMIN",
            "exec setpriv --bounding-set -net_admin /run/bin/kube-proxy 1000".to_owned(),
        ),
        ("a real user", other, "exec setpriv --ruid 1000 /run/bin/kube-proxy 1000".to_owned()),
        (
            "an effective user",
            other,
            "exec setpriv --euid 1000 /run/bin/kube-proxy 1000".to_owned(),
        ),
        (
            "set-user-ID",
            root,
            format!("exec {user} bash -c 'exec -a kube-proxy /run/bin/setuid 1000'"),
        ),
    ] {
        let _stranger = Stranger::root(&script).named("kube-proxy");
        let is_doubted = || {
            let (count, evidence) = lookalikes(&proxyshift);
            count == 1 && evidence.contains(doubt)
        };
        // The set-user-ID program becomes root a moment after it starts.
        crate::poll(why, is_doubted);
        assert_eq!(soon(&proxyshift, "snapshot create").code, Some(0), "{why}");
        assert_eq!(components(&proxyshift).len(), 0, "{why}");
        assert!(is_doubted(), "{why}: it lives");
    }
    let _root = Stranger::root("exec /run/bin/kube-proxy 1000").named("kube-proxy");
    assert_eq!(lookalikes(&proxyshift).0, 0);
    soon(&proxyshift, "snapshot create");
    assert_eq!(components(&proxyshift).len(), 1, "root's own counts");
}

/// flannel is gone and left a rule. Whoever bears its name makes this unknown, and nothing goes.
#[test]
fn a_lookalike_permits_nothing() {
    if !in_namespace("strangers::a_lookalike_permits_nothing") {
        return;
    }
    let _kubelet = Stranger::root("exec -a kubelet sleep 1000").named("kubelet");
    run("iptables-nft -t nat -N FLANNEL-POSTRTG");
    let signed = "-m comment --comment 'flanneld masq'";
    let rules = format!(
        "iptables-nft -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {signed} -j RETURN\n\
         iptables-nft -t nat -A POSTROUTING {signed} -j FLANNEL-POSTRTG"
    );
    run_with(&rules, &["sh", "-e"]);
    let proxyshift = Proxyshift::new("store");
    let removed = || {
        let plan = soon(&proxyshift, "plan -o json").json();
        let objects = plan["objects"].as_array().expect("objects").clone();
        objects.iter().filter(|o| o["action"] == "remove").map(Value::to_string).collect::<Vec<_>>()
    };
    let before = removed();
    assert!(before.iter().any(|object| object.contains("FLANNEL-POSTRTG")), "{}", before.len());
    let script = "exec -a kubelet sleep 1000";
    let other = Stranger::unprivileged(script).named("kubelet");
    assert_eq!(removed(), before, "another kubelet is nothing to flannel");
    drop(other);
    for user in ["setpriv --reuid 1000 --clear-groups", "setpriv --bounding-set -net_admin"] {
        let script = format!("exec {user} bash -c 'exec -a flanneld sleep 1000'");
        let _flanneld = Stranger::root(&script).named("flanneld");
        let left = removed();
        assert!(left.iter().all(|object| !object.contains("FLANNEL")), "{user}: {left:?}");
    }
}

#[test]
fn no_program_of_a_process_is_run() {
    if !in_namespace("strangers::no_program_of_a_process_is_run") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    // Of root, and writable by root alone.
    let source = r#"fn main() {
        if std::env::args().any(|a| a == "--version") {
            std::fs::write("/run/ran", "").unwrap();
            println!("Kubernetes v1.20.2");
        } else {
            std::thread::sleep(std::time::Duration::from_secs(1000));
        }
    }"#;
    fs::create_dir("/run/bin").unwrap();
    for name in ["kube-proxy", "kubelet"] {
        let program = format!("/run/bin/{name}");
        compile(source, &program);
        let start = format!("exec {program} --v=2");
        for process in [Stranger::unprivileged(&start), Stranger::root(&start)] {
            let _process = process.named(name);
            everyone_looks(&proxyshift);
            assert!(!Path::new("/run/ran").exists(), "{name} ran as root");
        }
    }
}

#[test]
fn only_this_nodes_addresses_are_asked() {
    if !in_namespace("strangers::only_this_nodes_addresses_are_asked") {
        return;
    }
    run("ip link add out type bridge");
    run("ip addr add 192.0.2.7/24 dev out");
    run("ip link set out up");
    run("ip route add default via 192.0.2.1");
    run("ip link set lo up");
    let proxyshift = Proxyshift::new("store");
    // It listens at every address, so nothing but the address decides who is asked.
    let listens = r#"fn main() {
        let flag = std::env::args().nth(1).unwrap();
        let port: u16 = flag.rsplit(':').next().unwrap().parse().unwrap();
        let _listener = std::net::TcpListener::bind(("0.0.0.0", port)).unwrap();
        std::fs::write("/run/listens", "").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(1000));
    }"#;
    compile(listens, "/run/kube-proxy");
    for (address, is_asked) in [
        ("192.0.2.7:10249", true),
        ("203.0.113.5:10249", false),
        ("192.0.2.99:80", false),
        ("169.254.169.254:80", false),
    ] {
        run("nft add table ip count");
        run("nft add chain ip count out { type filter hook output priority 0 ; }");
        run("nft add rule ip count out tcp flags syn counter drop");
        let script = format!("exec /run/kube-proxy --metrics-bind-address={address}");
        let _root = Stranger::root(&script).named("kube-proxy");
        crate::poll("it listens", || Path::new("/run/listens").exists());
        everyone_looks(&proxyshift);
        let counted = run("nft list table ip count");
        assert_eq!(!counted.contains("packets 0"), is_asked, "{address}: {counted}");
        run("nft delete table ip count");
        fs::remove_file("/run/listens").unwrap();
    }
}

#[test]
fn a_stranger_does_not_answer_for_kube_proxy() {
    if !in_namespace("strangers::a_stranger_does_not_answer_for_kube_proxy") {
        return;
    }
    run("ip link set lo up");
    let proxyshift = Proxyshift::new("store");
    let listener = TcpListener::bind("127.0.0.1:10249").unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let body = "kubernetes_build_info{git_version=\"v1.20.2\"} 1\n";
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = stream.write_all((head + body).as_bytes());
        }
    });
    let _root =
        Stranger::root("exec -a kube-proxy bash -c 'sleep 1000; :' --v=2").named("kube-proxy");
    everyone_looks(&proxyshift);
    let component = &components(&proxyshift)[0];
    assert_eq!(component["name"], "kube-proxy");
    assert_eq!(component.get("version"), None, "{component}");
}

#[test]
fn a_version_is_read_from_the_programs_file() {
    if !in_namespace("strangers::a_version_is_read_from_the_programs_file") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    run("mkfifo /run/pipe");
    // It waits for its configuration, and so goes on running.
    let program = crate::common::vm::cached("kube-proxy");
    let script = format!("exec {} --config=/run/pipe", program.display());
    let _real = Stranger::root(&script).named("kube-proxy");
    everyone_looks(&proxyshift);
    let component = &components(&proxyshift)[0];
    assert_eq!(component["version"], "v1.20.2", "{component}");
    assert_eq!(component["version_source"], "its build information");
}

/// A node may have more processes than one process may have descriptors.
#[test]
fn a_crowd_of_processes_hides_nobody() {
    if !in_namespace("strangers::a_crowd_of_processes_hides_nobody") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    fs::create_dir("/run/ready").unwrap();
    fs::set_permissions("/run/ready", fs::Permissions::from_mode(0o777)).unwrap();
    let crowd = "for n in {1..300}; do sleep 1000 & done; touch /run/ready/$UID; wait";
    let _crowds = [Stranger::unprivileged(crowd), Stranger::root(crowd)];
    for user in ["1000", "0"] {
        crate::poll("the crowd", || Path::new("/run/ready").join(user).exists());
    }
    let _root = Stranger::root("exec -a kube-proxy sleep 1000").named("kube-proxy");
    let _other = Stranger::unprivileged("exec -a kubelet sleep 1000").named("kubelet");
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: Some(64), maximum: Some(64) },
    )
    .unwrap();
    assert_eq!(lookalikes(&proxyshift).0, 1);
    assert_eq!(soon(&proxyshift, "snapshot create").code, Some(0));
    assert_eq!(components(&proxyshift).len(), 1);
}
