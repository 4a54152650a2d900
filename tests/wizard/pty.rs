//! A program on a pseudo-terminal: the test types keys, and reads the screen.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// How long a question may take to appear. A whole migration on an emulated CPU may come before it.
const TIMEOUT: Duration = Duration::from_secs(600);

/// How many lines are kept that have scrolled off the screen.
const HISTORY: usize = 2000;

/// A running program with its own terminal.
pub struct Session {
    child: Child,
    terminal: Option<File>,
    slave: Option<File>,
    before: Termios,
    output: Arc<Mutex<Output>>,
}

struct Output {
    parser: vt100::Parser,
    text: String,
    /// Up to which byte [`Session::expect`] has matched the output.
    read: usize,
}

impl Session {
    /// Starts `command` on a terminal with this number of lines and columns.
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
        // The program is started in a session of its own, whose controlling terminal is this
        // pseudo-terminal.
        let mut started = Command::new("setsid");
        started.arg("--ctty").arg(command.get_program()).args(command.get_args());
        started.env("TERM", "xterm-256color").env_remove("NO_COLOR").env("LANG", "C.UTF-8");
        for (name, value) in command.get_envs() {
            started.env(name, value.unwrap_or_default());
        }
        started.stdin(Stdio::from(open())).stdout(open()).stderr(open());
        let child = started.spawn().expect("setsid, of util-linux, starts");
        let cells = |n: u16| n.max(1).try_into().expect("a size that is not 0");
        let parser = vt100::Parser::new(cells(lines), cells(columns), HISTORY);
        let output = Arc::new(Mutex::new(Output { parser, text: String::new(), read: 0 }));
        let (mut reader, shared) =
            (File::from(master.try_clone().expect("a copy")), output.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                let mut output = shared.lock().expect("not poisoned");
                output.parser.process(&bytes[..n]);
                output.text.push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Session { child, terminal: Some(master.into()), slave: Some(slave), before, output }
    }

    /// Waits until the program prints `text`, after what was matched before.
    pub fn expect(&mut self, text: &str) {
        self.expect_one(&[text]);
    }

    /// As [`Self::expect`], but waits for any one of `texts`.
    pub fn expect_one(&mut self, texts: &[&str]) {
        let until = Instant::now() + TIMEOUT;
        loop {
            // Whether the program has ended is read before its output, so that the output is
            // complete if it has.
            let over = self.child.try_wait().expect("its state").is_some();
            if over {
                std::thread::sleep(Duration::from_millis(200));
            }
            let mut output = self.output.lock().expect("not poisoned");
            let plain = without_colours(&output.text[output.read..]);
            if texts.iter().any(|text| plain.contains(text)) {
                output.read = output.text.len();
                return;
            }
            drop(output);
            let late = over || Instant::now() > until;
            assert!(!late, "{texts:?} not said (ended: {over}):\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Changes the size of the terminal.
    pub fn resize(&self, lines: u16, columns: u16) {
        let size = Winsize { ws_row: lines, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(self.terminal.as_ref().expect("open"), size).expect("a size");
    }

    /// The output with all escape sequences.
    pub fn raw(&self) -> String {
        self.output.lock().expect("not poisoned").text.clone()
    }

    /// Types `keys` on the terminal.
    pub fn send(&mut self, keys: &str) {
        let terminal = self.terminal.as_mut().expect("open");
        terminal.write_all(keys.as_bytes()).expect("typed");
    }

    /// Waits until the program asks `question`, and types `keys`.
    pub fn answer(&mut self, question: &str, keys: &str) {
        self.expect(question);
        self.wait_for_key();
        self.send(keys);
    }

    /// Waits until the program asks `question`, and types `line`, which the terminal edits.
    pub fn type_line(&mut self, question: &str, line: &str) {
        self.expect(question);
        let until = Instant::now() + TIMEOUT;
        while !self.reads_lines() {
            assert!(Instant::now() < until, "it waits for no line:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
        self.send(&format!("{line}\n"));
    }

    fn reads_lines(&self) -> bool {
        let slave = self.slave.as_ref().expect("open");
        tcgetattr(slave).expect("its modes").local_modes.contains(LocalModes::ICANON)
    }

    /// Waits until the program reads single keys. The terminal would echo a key that is typed
    /// earlier.
    fn wait_for_key(&self) {
        let until = Instant::now() + TIMEOUT;
        while self.reads_lines() {
            assert!(Instant::now() < until, "it waits for no key:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The output without escape sequences.
    pub fn text(&self) -> String {
        without_colours(&self.output.lock().expect("not poisoned").text)
    }

    /// The screen as it is shown now.
    pub fn screen(&self) -> vt100::Screen {
        self.output.lock().expect("not poisoned").parser.screen().clone()
    }

    /// The PID of the program.
    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Closes the terminal, as a broken connection would.
    pub fn hang_up(&mut self) {
        self.slave = None;
        // The thread that reads the output holds a copy of the terminal, so the kernel does not
        // send SIGHUP. The test sends it by hand to the whole session, as the kernel does when the
        // last copy is closed.
        self.terminal = None;
        rustix::process::kill_process(self.pid(), rustix::process::Signal::HUP).expect("alive");
    }

    /// Waits until the program ends. Returns its exit code.
    pub fn code(&mut self) -> Option<i32> {
        let until = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.child.try_wait().expect("its state") {
                std::thread::sleep(Duration::from_millis(100));
                return status.code();
            }
            assert!(Instant::now() < until, "it does not end:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the program ends with the exit code `code`. The terminal's settings must then be
    /// restored, and the cursor shown.
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

/// The text without escape sequences and carriage returns.
fn without_colours(text: &str) -> String {
    let escape = regex::Regex::new("\x1b(\\[[0-9;?]*[A-Za-z]|[78])").expect("a pattern");
    escape.replace_all(text, "").replace('\r', "")
}
