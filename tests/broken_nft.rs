//! A node whose nft cannot list what another program has written: it crashes, hangs, or prints what is no
//! listing. What the kernel itself says is taken then.

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::node::{Case, Ended, Proxyshift, captured};
use common::{in_namespace, run, run_with};
use proxyshift::node::nfnetlink::{Netfilter, TableFamily};
use proxyshift::state::kernel_listing::items;
use proxyshift::state::{Backend, NodeState};
use proxyshift::store::snapshots::Snapshot;
use serde_json::Value;

const NODE: &str = "canal-stale-flannel-1.20";

fn sh(script: &str) -> String {
    run_with(script, &["sh", "-e"])
}

/// Loads a script of nft that is not UTF-8.
fn load(script: &[u8]) {
    fs::write("/run/script", script).expect("written");
    run("nft -f /run/script");
}

/// How often a text is in another.
fn count(text: &str, part: &str) -> usize {
    text.matches(part).count()
}

/// nft 1.0.6 aborts at `-j` of a rule that names an interface whose name is not UTF-8, and crashes as it
/// prints a map of the type of a `jhash`. Both are real, and both are in the kernel while all verbs run.
#[test]
fn an_nft_that_crashes_stops_nothing() {
    if !in_namespace("an_nft_that_crashes_stops_nothing") {
        return;
    }
    let Case { node, proxyshift, .. } = Case::of(NODE, Backend::Nft);
    load(
        b"table ip crash {\n map slots {\n  typeof jhash ip saddr mod 2 : ip daddr\n  elements = { 0 : 10.0.0.1, 1 : 10.0.0.2 }\n }\n\
          chain guard {\n  type filter hook forward priority 10; policy drop;\n  iifname \"B\xfcro\" counter accept\n  accept\n }\n}\n",
    );
    let crashes = |words: &str| {
        let mut command = Command::new("nft");
        command.args(words.split(' ')).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().expect("nft starts").code().is_none()
    };
    assert!(crashes("-j list table ip crash"), "this nft survives it: find another table");
    assert!(crashes("list ruleset"), "this nft survives it: find another map");
    let kernel = || {
        let family = TableFamily::named("ip").expect("ip");
        let copy = Netfilter::open().and_then(|mut n| n.copy_table(family, "crash"));
        copy.expect("the kernel answers").expect("the table").render("ip", "crash")
    };
    let before = kernel();

    let version = run("nft --version").split(' ').nth(1).expect("a version").to_owned();
    for words in [
        "snapshot create",
        "plan",
        "check",
        "check --to ipvs",
        "rehearse",
        "report --bundle /run/b.tar.gz",
        "cleanup --dry-run",
    ] {
        let ended = proxyshift.run(words);
        let code = ended.code.expect("a code");
        assert!(code == 0 || words.starts_with("check") && code == 3, "{words}: {}", ended.err);
        ended.reports(&["cannot list table ip crash", &version, "the kernel itself"]);
        assert_eq!(count(&ended.err, "cannot list table"), 1, "{words}: {}", ended.err);
    }
    let bundle = sh("tar xOzf /run/b.tar.gz --wildcards '*/bundle.json'");
    assert!(bundle.contains("\"missing\": []"), "{bundle}");
    // The table is seen: it drops what it does not accept, and it is nobody's leftover.
    let state = proxyshift.captured();
    let table = state.nft.get("ip", "crash").expect("the table");
    assert!(table.is_unlisted() && table.of_kind("map").count() == 1);
    let chain = table.of_kind("chain").next().expect("a chain");
    assert_eq!((&chain["hook"], &chain["policy"]), (&"forward".into(), &"drop".into()));
    let same = proxyshift.expect(0, "snapshot diff latest");
    assert_eq!(same.out, "They mean the same.\n");

    let rules = node.rules();
    let ended = proxyshift.expect(0, "cleanup --yes");
    assert_eq!(count(&ended.err, "cannot list table"), 1, "{}", ended.err);
    assert_ne!(node.rules(), rules, "something was removed");
    assert_eq!(kernel(), before, "and the table is as before");
    proxyshift.expect(0, "rollback");
    assert_eq!(node.rules(), rules);
    assert_eq!(kernel(), before);
    // A rule of it that somebody changes is noticed.
    load(b"add rule ip crash guard iifname \"B\xfcro\" drop\n");
    let differs = proxyshift.expect(0, "snapshot diff latest");
    assert!(differs.out.contains("nft ip crash chain guard"), "{}", differs.out);
}

#[test]
fn an_nft_that_hangs_or_prints_no_listing_stops_nothing() {
    if !in_namespace("an_nft_that_hangs_or_prints_no_listing_stops_nothing") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    sh("nft add table ip one; nft add chain ip one c; nft add table inet two
        nft=$(readlink -f $(which nft)); cp $nft /run/nft.real
        printf '#!/bin/sh\\ncase \"$*\" in *list*) . /run/how;; esac; exec /run/nft.real \"$@\"\\n' > /run/nft
        chmod 755 /run/nft; mount --bind /run/nft $nft");
    for (how, cause, warnings) in [
        ("exit 1", "exit status: 1", 2),
        ("kill -SEGV $$", "signal: 11", 2),
        ("echo '{}'; exit 0", "no list named nftables", 2),
        ("printf '\\377'; exit 0", "UTF-8", 2),
        // It is waited for once.
        ("exec sleep 600", "did not finish", 1),
    ] {
        fs::write("/run/how", how).expect("written");
        let ended = proxyshift.expect(0, "snapshot create");
        ended.reports(&[cause]);
        assert_eq!(count(&ended.err, "cannot list table"), warnings, "{how}: {}", ended.err);
    }
    fs::write("/run/how", ":").expect("written");
    let ended = proxyshift.expect(0, "snapshot create");
    assert_eq!(count(&ended.err, "cannot list"), 0, "{}", ended.err);
}

/// The chains, sets and verdicts that nft lists of a table are those that the kernel's messages say.
#[test]
fn the_kernel_says_what_nft_says() {
    if !in_namespace("the_kernel_says_what_nft_says") {
        return;
    }
    load(
        b"table inet t {\n set s {\n  type ipv4_addr\n  flags interval\n }\n map m {\n  type ipv4_addr : verdict\n }\n\
          chain a {\n  type filter hook input priority -7; policy drop;\n  ct state vmap { established : accept, invalid : drop }\n  ip saddr @s counter jump b\n  log\n  reject\n }\n\
          chain b {\n  return\n  goto c\n }\n chain c {\n  drop\n }\n\
          chain n {\n  type nat hook postrouting priority 100;\n  masquerade\n }\n}\n",
    );
    let listed: Value = serde_json::from_str(&run("nft -j list table inet t")).expect("JSON");
    let family = TableFamily::named("inet").expect("inet");
    let messages =
        Netfilter::open().and_then(|mut n| n.messages_of(family, "t")).expect("messages");
    let said = items("inet", "t", &messages);
    let chains = |all: &[Value]| -> Vec<Value> {
        let fields = ["name", "type", "hook", "prio", "policy"];
        let chains = all.iter().filter_map(|item| item.get("chain"));
        let mut found: Vec<Value> =
            chains.map(|c| fields.iter().map(|f| c[*f].clone()).collect()).collect();
        found.sort_by_key(Value::to_string);
        found
    };
    let listed = listed["nftables"].as_array().expect("a list").clone();
    assert_eq!(chains(&listed), chains(&said));
    let names = |all: &[Value]| -> Vec<String> {
        let sets = all.iter().filter_map(|i| i.get("set").or(i.get("map")));
        let mut found: Vec<String> = sets.map(|set| set["name"].to_string()).collect();
        found.sort();
        found
    };
    assert_eq!(names(&listed), names(&said));
    let verdicts = |all: &[Value]| -> Vec<String> {
        let rules = all.iter().filter_map(|item| item.get("rule"));
        let known = ["drop", "jump", "goto", "return", "counter", "masquerade", "reject", "log"];
        let parts = rules.flat_map(|rule| {
            let chain = rule["chain"].to_string();
            let parts = rule["expr"].as_array().expect("parts").clone();
            parts.into_iter().map(move |part| (chain.clone(), part))
        });
        let shown = parts.filter_map(|(chain, part)| {
            let key = part.as_object()?.keys().next()?.clone();
            let target = part[&key].get("target").cloned().unwrap_or_default();
            known.contains(&key.as_str()).then(|| format!("{chain} {key} {target}"))
        });
        shown.collect()
    };
    assert_eq!(verdicts(&listed), verdicts(&said));
}

/// Where kube-proxy's own table cannot be listed, nobody knows its services: what needs them stops.
#[test]
fn a_move_stops_where_services_are_not_known() {
    let tmp = tempfile::tempdir().expect("a folder");
    let dir = tmp.path().join("node");
    sh(&format!("cp -r {} {}", captured("nftables-1.37").display(), dir.display()));
    let text = fs::read_to_string(dir.join("nft.json")).expect("nft.json");
    let state = NodeState::parse(Snapshot::load(&dir).expect("a node").files).expect("a state");
    assert!(state.nft.get("ip", "kube-proxy").is_some(), "{text}");
    let mut document: Value = serde_json::from_str(&text).expect("JSON");
    for item in document["nftables"].as_array_mut().expect("a list") {
        if item["table"]["name"] == "kube-proxy" {
            item["table"]["unlisted"] = true.into();
        }
    }
    let proxyshift = Proxyshift::of_store(tmp.path().join("none"));
    let run =
        |words: &str| -> Ended { proxyshift.run(&format!("{words} --snapshot {}", dir.display())) };
    assert_eq!(run("plan --to iptables").code, Some(0));
    fs::write(dir.join("nft.json"), document.to_string()).expect("written");
    for words in ["plan --to iptables", "rehearse --to iptables", "plan --to ipvs"] {
        let ended = run(words);
        assert_eq!(ended.code, Some(3), "{words}: {}", ended.err);
        ended.reports(&["kube-proxy", "which services are served is not known", "install an nft"]);
    }
    assert_eq!(run("plan").code, Some(0), "{}", run("plan").err);
    let check = run("check -o json").json();
    let findings = check["findings"].as_array().expect("findings").clone();
    let of = |id: &str| findings.iter().find(|f| f["id"] == id).unwrap_or_else(|| panic!("{id}"));
    for id in ["dns.endpoints", "nftables.tables"] {
        assert_eq!(of(id)["outcome"], "unknown", "{}", of(id));
        assert!(of(id)["evidence"].to_string().contains("cannot list nft table"), "{}", of(id));
    }
    assert_eq!(of("kube-proxy.mode")["outcome"], "ok", "{}", of("kube-proxy.mode"));
}
