//! `restore.sh`, the script in a snapshot, on rules in the kernel.

use std::fs;
use std::process::{Command, Output, Stdio};

use proxyshift::node::capture::capture;
use proxyshift::node::nfnetlink::accounting::create_accounting_object;
use proxyshift::node::tools::Tools;
use proxyshift::state::Files;
use proxyshift::state::accounting::AccountingObject;
use proxyshift::store::manifest::Manifest;
use proxyshift::store::snapshots::Snapshot;

use super::{create, docker, fine, in_namespaces, nodes, sh, store};

fn restore(snapshot: &Snapshot, args: &str) -> Output {
    let script = format!("TMPDIR=/run sh {}/restore.sh {args}", snapshot.dir.display());
    Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap()
}

/// The exit code and the output of a restore.
fn result(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// The output of the save command `program`, without counters and comments.
fn rules(program: &str) -> String {
    sh(&format!("{program} | sed -e '/^#/d' -e '/^:/s/ \\[.*//' -e 's/^\\[[0-9:]*\\] //'"))
}

/// Loads a captured node, flushes its rules, and restores them with restore.sh.
fn flush_and_restore(files: &Files, backend: &str) {
    let (_tmp, store) = store();
    let snapshot = create(&store, files);
    let dir = snapshot.dir.display();
    let tools: Vec<String> = ["iptables", "ip6tables"]
        .iter()
        .map(|tool| format!("{tool}-{backend}"))
        .filter(|tool| files.contains_key(&format!("{tool}.save")))
        .collect();
    for tool in &tools {
        sh(&format!("{tool}-restore -c < {dir}/{tool}.save"));
    }
    let saved = || {
        let of = |tool: &String| {
            ["nat", "filter", "mangle"].map(|t| rules(&format!("{tool}-save -t {t}")))
        };
        tools.iter().map(of).collect::<Vec<_>>()
    };
    let before = saved();
    assert!(before[0][0].contains("-j MASQUERADE") && before[0][0].contains("KUBE-SEP-"));
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("nothing to restore"), "{text}");

    for tool in &tools {
        sh(&format!("for t in nat filter mangle; do {tool} -t $t -F; {tool} -t $t -X; done"));
    }
    sh(&format!("{} -t nat -A POSTROUTING -s 10.9.9.0/24 -j RETURN", tools[0]));
    let flushed = saved();
    assert!(flushed != before);

    let (code, text) = result(&restore(&snapshot, "--dry-run"));
    assert!(code == Some(0) && text.contains("Dry run"), "{text}");
    assert!(text.contains("\n--A POSTROUTING -s 10.9.9.0/24 -j RETURN\n"), "{text}");
    let (code, text) = result(&restore(&snapshot, ""));
    assert!(code == Some(3) && text.contains("add --yes"), "{text}");
    assert!(saved() == flushed, "neither may change anything");
    assert!(!sh("ls /run").contains("proxyshift-restore"));

    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("DONE"), "{text}");
    assert!(saved() == before, "the tables are not as they were");
    assert!(sh("cat /run/proxyshift-restore.*/before/ip*").contains("10.9.9.0/24"));
}

#[test]
fn restores_flushed_nft_tables() {
    if in_namespaces("restore_sh::restores_flushed_nft_tables") {
        flush_and_restore(&docker(), "nft");
    }
}

#[test]
fn restores_flushed_legacy_tables() {
    if in_namespaces("restore_sh::restores_flushed_legacy_tables") {
        flush_and_restore(&nodes::files("docker-legacy-iptables-1.20-no-conntrack"), "legacy");
    }
}

#[test]
fn makes_missing_sets_and_keeps_the_others() {
    if !in_namespaces("restore_sh::makes_missing_sets_and_keeps_the_others") {
        return;
    }
    let (_tmp, store) = store();
    sh("ipset create KEPT hash:ip; ipset add KEPT 10.0.0.1; ipset create GONE hash:ip,port
        ipset add GONE 10.0.0.2,tcp:80; ipset create LIST list:set; ipset add LIST GONE
        iptables-nft -A INPUT -m set --match-set GONE dst,dst -j ACCEPT");
    let files = Files::from([
        ("ipset.save".to_owned(), sh("ipset save").into()),
        ("iptables-nft.save".to_owned(), sh("iptables-nft-save -c").into()),
    ]);
    let snapshot = create(&store, &files);
    let before = rules("iptables-nft-save");
    sh("iptables-nft -F; ipset flush LIST; ipset destroy LIST; ipset destroy GONE
        ipset add KEPT 10.0.0.9");
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("set GONE is missing"), "{text}");
    assert!(!text.contains("set KEPT is missing"), "{text}");
    assert_eq!(rules("iptables-nft-save"), before);
    let sets = sh("ipset save");
    for line in ["add GONE 10.0.0.2,tcp:80", "add LIST GONE", "add KEPT 10.0.0.9"] {
        assert!(sets.contains(line), "{line} is not in {sets}");
    }
}

#[test]
fn refuses_another_node_and_a_damaged_snapshot() {
    if !in_namespaces("restore_sh::refuses_another_node_and_a_damaged_snapshot") {
        return;
    }
    let (_tmp, store) = store();
    let manifest = || Manifest::for_this_node("test").unwrap();
    let elsewhere = [
        (Manifest { machine_id: "0123".into(), ..manifest() }, "another machine"),
        (Manifest { boot_id: "0123".into(), ..manifest() }, "another boot"),
        (Manifest { netns: 1, ..manifest() }, "another network namespace"),
    ];
    for (manifest, reason) in elsewhere {
        let snapshot = store.create(&docker(), manifest, &fine).unwrap();
        let (code, text) = result(&restore(&snapshot, "--yes"));
        assert!(code == Some(3) && text.contains(reason), "{text}");
        assert!(text.contains("--force") && text.contains("Nothing was changed"), "{text}");
        let (code, text) = result(&restore(&snapshot, "--dry-run --force"));
        assert!(code == Some(0) && text.contains("WARNING"), "{text}");
    }
    let snapshot = create(&store, &docker());
    let (code, text) = result(&restore(&snapshot, "--nonsense"));
    assert!(code == Some(2) && text.contains("usage"), "{text}");
    let save = snapshot.dir.join("iptables-nft.save");
    let text = fs::read_to_string(&save).unwrap();
    fs::write(&save, text.replace("MASQUERADE", "ACCEPT")).unwrap();
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(3) && text.contains("iptables-nft.save: FAILED"), "{text}");
    assert_eq!(rules("iptables-nft-save"), "");
}

#[test]
fn reports_a_failure_half_way() {
    if !in_namespaces("restore_sh::reports_a_failure_half_way") {
        return;
    }
    let (_tmp, store) = store();
    let mut files = docker();
    files.insert("ip6tables-nft.save".into(), "*filter\n-A INPUT -j NO-SUCH\nCOMMIT\n".into());
    let snapshot = create(&store, &files);
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(5) && text.contains("did not take ip6tables-nft.save"), "{text}");
    assert!(text.contains("/before"), "{text}");
}

#[test]
fn asks_on_a_terminal_and_takes_only_yes() {
    if !in_namespaces("restore_sh::asks_on_a_terminal_and_takes_only_yes") {
        return;
    }
    let (_tmp, store) = store();
    let snapshot = create(&store, &docker());
    let answer = |answer: &str| {
        let script = snapshot.dir.join("restore.sh");
        sh(&format!(
            "echo {answer} | TMPDIR=/run script -qec 'sh {}' /dev/null || echo exit $?",
            script.display()
        ))
    };
    let text = answer("y");
    assert!(text.contains("Type yes:") && text.contains("exit 3"), "{text}");
    assert_eq!(rules("iptables-nft-save"), "");
    let text = answer("yes");
    assert!(text.contains("DONE") && !text.contains("exit"), "{text}");
    assert!(rules("iptables-nft-save").contains("-j MASQUERADE"));
}

/// Names that a shell would take for something else.
const HOSTILE: [&str; 3] = ["$(touch /run/PWNED)", "-f", "*;`id`"];

/// A snapshot whose rules name accounting objects and a timeout policy, which are gone, as after a
/// reboot.
fn without_what_rules_name(backend: &str) -> (tempfile::TempDir, Snapshot, String) {
    let (tmp, store) = store();
    let program = format!("iptables-{backend}");
    sh(&format!(
        "nfacct add ct_state_invalid_dropped_pkts; nfacct add guests packet 10
         nfct add timeout -z inet tcp established 77 close 5
         {program} -A FORWARD -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP
         {program} -A INPUT -s 10.0.0.0/8 -j ACCEPT
         {program} -A INPUT -m nfacct --nfacct-name guests -j DROP
         {program} -t raw -A OUTPUT -p tcp -j CT --timeout -z"
    ));
    for name in HOSTILE {
        sh(&format!("nfacct add '{name}'; {program} -A INPUT -m nfacct --nfacct-name '{name}'"));
    }
    let files = capture(&Tools::find()).unwrap();
    assert!(files["nfacct.save"].contains("[0:0] packet:10 guests\n"), "{}", files["nfacct.save"]);
    let snapshot = create(&store, &files);
    let before = rules(&format!("{program}-save"));
    sh(&format!("{program} -F; {program} -t raw -F; nfacct flush; nfct delete timeout -z"));
    (tmp, snapshot, before)
}

fn makes_what_rules_name(backend: &str) {
    let (_tmp, snapshot, before) = without_what_rules_name(backend);
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(0) && text.contains("DONE"), "{text}");
    assert_eq!(rules(&format!("iptables-{backend}-save")), before);
    let objects = sh("nfacct list; nfct list timeout");
    for part in ["quota = 00000000000000000010, mode = packet", ".ESTABLISHED = 77"] {
        assert!(objects.contains(part), "{objects}");
    }
    for name in HOSTILE {
        assert!(objects.contains(&format!("= {name};")), "{objects}");
    }
    assert!(!sh("ls /run").contains("PWNED"));
}

#[test]
fn makes_what_nft_rules_name() {
    if in_namespaces("restore_sh::makes_what_nft_rules_name") {
        makes_what_rules_name("nft");
    }
}

#[test]
fn makes_what_legacy_rules_name() {
    if in_namespaces("restore_sh::makes_what_legacy_rules_name") {
        makes_what_rules_name("legacy");
    }
}

/// On a node without the programs nfacct and nfct.
fn leaves_out_rules(backend: &str) {
    let (_tmp, snapshot, before) = without_what_rules_name(backend);
    sh("for p in nfacct nfct; do mount --bind /dev/null $(command -v $p); done");
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(5) && text.contains("rules were left out (6)"), "{text}");
    for rule in ["--nfacct-name guests", "-j CT --timeout -z", "kube-proxy makes its own"] {
        assert!(text.replace("  ", " ").contains(rule), "{text}");
    }
    let now = rules(&format!("iptables-{backend}-save"));
    let names_something = |line: &&str| !line.contains("nfacct") && !line.contains("--timeout");
    let kept: Vec<&str> = before.lines().filter(names_something).collect();
    assert_eq!(now.lines().collect::<Vec<_>>(), kept);
    assert!(now.contains("-A INPUT -s 10.0.0.0/8 -j ACCEPT"));
    // kube-proxy makes its objects again. Then only what others lack is left out.
    for name in ["ct_state_invalid_dropped_pkts", "guests", HOSTILE[0], HOSTILE[1], HOSTILE[2]] {
        create_accounting_object(&AccountingObject::plain(name)).unwrap();
    }
    let (code, text) = result(&restore(&snapshot, "--yes"));
    assert!(code == Some(5) && text.contains("rules were left out (1)"), "{text}");
}

#[test]
fn leaves_out_nft_rules_that_name_what_cannot_be_made() {
    if in_namespaces("restore_sh::leaves_out_nft_rules_that_name_what_cannot_be_made") {
        leaves_out_rules("nft");
    }
}

#[test]
fn leaves_out_legacy_rules_that_name_what_cannot_be_made() {
    if in_namespaces("restore_sh::leaves_out_legacy_rules_that_name_what_cannot_be_made") {
        leaves_out_rules("legacy");
    }
}
