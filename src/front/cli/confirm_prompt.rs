//! The prompt that is shown while a run waits to be confirmed.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::error::{Error, Kind, Result};
use crate::front::cli::command::Invocation;
use crate::front::cli::signals;
use crate::front::cli::status;
use crate::store::run::{Run, RunState};
use crate::ui::prompt::Answer;

/// How often the remaining time is drawn again.
const TICK: Duration = Duration::from_millis(500);

/// By how much the answer `more time` extends the deadline.
const MORE: Duration = Duration::from_secs(600);

/// Asks until the run is confirmed, undone, or left to wait. Whatever happens to this prompt, the
/// watchdog undoes the run at its deadline.
pub(in crate::front) fn run(command: &Invocation<'_>, id: &str) -> Result<u8> {
    let answers = [
        Answer::new("leave it waiting", "it is undone when the time is over"),
        Answer::new("keep it", "the run is confirmed, and stays"),
        Answer::new("undo it now", "it is rolled back"),
        Answer::new("more time", "10 more minutes to look at the node"),
    ];
    loop {
        let Some(run) = waiting(command, id)? else {
            return resolved(command, id);
        };
        command.ui.say("");
        let shown = line(&run);
        let count = answers.len();
        let answer = std::thread::scope(|scope| {
            let (answered, end) = channel::<()>();
            scope.spawn(move || tick(command, id, count, &end));
            let answer = command.ui.choose_below(&shown, "Keep it?", &answers, 0);
            drop(answered);
            answer
        })?;
        if waiting(command, id)?.is_none() {
            return resolved(command, id);
        }
        match answer {
            1 => return super::confirm::confirm(command),
            2 => return super::rollback::run(command, None),
            3 => super::confirm::extend(command, MORE)?,
            _ => return super::status::run(command),
        };
    }
}

/// The run `id`, if it still waits to be confirmed.
fn waiting(command: &Invocation<'_>, id: &str) -> Result<Option<Run>> {
    Ok(command.store()?.run(id)?.filter(|run| run.state == RunState::Unconfirmed))
}

fn line(run: &Run) -> String {
    let left = run.pending.as_ref().map(|pending| pending.left()).unwrap_or_default();
    format!("  Undone in {}, unless kept.", status::time(left))
}

/// Draws the remaining time above a question that has `answers` possible answers, until a message
/// on `answered` ends it. Ends the program if the run was undone meanwhile.
fn tick(command: &Invocation<'_>, id: &str, answers: usize, answered: &Receiver<()>) {
    while answered.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
        match waiting(command, id) {
            Ok(Some(run)) => command.ui.redraw(&line(&run), answers),
            Ok(None) => match resolved(command, id) {
                Err(e) if e.kind != Kind::Pending => signals::end(command, e),
                _ => {}
            },
            Err(_) => {}
        }
    }
}

/// What became of a run that somebody else, or the watchdog, ended before this prompt was answered.
fn resolved(command: &Invocation<'_>, id: &str) -> Result<u8> {
    let state = command.store().and_then(|store| store.run(id)).ok().flatten().map(|r| r.state);
    let (kind, cause) = match state {
        Some(RunState::RolledBack) => {
            (Kind::RolledBack, "was not confirmed, and is rolled back: the node is as before")
        }
        Some(RunState::Done) => {
            command.ui.say("Somebody else has confirmed it.");
            return Ok(0);
        }
        Some(RunState::Running) => (Kind::Pending, "is being rolled back"),
        _ => (Kind::NotRolledBack, "was not confirmed, and could not be rolled back entirely"),
    };
    Err(Error::new(kind, format!("run {id}"), cause).hint("`proxyshift status` shows the runs"))
}
