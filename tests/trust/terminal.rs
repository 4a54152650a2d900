//! Text that others wrote must not command the terminal, and must not look like a line of ours.

use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use proxyshift::state::{Backend, Files};
use proxyshift::store::Store;
use proxyshift::store::manifest::Manifest;
use proxyshift::visible::is_hidden;

use crate::common::node::{Ended, Node, Proxyshift, captured};
use crate::common::{in_namespace, program, run, run_with};

#[allow(dead_code, reason = "the wizard's tests use the rest")]
#[path = "../wizard/pty.rs"]
mod pty;

/// What others may write: a title, a colour that we do not use, a cleared screen in C1, a new
/// direction of writing, and a character without width.
const EVIL: &str = "\u{1b}]0;PWN\u{7}\u{1b}[31;4mred\u{9b}2J\u{202e}rtl\u{200b}\u{7f}\u{e0041}";

/// As [`EVIL`], where a newline is possible.
fn evil_lines() -> String {
    format!("x{EVIL}\r\nFAKE-LINE\u{2028}FAKE-LINE\u{85}FAKE-LINE\u{b}FAKE-LINE")
}

/// The start of [`EVIL`] as it is to be shown, and as JSON has it.
const SHOWN: &str = r"\u{1b}]0;PWN\u{7}\u{1b}[31;4mred\u{9b}2J\u{202e}rtl\u{200b}\u{7f}\u{e0041}";
const JSON: &str = r"\u001b]0;PWN\u0007\u001b[31;4mred\u009b2J\u202ertl\u200b\u007f\udb40\udc41";

/// Fails if `text` has anything but lines that can be seen.
fn is_clean(what: &str, text: &str) {
    let hidden = text.chars().find(|c| *c != '\n' && is_hidden(*c));
    assert_eq!(hidden, None, "{what}:\n{text:?}");
    let faked = text.lines().find(|line| line.trim_start().starts_with("FAKE-LINE"));
    assert_eq!(faked, None, "{what}:\n{text}");
}

/// What `command` prints on a pipe, which must be clean. Its exit code does not matter.
fn clean(what: &str, command: Command) -> Ended {
    let ended = Ended::of(command);
    is_clean(what, &ended.out);
    is_clean(what, &ended.err);
    ended
}

/// What `command` prints on a terminal, without the sequences of our own.
fn on_terminal(what: &str, command: &Command) -> String {
    let mut session = pty::Session::start(command, 50, 100);
    session.code();
    let raw = session.raw();
    assert!(!raw.contains("\u{1b}[31;4"), "{what}: a colour of others: {raw:?}");
    let text = without_ours(&raw);
    is_clean(what, &text);
    text
}

/// `raw` without colours, without the moves of the cursor with which a spinner is drawn, and
/// without the carriage returns of the terminal.
fn without_ours(raw: &str) -> String {
    let mut text = String::new();
    let mut rest = raw;
    while let Some(at) = rest.find("\u{1b}[") {
        text += &rest[..at];
        let after = &rest[at + 2..];
        let end = after.find(|c: char| !c.is_ascii_digit() && !";?".contains(c)).unwrap_or(0);
        assert!("mKAGhl".contains(&after[end..=end]), "{raw:?}");
        rest = &after[end + 1..];
    }
    (text + rest).replace('\r', "")
}

/// A captured node whose texts are all hostile.
fn hostile_files() -> Files {
    let dir = captured("docker-iptables-1.30");
    let mut files: Files =
        proxyshift::store::snapshots::Snapshot::load(&dir).expect("a node").files;
    let mut edit = |name: &str, from: &str, to: &str| {
        let text = files.get(name).unwrap_or_else(|| panic!("{name}")).to_string();
        assert!(text.contains(from), "{from} is not in {name}");
        files.insert(name.to_owned(), text.replace(from, to).into());
    };
    let json = serde_json::to_string(&evil_lines()).expect("JSON");
    let inside = json.trim_matches('"');
    edit("iptables-nft.save", "kubernetes forwarding rules", &format!("kubernetes {EVIL}"));
    edit("iptables-nft.save", "kubernetes load balancer firewall", EVIL);
    edit("processes.json", "fd://", inside);
    edit("processes.json", "/usr/local/bin/kube-proxy\"", &format!("/usr/{inside}/kube-proxy\""));
    // The kernel lets the name of a link hold what is neither a blank, `/` nor `:`.
    edit("addr.json", "docker0", "d\\u001b[2J\\u202e\\u009bx");
    edit(
        "nft.json",
        "{\"table\": {\"family\": \"ip\", \"name\": \"nat\", \"handle\": 3}}",
        &format!(
            "{{\"table\": {{\"family\": \"ip\", \"name\": \"nat\", \"handle\": 3}}}}, \
             {{\"table\": {{\"family\": \"ip\", \"name\": \"t{inside}\", \"handle\": 99}}}}"
        ),
    );
    edit(
        "files/var/lib/kube-proxy/config.conf",
        "mode:",
        "mode: \"ipvs\\e]0;PWN\\a\\nFAKE-LINE\"\n#mode:",
    );
    files
}

/// A store with a snapshot whose files and manifest are hostile.
fn hostile_store() -> (tempfile::TempDir, Proxyshift) {
    let tmp = tempfile::tempdir().expect("a folder");
    let store = Store::open(Some(&tmp.path().join("store"))).expect("a store");
    let mut manifest = Manifest::for_this_node(&evil_lines()).expect("a manifest");
    for text in [&mut manifest.node, &mut manifest.kernel, &mut manifest.time] {
        *text = evil_lines();
    }
    store.create(&hostile_files(), manifest, &|_| Ok(())).expect("a snapshot");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    (tmp, proxyshift)
}

#[test]
fn a_hostile_snapshot() {
    let (_tmp, proxyshift) = hostile_store();
    let other = captured("docker-iptables-1.30");
    let diff = format!("snapshot diff {} latest", other.display());
    let mut shown = 0;
    for (words, repeats) in [
        ("snapshot list", true),
        ("snapshot show latest", true),
        ("snapshot verify latest", false),
        (diff.as_str(), true),
        ("plan --snapshot latest", false),
        ("plan -v --snapshot latest", false),
        ("plan -v --to ipvs --snapshot latest", false),
        ("check -v --snapshot latest", false),
        ("check --to ipvs --snapshot latest", false),
        ("check -v --snapshot latest --progress plain", false),
        ("status", false),
    ] {
        let ended = clean(words, proxyshift.command(words));
        assert!(ended.out.contains(SHOWN) || !repeats, "{words}: {}{}", ended.out, ended.err);
        shown += usize::from(ended.out.contains(SHOWN));
        let text = on_terminal(words, &proxyshift.command(words));
        assert!(text.contains(SHOWN) || !repeats, "{words} on a terminal: {text}");
        let ended = clean(words, proxyshift.command(&format!("{words} -o json")));
        assert!(ended.out.contains(JSON) || !repeats, "{words} -o json: {}", ended.out);
        if repeats {
            let value = ended.json().to_string();
            assert!(value.contains('\u{9b}') && value.contains('\u{202e}'), "not the same value");
        }
    }
    assert!(shown >= 3, "{shown}");
}

#[test]
fn names_and_paths() {
    let tmp = tempfile::tempdir().expect("a folder");
    let path = tmp.path().join(format!("dir {EVIL}\nFAKE-LINE"));
    run(&format!(
        "cp -a {} {}",
        captured("docker-iptables-1.30").display(),
        tmp.path().join("d").display()
    ));
    fs::rename(tmp.path().join("d"), &path).expect("renamed");
    let proxyshift = Proxyshift::of_store(tmp.path().join("store"));
    let with = |words: &str, path: &Path| {
        let mut command = proxyshift.command(words);
        command.arg(path);
        command
    };
    for words in ["snapshot verify", "snapshot show"] {
        let ended = clean(words, with(words, &path));
        assert!(ended.code == Some(0) && ended.out.contains(SHOWN), "{words}: {}", ended.out);
        assert!(on_terminal(words, &with(words, &path)).contains(SHOWN), "{words}");
    }
    // The same in errors, with each form of progress.
    let missing = path.join("missing");
    for words in ["snapshot verify", "--progress plain plan --snapshot", "snapshot import"] {
        let ended = clean(words, with(words, &missing));
        assert!(ended.code != Some(0) && ended.err.contains(SHOWN), "{words}: {}", ended.err);
        on_terminal(words, &with(words, &missing));
    }
    for words in ["-o json snapshot verify", "--progress json check --snapshot"] {
        let ended = clean(words, with(words, &missing));
        let text = ended.out + &ended.err;
        assert!(ended.code != Some(0) && text.contains(JSON), "{words}: {text}");
    }
}

#[test]
fn wrong_words() {
    let evil = evil_lines();
    for words in [
        vec!["plan", "--to", &evil],
        vec![&evil],
        vec![&format!("--{evil}")],
        vec!["snapshot", &evil],
        vec!["check", "--watch", &evil],
        vec!["check", "--only", &evil],
        vec!["extend", &evil],
        vec!["--output", &evil, "plan"],
        vec!["snapshot", "show", &evil],
        vec!["plan", "--to=ipvs", &evil],
        vec!["completions", &evil],
    ] {
        let command = |more: &[&str]| {
            let mut command = Command::new(program());
            command.arg("--store").arg("/nonexistent/store").args(more).args(&words);
            command
        };
        let what = format!("{words:?}");
        let ended = clean(&what, command(&[]));
        assert!(matches!(ended.code, Some(2 | 3)), "{what}: {:?}: {}", ended.code, ended.err);
        assert!(ended.err.contains(r"\u{1b}"), "{what}: {}", ended.err);
        on_terminal(&what, &command(&[]));
        clean(&what, command(&["-o", "json"]));
        clean(&what, command(&["--progress", "json"]));
    }
    // The name of the program, and bytes that are no text.
    for words in [vec!["--help"], vec!["plan", "--help"], vec!["--nothing"], vec!["--version"]] {
        let mut command = Command::new(program());
        command.arg0(&evil).args(&words);
        clean(&format!("named by others, {words:?}"), command);
    }
    let mut command = Command::new(program());
    command.arg("plan").arg("--to").arg(std::ffi::OsString::from_vec(b"\x9b2J\xff\x1b]0;x".into()));
    let ended = clean("no text", command);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
}

#[test]
fn rules_in_the_kernel_and_a_report() {
    if !in_namespace("terminal::rules_in_the_kernel_and_a_report") {
        return;
    }
    let node = Node::load("half-migrated-ipvs-1.20", Backend::Nft);
    let rules = format!(
        "*filter\n-A KUBE-SERVICES -m comment --comment \"{EVIL}\" -j RETURN\nCOMMIT\n\
         *nat\n-I POSTROUTING -s 192.0.2.1/32 -m comment --comment \"{EVIL}\" -j RETURN\nCOMMIT\n"
    );
    run_with(&rules, &["iptables-nft-restore", "-n"]);
    let proxyshift = Proxyshift::new("store");
    let mut create = proxyshift.command("snapshot create --why");
    create.arg(evil_lines());
    let ended = clean("snapshot create", create);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let id = proxyshift.expect(0, "-o json snapshot list").json()["snapshots"][0]["id"].clone();
    let snapshot = proxyshift.store.join("snapshots").join(id.as_str().expect("text"));

    for words in ["plan -v", "check", "cleanup --dry-run -v", "snapshot list", "cleanup --yes"] {
        let ended = clean(words, proxyshift.command(words));
        assert!(ended.out.contains(SHOWN) || words != "plan -v", "{}", ended.out);
        if words != "cleanup --yes" {
            on_terminal(words, &proxyshift.command(words));
        }
    }
    assert!(proxyshift.expect(0, "snapshot list").out.contains(SHOWN));
    for words in ["report", "report -o json", "status", "snapshot diff latest"] {
        clean(words, proxyshift.command(words));
    }
    let mut to = proxyshift.command("rollback --yes --to");
    to.arg(&snapshot);
    assert_eq!(clean("rollback --to", to).code, Some(0));
    drop(node);
    restores_by_hand(&snapshot);
}

/// Runs the `restore.sh` of `snapshot`, where the rules differ, and where a tool fails.
fn restores_by_hand(snapshot: &Path) {
    run("iptables-nft -t nat -D POSTROUTING 1");
    let script = |args: &str| {
        let mut command = Command::new("sh");
        command.arg(snapshot.join("restore.sh")).args(args.split_whitespace());
        command.env("TMPDIR", "/run");
        command
    };
    let ended = Ended::of(script("--dry-run"));
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    is_clean("restore.sh --dry-run", &ended.out.replace('\t', " "));
    assert!(ended.out.contains("+-A POSTROUTING -s 192.0.2.1/32"), "{}", ended.out);
    let ended = Ended::of(script("--yes"));
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    is_clean("restore.sh --yes", &(ended.out + &ended.err).replace('\t', " "));

    // A set that cannot be made: ipset repeats its line.
    fs::write(snapshot.join("ipset.save"), format!("create x{EVIL} hash:ip\n")).expect("written");
    let sums = "cd \"$1\" && find . -type f ! -name SHA256SUMS | sed s,^./,, | xargs sha256sum \
                >/run/sums && cp /run/sums SHA256SUMS";
    run_with("", &["sh", "-ec", sums, "sh", snapshot.to_str().expect("text")]);
    let ended = Ended::of(script("--yes"));
    assert_eq!(ended.code, Some(5), "{}{}", ended.out, ended.err);
    is_clean("restore.sh fails", &(ended.out + &ended.err).replace('\t', " "));
}
