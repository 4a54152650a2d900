//! The wizard on a real terminal, with a captured node in the test's namespace.

#[path = "../common/mod.rs"]
mod common;
mod pty;
mod sizes;
mod svg;

use common::node::{Case, Proxyshift, assert_same};
use common::{in_namespace, poll};
use proxyshift::state::Backend;
use pty::Session;

const NODE: &str = "half-migrated-ipvs-1.20";
const DOWN: &str = "\x1b[B";
const CTRL_C: &str = "\x03";

impl Case {
    fn new() -> Case {
        Case::of(NODE, Backend::Nft)
    }

    fn wizard(&self, words: &str) -> Session {
        Session::start(&self.proxyshift.command(words), 40, 90)
    }

    /// Starts the wizard, and answers its questions until it asks `question`.
    fn wizard_at(&self, question: &str) -> Session {
        let mut wizard = self.wizard("");
        for (prompt, answer) in QUESTIONS {
            if prompt == question {
                wizard.expect(prompt);
                return wizard;
            }
            wizard.answer(prompt, answer);
        }
        panic!("it does not ask: {question}");
    }

    fn is_as_before(&self) {
        assert_same(&self.node.rules(), &self.before, "nothing was changed");
        self.proxyshift.expect(0, "status");
    }
}

/// The questions of a clean-up, each with the keys that answer it so that the clean-up goes on.
const QUESTIONS: [(&str, &str); 5] = [
    ("To do", "\x1b[B\r"),
    ("Undo it unless you keep it?", "y"),
    ("Show all of them?", "y"),
    ("Remove ", "y"),
    ("Keep it?", "\x1b[B\r"),
];

#[test]
fn the_happy_way_cleans_the_node_and_says_how_without_questions() {
    if !in_namespace("the_happy_way_cleans_the_node_and_says_how_without_questions") {
        return;
    }
    let case = Case::new();
    let mut wizard = Session::start(&case.proxyshift.command(""), 80, 100);
    for (question, answer) in QUESTIONS {
        wizard.answer(question, if question == "Show all of them?" { "n" } else { answer });
    }
    wizard.ends(0);
    let clean = case.node.rules();
    assert_ne!(clean, case.before);
    assert!(!clean.contains("KUBE-SVC-"), "{clean}");
    assert!(clean.contains("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE"));
    let output = wizard.text();
    for part in [
        "ipvs mode, version",
        "checks,",
        "What goes:",
        "/run/store",
        "rehearsal:",
        "in one transaction",
        "Undone in 4 min 59 s",
        "To go back, now or later: proxyshift rollback",
        "proxyshift cleanup --confirm-within 5m --yes",
    ] {
        assert!(output.contains(part), "{part:?} is not in:\n{output}");
    }
    svg::write_or_compare(&wizard.screen());
    // The command line that the wizard named does the same.
    case.proxyshift.expect(0, "rollback");
    case.is_as_before();
    case.proxyshift.expect(0, "cleanup --confirm-within 5m --yes");
    assert_same(&case.node.rules(), &clean, "by the command line");
    case.proxyshift.expect(0, "confirm");
}

#[test]
fn a_no_at_any_question_changes_nothing() {
    if !in_namespace("a_no_at_any_question_changes_nothing") {
        return;
    }
    let case = Case::new();
    let mut wizard = case.wizard_at("To do");
    wizard.answer("", "\r");
    wizard.expect("nothing was changed");
    wizard.ends(130);
    case.is_as_before();
    // With "no" to these questions the wizard names another command line, and changes nothing yet.
    let mut wizard = case.wizard_at("Undo it unless you keep it?");
    wizard.answer("", "n");
    wizard.answer("Show all of them?", "n");
    wizard.answer("Remove ", "\r");
    wizard.expect("nothing was changed");
    wizard.ends(130);
    case.is_as_before();
    // The operator chooses to undo the run at once instead of confirming it.
    let mut wizard = case.wizard_at("Keep it?");
    assert_ne!(case.node.rules(), case.before);
    wizard.answer("", &format!("{DOWN}{DOWN}\r"));
    wizard.expect("Rolled back run");
    wizard.ends(0);
    case.is_as_before();
}

#[test]
fn ctrl_c_at_any_question_leaves_the_terminal_sane_and_says_the_state() {
    if !in_namespace("ctrl_c_at_any_question_leaves_the_terminal_sane_and_says_the_state") {
        return;
    }
    let case = Case::new();
    for (question, _) in &QUESTIONS[..4] {
        let mut wizard = case.wizard_at(question);
        wizard.answer("", CTRL_C);
        wizard.expect("nothing was changed");
        wizard.ends(130);
        case.is_as_before();
    }
    // SIGTERM arrives while a question waits for a key.
    let mut wizard = case.wizard_at("To do");
    wizard.answer("", "");
    rustix::process::kill_process(wizard.pid(), rustix::process::Signal::TERM).expect("alive");
    wizard.ends(130);
    // If the wizard ends while a run is unconfirmed, the run goes on waiting, and the next wizard
    // begins with that run.
    let mut wizard = case.wizard_at("Keep it?");
    wizard.answer("", CTRL_C);
    wizard.expect("proxyshift rollback");
    wizard.ends(6);
    case.proxyshift.expect(6, "status");
    let mut wizard = case.wizard("");
    wizard.answer("Keep it?", CTRL_C);
    assert!(wizard.text().contains("A run is pending"), "{}", wizard.text());
    wizard.ends(6);
    let mut wizard = case.wizard("");
    wizard.answer("Keep it?", &format!("{DOWN}{DOWN}\r"));
    wizard.ends(0);
    case.is_as_before();
}

#[test]
fn ctrl_c_at_work_ends_as_before_or_says_what_is_pending() {
    if !in_namespace("ctrl_c_at_work_ends_as_before_or_says_what_is_pending") {
        return;
    }
    let case = Case::new();
    // Interrupts the program before the first change, and between two edits.
    for (moment, codes) in [
        ("writing the snapshot", &[130][..]),
        ("rehearsing in a private namespace", &[130]),
        ("✓ remove", &[4, 6]),
    ] {
        let mut wizard = case.wizard_at("Remove ");
        wizard.answer("", "y");
        wizard.expect(moment);
        wizard.send(CTRL_C);
        let code = wizard.code().expect("an exit code");
        assert!(codes.contains(&code), "{moment}: {code}\n{}", wizard.text());
        wizard.ends(code);
        if code == 6 {
            case.proxyshift.expect(0, "rollback");
        }
        case.is_as_before();
    }
}

#[test]
fn a_closed_terminal_confirms_nothing() {
    if !in_namespace("a_closed_terminal_confirms_nothing") {
        return;
    }
    let case = Case::new();
    let mut wizard = case.wizard_at("Remove ");
    wizard.hang_up();
    assert_eq!(wizard.code(), Some(130));
    case.is_as_before();
    let mut wizard = case.wizard_at("Keep it?");
    wizard.hang_up();
    assert_eq!(wizard.code(), Some(6));
    let status = case.proxyshift.expect(6, "status");
    assert!(status.out.contains("waits to be confirmed"), "{}", status.out);
    case.proxyshift.expect(0, "rollback");
    case.is_as_before();
}

#[test]
fn forty_columns_and_plain_lines_serve_as_well() {
    if !in_namespace("forty_columns_and_plain_lines_serve_as_well") {
        return;
    }
    let case = Case::new();
    let mut wizard = Session::start(&case.proxyshift.command(""), 24, 40);
    for (question, answer) in QUESTIONS {
        wizard.answer(question, answer);
    }
    wizard.ends(0);
    assert!(wizard.text().contains("chain KUBE-PROXY-CANARY"), "{}", wizard.text());
    case.proxyshift.expect(0, "rollback");
    case.is_as_before();
    // With these options nothing is redrawn and there are no colours. The end of the input is not
    // taken as an answer.
    for words in ["--progress plain --no-color", "--no-color"] {
        let mut command = case.proxyshift.command(words);
        if words == "--no-color" {
            command.env("TERM", "dumb");
        }
        let mut wizard = Session::start(&command, 24, 80);
        wizard.expect("To do [1]");
        wizard.send("2\n");
        wizard.expect("keep it? [Y/n]");
        wizard.send("\n");
        wizard.expect("Show all of them? [y/N]");
        wizard.send("no\n");
        wizard.expect("[y/N]");
        assert!(!wizard.raw().contains('\x1b'), "{}", wizard.text());
        wizard.send("\x04");
        wizard.expect("nothing was changed");
        wizard.ends(130);
        case.is_as_before();
        let mut wizard = Session::start(&command, 24, 80);
        wizard.expect("To do [1]");
        wizard.send(CTRL_C);
        wizard.expect("nothing was changed");
        wizard.ends(130);
    }
}

#[test]
fn a_move_asks_for_what_it_needs_and_changes_nothing_without() {
    if !in_namespace("a_move_asks_for_what_it_needs_and_changes_nothing_without") {
        return;
    }
    // This kernel has no ipvs, so a check finds a problem that blocks the migration.
    let case = Case::of("canal-stale-flannel-1.20", Backend::Nft);
    let mut wizard = case.wizard_at("To do");
    wizard.answer("", &format!("{DOWN}{DOWN}\r"));
    // To ignore a finding, the operator must type the node's name; any other text stops the wizard.
    wizard.answer("About this", &format!("{DOWN}\r"));
    wizard.type_line("The node's name", "another");
    assert!(wizard.text().contains("In the way: kernel."), "{}", wizard.text());
    wizard.expect("nothing was changed");
    wizard.ends(130);
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // The controller of kube-proxy is unknown, so the wizard asks for a playbook until it gets a
    // valid one.
    let to_the_playbook = || {
        let mut wizard = case.wizard_at("To do");
        wizard.answer("", &format!("{DOWN}{DOWN}\r"));
        loop {
            wizard.expect_one(&["About this", "Your playbook"]);
            if wizard.text().contains("Your playbook") {
                return wizard;
            }
            wizard.answer("", &format!("{DOWN}\r"));
            wizard.type_line("The node's name", &name);
        }
    };
    let mut wizard = to_the_playbook();
    wizard.type_line("", "/run/nowhere.yaml");
    wizard.expect("/run/nowhere.yaml: No such file");
    wizard.type_line("", "");
    wizard.expect("nothing was changed");
    wizard.ends(130);
    let mut wizard = to_the_playbook();
    wizard.send(CTRL_C);
    wizard.ends(130);
    case.is_as_before();
}

#[test]
fn off_a_terminal_it_asks_nothing() {
    if !in_namespace("off_a_terminal_it_asks_nothing") {
        return;
    }
    let proxyshift = Proxyshift::new("store");
    proxyshift.expect(2, "").reports(&["which verb?", "proxyshift check"]);
    poll("no store is made", || !proxyshift.store.exists());
}
