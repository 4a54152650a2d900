//! A program on a terminal of its own: what is typed, and what the screen shows.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// How long a question may take to come: work lies before it, a whole migration on an emulated CPU.
const PATIENCE: Duration = Duration::from_secs(600);

/// Lines that are kept above the screen.
const HISTORY: usize = 2000;

/// A program on a terminal.
pub struct Session {
    child: Child,
    terminal: Option<File>,
    slave: Option<File>,
    before: Termios,
    seen: Arc<Mutex<Seen>>,
}

struct Seen {
    parser: vt100::Parser,
    text: String,
    /// How much of the text was waited for already.
    read: usize,
}

impl Session {
    /// Starts `command` on a terminal of so many lines and columns.
    pub fn start(command: &Command, lines: u16, columns: u16) -> Session {
        let master: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let name = ptsname(&master, Vec::new()).expect("a name").into_string().expect("text");
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).expect("a size");
        let open = || OpenOptions::new().read(true).write(true).open(&name).expect("a terminal");
        let slave = open();
        let before = tcgetattr(&slave).expect("its modes");
        // In a session of its own, whose terminal this is.
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args());
        started.env("TERM", "xterm-256color").env_remove("NO_COLOR").env("LANG", "C.UTF-8");
        for (name, value) in command.get_envs() {
            started.env(name, value.unwrap_or_default());
        }
        started.stdin(Stdio::from(open())).stdout(open()).stderr(open());
        let child = started.spawn().expect("setsid, of util-linux, starts");
        let cells = |n: u16| n.try_into().expect("a size that is not 0");
        let parser = vt100::Parser::new(cells(lines), cells(columns), HISTORY);
        let seen = Arc::new(Mutex::new(Seen { parser, text: String::new(), read: 0 }));
        let (mut reader, shared) = (File::from(master.try_clone().expect("a copy")), seen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                let mut seen = shared.lock().expect("not poisoned");
                seen.parser.process(&bytes[..n]);
                seen.text.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Session { child, terminal: Some(master.into()), slave: Some(slave), before, seen }
    }

    /// Waits until the program has said `text` since what was last waited for.
    pub fn expect(&mut self, text: &str) {
        self.expect_one(&[text]);
    }

    /// As [`Self::expect`], for one of several.
    pub fn expect_one(&mut self, texts: &[&str]) {
        let until = Instant::now() + PATIENCE;
        loop {
            // Seen before what it said last is looked at.
            let over = self.child.try_wait().expect("its state").is_some();
            if over {
                std::thread::sleep(Duration::from_millis(200));
            }
            let mut seen = self.seen.lock().expect("not poisoned");
            let plain = without_colours(&seen.text[seen.read..]);
            if texts.iter().any(|text| plain.contains(text)) {
                seen.read = seen.text.len();
                return;
            }
            drop(seen);
            let late = over || Instant::now() > until;
            assert!(!late, "{texts:?} not said (ended: {over}):\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All that was said, to the byte.
    pub fn raw(&self) -> String {
        self.seen.lock().expect("not poisoned").text.clone()
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        let terminal = self.terminal.as_mut().expect("open");
        terminal.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits for a question and types the answer.
    pub fn answer(&mut self, question: &str, keys: &str) {
        self.expect(question);
        self.wait_for_key();
        self.send(keys);
    }

    /// Until the program reads single keys: what is typed before would be echoed by the terminal.
    fn wait_for_key(&self) {
        let until = Instant::now() + PATIENCE;
        let slave = self.slave.as_ref().expect("open");
        while tcgetattr(slave).expect("its modes").local_modes.contains(LocalModes::ICANON) {
            assert!(Instant::now() < until, "it waits for no key:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that was said, without colours.
    pub fn text(&self) -> String {
        without_colours(&self.seen.lock().expect("not poisoned").text)
    }

    /// What is on the screen.
    pub fn screen(&self) -> vt100::Screen {
        self.seen.lock().expect("not poisoned").parser.screen().clone()
    }

    /// The process.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Closes the terminal, as when a connection breaks.
    pub fn hang_up(&mut self) {
        self.slave = None;
        // The reader has a copy: the hang-up is sent by hand to all of the session, as the kernel
        // does when the last one goes.
        self.terminal = None;
        rustix::process::kill_process(self.pid(), rustix::process::Signal::HUP).expect("alive");
    }

    /// Waits for the end; the exit code.
    pub fn code(&mut self) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                std::thread::sleep(Duration::from_millis(100));
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for the end with `code`, which leaves the terminal as it was, the cursor shown.
    pub fn ends(&mut self, code: i32) {
        let ended = self.code();
        assert_eq!(ended, Some(code), "{}", self.text());
        assert!(!self.screen().hide_cursor(), "the cursor is hidden:\n{}", self.text());
        if let Some(slave) = &self.slave {
            let now = tcgetattr(slave).expect("its modes");
            assert_eq!(now.local_modes, self.before.local_modes, "{}", self.text());
            assert_eq!(now.input_modes, self.before.input_modes, "{}", self.text());
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text without what moves the cursor or colours, carriage returns aside.
fn without_colours(text: &str) -> String {
    let escape = regex::Regex::new("\x1b(\\[[0-9;?]*[A-Za-z]|[78])").expect("a pattern");
    escape.replace_all(text, "").replace('\r', "")
}
