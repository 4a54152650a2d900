//! Reads what lies in a process's own memory: its arguments, its environment.
//!
//! The kernel reads them through that memory, and a process can keep it from being read for ever: by
//! a file system that never answers (userfaultfd(2), FUSE), or a dead NFS server. So they are read in
//! threads that are left behind when they do not answer. A process that did not answer once is not
//! asked again.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::trust::PinnedProcess;
use crate::runtime::process_start;

/// How long one process may take.
const ONE: Duration = Duration::from_secs(1);

/// How long all processes that do not answer may take together.
const ALL: Duration = Duration::from_secs(3);

/// A process and when it started.
type Silent = (u32, Option<u64>);

/// The processes that did not answer.
static SILENT: Mutex<BTreeSet<Silent>> = Mutex::new(BTreeSet::new());

/// What a question gave.
#[derive(Debug, PartialEq, Eq)]
pub enum MemoryAnswer<T> {
    /// The answer; none if the process has ended.
    Read(Option<T>),
    /// The process did not answer in time, or there was no time left to ask it.
    Silence,
}

/// Asks one question of many processes, one after the other.
pub struct MemoryReader<T> {
    question: fn(&PinnedProcess) -> Option<T>,
    questions: Sender<PinnedProcess>,
    answers: Receiver<(PinnedProcess, Option<T>)>,
    waited: Duration,
}

impl<T: Send + 'static> MemoryReader<T> {
    /// A reader that asks `question`, which may never return.
    pub fn new(question: fn(&PinnedProcess) -> Option<T>) -> MemoryReader<T> {
        let (questions, answers) = worker(question);
        MemoryReader { question, questions, answers, waited: Duration::ZERO }
    }

    /// Asks `process`. Gives it back, unless it is silent.
    pub fn ask(&mut self, process: PinnedProcess) -> (Option<PinnedProcess>, MemoryAnswer<T>) {
        let silent = (process.pid(), process_start(process.pid()));
        let known = SILENT.lock().unwrap_or_else(PoisonError::into_inner).contains(&silent);
        if known || self.waited >= ALL {
            return (Some(process), MemoryAnswer::Silence);
        }
        let begun = Instant::now();
        let answer =
            self.questions.send(process).ok().and_then(|()| self.answers.recv_timeout(ONE).ok());
        if let Some((process, answer)) = answer {
            return (Some(process), MemoryAnswer::Read(answer));
        }
        self.waited += begun.elapsed();
        SILENT.lock().unwrap_or_else(PoisonError::into_inner).insert(silent);
        (self.questions, self.answers) = worker(self.question);
        (None, MemoryAnswer::Silence)
    }
}

/// A thread that answers questions until nobody has one any more.
fn worker<T: Send + 'static>(
    question: fn(&PinnedProcess) -> Option<T>,
) -> (Sender<PinnedProcess>, Receiver<(PinnedProcess, Option<T>)>) {
    let (questions, received) = channel::<PinnedProcess>();
    let (answered, answers) = channel();
    thread::spawn(move || {
        for process in received {
            let answer = question(&process);
            if answered.send((process, answer)).is_err() {
                break;
            }
        }
    });
    (questions, answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_process_is_probed_once() {
        let me = || PinnedProcess::open(std::process::id()).unwrap();
        let mut first = MemoryReader::new(PinnedProcess::first_argument);
        let answer = first.ask(me());
        assert!(matches!(answer, (Some(_), MemoryAnswer::Read(Some(_)))));
        let parent = || PinnedProcess::open(std::os::unix::process::parent_id()).unwrap();
        let mut never = MemoryReader::<()>::new(|_| {
            thread::sleep(Duration::from_secs(1000));
            None
        });
        let begun = Instant::now();
        assert!(matches!(never.ask(parent()), (None, MemoryAnswer::Silence)));
        assert!(matches!(never.ask(parent()), (Some(_), MemoryAnswer::Silence)));
        let took = begun.elapsed();
        assert!(took >= ONE && took < 2 * ONE, "{took:?}");
        let again = MemoryReader::new(PinnedProcess::first_argument).ask(parent());
        assert!(matches!(again, (Some(_), MemoryAnswer::Silence)));
    }
}
