//! Terminals of all sizes, and one whose size changes while a question waits.

use crate::common::in_namespace;
use crate::common::node::Case;
use crate::pty::Session;
use crate::{CTRL_C, DOWN, QUESTIONS};

/// Lines and columns of terminals on which no question can be redrawn.
const SMALL: [(u16, u16); 8] =
    [(1, 80), (2, 80), (3, 80), (1, 1), (2, 1), (24, 1), (24, 2), (24, 39)];

#[test]
fn a_small_terminal_serves_as_well() {
    if !in_namespace("sizes::a_small_terminal_serves_as_well") {
        return;
    }
    let case = Case::new();
    for (lines, columns) in SMALL {
        let mut wizard = Session::start(&case.proxyshift.command(""), lines, columns);
        wizard.expect("To do [1]");
        assert!(!wizard.raw().contains("\x1b[?25l"), "{lines} × {columns}: the cursor is hidden");
        wizard.send("\n");
        wizard.expect("nothing was changed");
        wizard.ends(130);
        case.is_as_before();
    }
    // A terminal that does not tell its size, such as a serial line.
    let mut wizard = Session::start(&case.proxyshift.command(""), 0, 0);
    wizard.answer("To do", "\r");
    wizard.ends(130);
    // A whole clean-up.
    let mut wizard = Session::start(&case.proxyshift.command(""), 2, 30);
    for (question, answer) in
        [("To do [1]", "2"), ("[Y/n]", "y"), ("[y/N]", "y"), ("[y/N]", "y"), ("Keep it? [1]", "3")]
    {
        wizard.type_line(question, answer);
    }
    wizard.ends(0);
    assert!(wizard.text().contains("Rolled back run"), "{}", wizard.text());
    case.is_as_before();
}

#[test]
fn a_terminal_that_shrinks_stops_no_question() {
    if !in_namespace("sizes::a_terminal_that_shrinks_stops_no_question") {
        return;
    }
    let case = Case::new();
    for (lines, columns) in SMALL.into_iter().chain([(0, 0)]) {
        let mut wizard = case.wizard_at("To do");
        wizard.answer("", "");
        wizard.resize(lines, columns);
        for key in [DOWN, DOWN, "x", "\x1b[A", "\x1b[A", "\x1b[Z", "\t", "\x1b", "\r"] {
            wizard.send(key);
            // A key is not taken for the end of an escape sequence, on a busy machine too.
            let pause = if key == "\x1b" { 500 } else { 20 };
            std::thread::sleep(std::time::Duration::from_millis(pause));
        }
        wizard.expect("nothing was changed");
        wizard.ends(130);
        case.is_as_before();
    }
    // It shrinks at each question in turn, and grows again.
    let mut wizard = case.wizard("");
    for (question, answer) in QUESTIONS {
        wizard.answer(question, "");
        wizard.resize(1, 1);
        wizard.send(answer);
        wizard.resize(40, 90);
    }
    wizard.ends(0);
    case.proxyshift.expect(0, "rollback");
    case.is_as_before();
}

#[test]
fn a_small_terminal_that_is_closed_confirms_nothing() {
    if !in_namespace("sizes::a_small_terminal_that_is_closed_confirms_nothing") {
        return;
    }
    let case = Case::new();
    let mut wizard = Session::start(&case.proxyshift.command(""), 2, 80);
    wizard.expect("To do [1]");
    wizard.hang_up();
    assert_eq!(wizard.code(), Some(130));
    let mut wizard = Session::start(&case.proxyshift.command(""), 2, 80);
    wizard.expect("To do [1]");
    wizard.send(CTRL_C);
    wizard.expect("nothing was changed");
    wizard.ends(130);
    let mut wizard = case.wizard_at("Keep it?");
    wizard.resize(1, 1);
    wizard.hang_up();
    assert_eq!(wizard.code(), Some(6));
    case.proxyshift.expect(0, "rollback");
    case.is_as_before();
}
