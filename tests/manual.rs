//! The manual pages and the completions, generated from the definitions of the arguments.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use clap_mangen::Man;
use common::run_with;
use proxyshift::front::cli::completions::shown;

const PROGRAM: &str = env!("CARGO_BIN_EXE_proxyshift");

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/man")
}

/// Every manual page, keyed by its file name.
fn pages() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    let mut whole = shown().disable_help_subcommand(true);
    whole.build();
    page(&whole, "proxyshift", &mut pages);
    pages
}

fn page(command: &clap::Command, name: &str, pages: &mut BTreeMap<String, String>) {
    let mut verbs: Vec<String> = Vec::new();
    for verb in command.get_subcommands() {
        let verb_name = format!("{name}-{}", verb.get_name());
        page(verb, &verb_name, pages);
        verbs.push(verb_name);
    }
    // Leaked, because clap needs the name of a command for the whole life of the program.
    let leaked: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let command = command.clone().name(leaked);
    let date = "";
    let man = Man::new(command).title(name).date(date).manual("proxyshift");
    let mut text = Vec::new();
    man.render_title(&mut text).expect("a page");
    man.render_name_section(&mut text).expect("a page");
    man.render_synopsis_section(&mut text).expect("a page");
    man.render_description_section(&mut text).expect("a page");
    man.render_options_section(&mut text).expect("a page");
    if !verbs.is_empty() {
        man.render_subcommands_section(&mut text).expect("a page");
    }
    let mut text = String::from_utf8(text).expect("text");
    text += &after(name);
    let above = name.rsplit_once('-').map(|(above, _)| above.to_owned());
    let others = ["iptables-save(8)", "ip-netns(8)", "ipvsadm(8)", "nft(8)"].map(str::to_owned);
    let all: Vec<String> = match above {
        Some(above) => std::iter::once(above).chain(verbs).map(|n| format!("{n}(1)")).collect(),
        None => verbs.iter().map(|n| format!("{n}(1)")).chain(others).collect(),
    };
    text += &format!(".SH \"SEE ALSO\"\n{}\n", escaped(&all.join(", ")));
    pages.insert(format!("{name}.1"), text);
}

/// The text after the options in a page: the examples, or in proxyshift.1 what replaces them.
fn after(name: &str) -> String {
    let words: Vec<&str> = name.split('-').skip(1).collect();
    let output = Command::new(PROGRAM).args(&words).arg("--help").output().expect("help");
    let help = String::from_utf8(output.stdout).expect("text");
    let block = |head: &str| {
        let (_, rest) = help.split_once(&format!("\n{head}\n"))?;
        let lines = rest.lines().take_while(|line| line.is_empty() || line.starts_with(' '));
        let lines: Vec<&str> = lines.collect();
        Some(lines.join("\n").trim_end().to_owned())
    };
    let verbatim = |text: String| format!(".nf\n{}\n.fi\n", escaped(&text));
    if name != "proxyshift" {
        let examples = block("Examples:").map(|text| format!(".SH EXAMPLES\n{}", verbatim(text)));
        return examples.unwrap_or_default();
    }
    let codes = block("Exit codes:").expect("exit codes");
    let files = [
        ("/var/lib/proxyshift", "The store, mode 0700; --store names another."),
        (
            "/var/lib/proxyshift/snapshots",
            "The node's state in plain files, with SHA256SUMS and restore.sh.",
        ),
        ("/var/lib/proxyshift/imported", "The same of snapshots that were imported, each marked."),
        (
            "/var/lib/proxyshift/runs",
            "Each run: run.json, its journal, what it said, and for a migration its playbook.",
        ),
        ("/run/proxyshift", "The node's lock."),
        ("/etc/modules-load.d, /etc/sysctl.d", "What a migration persists for the next boot."),
    ];
    let mut text = format!(".SH \"EXIT STATUS\"\n{}.SH FILES\n", verbatim(codes));
    for (path, what) in files {
        text += &format!(".TP\n\\fI{}\\fR\n{}\n", escaped(path), escaped(what));
    }
    text
}

/// `text` with the characters escaped that roff would interpret.
fn escaped(text: &str) -> String {
    let line = |line: &str| {
        let line = line.replace('\\', "\\\\").replace('-', "\\-");
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_manual_pages_are_those_of_the_arguments() {
    let pages = pages();
    if std::env::var_os("PROXYSHIFT_WRITE_MAN").is_some() {
        let _ = fs::remove_dir_all(folder());
        fs::create_dir_all(folder()).expect("docs/man");
        for (name, text) in &pages {
            fs::write(folder().join(name), text).expect("written");
        }
        return;
    }
    let names = fs::read_dir(folder()).expect("docs/man");
    let mut kept: BTreeMap<String, String> = names
        .map(|e| e.expect("an entry").path())
        .map(|p| (p.file_name().unwrap().display().to_string(), fs::read_to_string(p).unwrap()))
        .collect();
    for (name, text) in &pages {
        let kept = kept.remove(name);
        assert_eq!(kept.as_ref(), Some(text), "{name}: look at it, then run `make man`");
    }
    assert!(kept.is_empty(), "of no verb: {:?}", kept.keys());
}

#[test]
fn hidden_verbs_show_up_nowhere_and_others_everywhere() {
    let scripts = ["bash", "zsh", "fish"].map(|shell| {
        let output = Command::new(PROGRAM).args(["completions", shell]).output().expect(shell);
        assert!(output.status.success(), "{shell}");
        String::from_utf8(output.stdout).expect("text")
    });
    let pages: Vec<String> = pages().into_values().collect();
    for text in scripts.iter().chain(&pages) {
        assert!(!text.contains("watchdog") && !text.contains("inside a private"), "{text}");
    }
    for script in &scripts {
        for word in ["migrate", "--confirm-within", "rollback", "export", "nftables"] {
            let word = word.trim_start_matches('-');
            assert!(script.contains(word), "{word}");
        }
    }
}

#[test]
fn bash_completes_verbs_and_their_options() {
    let script = "\
eval \"$($0 completions bash)\"
ask() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _proxyshift proxyshift \"${@: -1}\" \"${@: -2:1}\"
    echo \"${COMPREPLY[*]}\"; }
ask proxyshift mig
ask proxyshift snapshot exp
ask proxyshift cleanup --conf
ask proxyshift migrate --to ip
";
    let printed = run_with("", &["bash", "-c", script, PROGRAM]);
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines, ["migrate", "export", "--confirm-within", "iptables ipvs"]);
}
