//! Whose an object is, and what is seen of a node that writes by another front end than iptables.

use std::process::Command;

use serde_json::Value;

use crate::case::Case;
use crate::common::{in_namespace, program, run_with};
use crate::report::{finding, has, outcome, texts};

/// How many objects of each kind an owner has: `(rules, sets, tables)`.
fn counts(case: &Case, owner: &str) -> (usize, usize, usize) {
    let shown = case.state();
    let catalogue = proxyshift::owners::catalogue::Catalogue::builtin().expect("the catalogue");
    let ownership = proxyshift::owners::matcher::Ownership::of(&catalogue, &shown);
    let counts = ownership.counts().get(owner).copied().unwrap_or_default();
    (counts.rules, counts.sets, counts.tables)
}

/// Both forms of a case, with other texts in one of its files.
fn changed(name: &str, file: &str, changes: &[(&str, &str)]) -> [Case; 2] {
    Case::both(name).map(|case| {
        let mut files = case.files();
        let mut text = files[file].to_string();
        for (from, to) in changes {
            assert!(text.contains(from), "{file} has no `{from}`");
            text = text.replace(from, to);
        }
        files.insert(file.into(), text.into());
        Case::of(&case.name, files)
    })
}

#[test]
fn a_rule_of_two_comments_is_its_signers() {
    let removed = |case: &Case| {
        let plan = case.json("plan");
        let objects = plan["objects"].as_array().expect("objects");
        objects.iter().filter(|o| o["action"] == "remove" && o["owner"] == "calico").count()
    };
    for case in Case::both("a03-calico-two-comments") {
        assert_eq!(removed(&case), 3, "{}", case.name);
    }
    // In the other order too. Without the signature it is nobody's, and the chain stays.
    let (hash, text) = (
        "--comment \"cali:_wjq-Yrma8Ly1Svo\"",
        "--comment \"Drop VXLAN packets from non-Calico hosts\"",
    );
    let file = "iptables-nft.save";
    let swap = [(hash, "--comment X"), (text, hash), ("--comment X", text)];
    for case in changed("a03-calico-two-comments", file, &swap) {
        assert_eq!(removed(&case), 3, "{}", case.name);
    }
    for case in changed("a03-calico-two-comments", file, &[(hash, "--comment \"mine\"")]) {
        assert_eq!(removed(&case), 0, "{}", case.name);
    }
}

#[test]
fn sets_of_ipv6_are_kube_routers() {
    for case in Case::both("a17-inet6-sets") {
        assert_eq!(counts(&case, "kube-router"), (0, 3, 0), "{}", case.name);
        assert_eq!(counts(&case, "unknown").1, 0, "{}", case.name);
    }
}

/// libvirt and docker write rules that operators write too.
#[test]
fn a_shape_alone_is_no_owner() {
    for case in Case::both("a19-operator-masq-not-libvirt") {
        assert_eq!(counts(&case, "libvirt"), (0, 0, 0), "{}", case.name);
        assert_eq!(counts(&case, "unknown").0, 4, "{}", case.name);
        let mut files = case.files();
        let with_libvirt = r#"[{"pid": 7, "name": "libvirtd", "args": ["/usr/sbin/libvirtd"]}]"#;
        files.insert("processes.json".into(), with_libvirt.into());
        let case = Case::of(&case.name, files);
        assert_eq!(counts(&case, "libvirt"), (4, 0, 0), "{}, with libvirtd", case.name);
    }
    let of_docker = [
        "-s 10.9.0.0/24 ! -o br-vm -j MASQUERADE",
        "-s 10.9.0.4/32 -d 10.9.0.4/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
        "-o br-vm -m addrtype --src-type LOCAL -j MASQUERADE",
    ];
    let rules: String = of_docker.iter().map(|rule| format!("-A POSTROUTING {rule}\n")).collect();
    let save = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}COMMIT\n");
    for case in Case::both("a19-operator-masq-not-libvirt") {
        let mut files = case.files();
        files.insert("iptables-nft.save".into(), save.as_str().into());
        let case = Case::of(&case.name, files);
        assert_eq!(counts(&case, "docker"), (0, 0, 0), "{}", case.name);
        assert_eq!(counts(&case, "unknown").0, 3, "{}", case.name);
        let mut files = case.files();
        let with_docker = r#"[{"pid": 7, "name": "dockerd", "args": ["/usr/bin/dockerd"]}]"#;
        files.insert("processes.json".into(), with_docker.into());
        let case = Case::of(&case.name, files);
        assert_eq!(counts(&case, "docker").0, 3, "{}, with dockerd", case.name);
    }
}

#[test]
fn docker_by_nftables_masquerades_in_its_own_table() {
    let name = "a05-docker-nft-backend";
    let report = |case: &Case| case.json("check");
    for case in Case::both(name) {
        let report = report(&case);
        assert_eq!(outcome(&report, "docker.masquerade"), "ok", "{}", case.name);
        let policy = finding(&report, "docker.forward-policy");
        assert_eq!(policy["outcome"], "found", "{}", case.name);
        has(&texts(&policy, "evidence"), &[":FORWARD DROP", "writes by nftables"]);
        has(&texts(&policy, "remedy"), &["iptables-nft -P FORWARD ACCEPT"]);
        // Told on the command line, or by its table alone.
        let mut files = case.files();
        files.remove("files/etc/docker/daemon.json");
        let told = Case::of(&case.name, files);
        assert_eq!(outcome(&told.json("check"), "docker.forward-policy"), "found");
        // Without rules of iptables at all.
        let mut files = case.files();
        files.remove("iptables-nft.save");
        let bare = Case::of(&case.name, files).json("check");
        assert_eq!(outcome(&bare, "docker.masquerade"), "ok");
        assert_eq!(outcome(&bare, "docker.forward-policy"), "ok");
    }
    for case in changed(name, "nft.json", &[("\"masquerade\": null", "\"accept\": null")]) {
        let masquerade = finding(&report(&case), "docker.masquerade");
        assert_eq!(masquerade["outcome"], "found", "{}", case.name);
        has(&texts(&masquerade, "remedy"), &["systemctl restart docker"]);
        assert!(!texts(&masquerade, "remedy").contains("iptables"), "{masquerade}");
        assert_eq!(masquerade["fix"].as_array().map_or(0, Vec::len), 0, "{masquerade}");
    }
}

/// Case a23, which no folder can hold: a program wrote rules of nft's into a table of iptables-nft.
#[test]
fn native_rules_in_tables_of_iptables_are_named_and_the_rest_is_judged() {
    if !in_namespace("eyes::native_rules_in_tables_of_iptables_are_named_and_the_rest_is_judged") {
        return;
    }
    let sh = |script: &str| run_with(script, &["sh", "-e"]);
    sh(
        "printf '*filter\\n:FORWARD ACCEPT [0:0]\\n-A FORWARD -j ACCEPT\\nCOMMIT\\n' | iptables-nft-restore",
    );
    let run = |words: &str| {
        let mut command = Command::new(program());
        command.args(["--store", "/run/store", "-o", "json"]).args(words.split(' '));
        let output = command.output().expect("the program runs");
        let both = [output.stdout.clone(), output.stderr].concat();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), json, String::from_utf8(both).expect("text"))
    };
    let tailscale = "TS_DEBUG_FIREWALL_MODE=iptables";
    for (chain, rule, whose, remedy) in [
        (
            "ts-forward",
            "meta mark set meta mark & 0xff00ffff | 0x00040000",
            "tailscale's",
            tailscale,
        ),
        ("ts-forward", "ct state != established,related counter drop", "tailscale's", tailscale),
        ("ts-input", "meta mark set 5", "tailscale's", tailscale),
        ("MINE", "ct state invalid drop", "not known", "nft -a list chain ip filter MINE"),
    ] {
        sh(&format!("nft add chain ip filter {chain}; nft 'add rule ip filter {chain} {rule}'"));
        for words in ["plan", "snapshot create"] {
            let (code, _, said) = run(words);
            assert_eq!(code, Some(3), "{words}: {said}");
            has(&said, &[chain, whose, remedy]);
        }
        let (code, report, said) = run("check");
        assert_eq!(code, Some(3), "{said}");
        let garbled = finding(&report, "backends.garbled");
        has(&texts(&garbled, "evidence"), &[chain, whose]);
        has(&texts(&garbled, "remedy"), &[remedy]);
        assert_eq!(outcome(&report, "kube-proxy.mode"), "unknown");
        let judged = report["findings"].as_array().expect("findings");
        assert!(judged.iter().filter(|f| f["outcome"] == "ok").count() >= 10, "{report}");
        sh(&format!("nft delete chain ip filter {chain}"));
    }
}

/// What was never loaded, and what needs another object first, is no fault of anybody's.
#[test]
fn a_rehearsal_judges_what_was_loaded() {
    for (name, removed) in
        [("a12-rehearse-unloadable-object", 1), ("a13-rehearse-left-out-rule", 4)]
    {
        for case in Case::both(name) {
            let output = case.run("-o json rehearse");
            let code = output.status.code();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
                panic!("{}: {error}: {said}", case.name);
            });
            assert!(report["removed"].as_u64().expect("a number") >= removed, "{report}");
            let left_out = report["left_out"].as_array().expect("a list");
            assert_eq!(report["partial"], !left_out.is_empty(), "{report}");
            // A removal that was not rehearsed is not proven; what only lies beside it is no fault.
            let missing = report["not_rehearsed"].as_array().expect("a list");
            assert_eq!(code, Some(if missing.is_empty() { 0 } else { 3 }), "{report}");
            let servers = left_out.iter().filter(|o| o.to_string().contains("virtual server"));
            assert_eq!(missing.is_empty(), servers.count() == 0, "{report}");
            let fits = |o: &Value| {
                let text = o.as_str().expect("text");
                text.contains("virtual server") || text.contains("nfacct")
            };
            assert!(left_out.iter().all(fits), "{report}");
            assert!(!said.contains("someone else") && !said.contains("ipvsadm"), "{said}");
        }
    }
}
