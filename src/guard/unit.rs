//! The systemd unit that keeps the guard's exceptions, for nodes on which proxyshift is not
//! installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::apply::systemd::{enable, exec_argument, exec_path, systemctl, write};
use crate::error::{Error, Kind, Result};
use crate::guard::Exception;
use crate::guard::Guard;
use crate::node::locks::LOCK_DIR;
use crate::node::locks::NodeLock;
use crate::node::systemd;
use crate::plan::change::Edit;
use crate::runtime;
use crate::store::Store;

/// The unit's name, which is also the name of the unit that comes with proxyshift.
const UNIT: &str = "proxyshift-guard.service";

/// The first line of the unit's file; a file without it is foreign and is not changed.
const OURS: &str = "# Written by proxyshift for the state `guarded` of its Ansible module.\n";

/// How long systemd may take to act. This is longer than systemd waits for a guard to remove its
/// rules.
const TIMEOUT: Duration = Duration::from_secs(90);

/// The systemd unit that keeps exceptions. The unit starts the copy of proxyshift that is in the
/// store.
pub struct Unit<'a> {
    guard: &'a Guard<'a>,
    store: &'a Store,
}

/// What is missing before the unit keeps the exceptions.
enum Lacks {
    Nothing,
    /// A rule is missing; the unit runs and is about to restore the rule.
    Rule,
    /// The unit does not run.
    Start,
    /// The unit runs, but its unit file, its start at boot or its program is not the intended one.
    Restart,
}

impl<'a> Unit<'a> {
    /// The unit that keeps the exceptions of `guard`. The copy of proxyshift that it starts is in
    /// `store`.
    pub fn new(guard: &'a Guard<'a>, store: &'a Store) -> Unit<'a> {
        Unit { guard, store }
    }

    /// Whether the unit, its program or a rule needs a change. `rules` are the edits of
    /// [`Guard::intended`]; if that function fails, the unit must not be started.
    ///
    /// # Errors
    /// [`Kind::Contested`] if a unit that proxyshift did not write has the unit's name.
    pub fn needs_change(&self, rules: &[Edit]) -> Result<bool> {
        Ok(!matches!(self.lacks(rules)?, Lacks::Nothing))
    }

    fn lacks(&self, rules: &[Edit]) -> Result<Lacks> {
        let unit = systemd::installed(UNIT);
        if unit.as_ref().is_some_and(|unit| !unit.text.starts_with(OURS)) {
            let cause = "this unit keeps an exception already, and was not written by this module";
            return Err(Error::new(Kind::Contested, UNIT, cause)
                .hint("let it keep what it is told to, or remove it first"));
        }
        if !systemd::is_active(UNIT) {
            return Ok(Lacks::Start);
        }
        let as_configured = unit.is_some_and(|unit| unit.at_boot && unit.text == self.text());
        if !as_configured || !self.is_this_program()? {
            return Ok(Lacks::Restart);
        }
        Ok(if rules.is_empty() { Lacks::Nothing } else { Lacks::Rule })
    }

    fn program(&self) -> PathBuf {
        self.store.guard_dir().join(runtime::NAME)
    }

    fn is_this_program(&self) -> Result<bool> {
        let own = runtime::program()?;
        let copy = self.program();
        let read = |path: &Path| fs::read(path).map_err(|e| Error::io(path, &e));
        Ok(copy.exists() && read(&copy)? == read(&own)?)
    }

    /// Makes the unit keep the exceptions from now on, and after each boot. Returns whether
    /// anything had to be changed. Enabling the unit at boot is the last step, so the next call
    /// recognises an interrupted installation and begins it anew.
    ///
    /// # Errors
    /// As [`Self::needs_change`]. [`Kind::Lock`] while another guard runs. [`Kind::Command`] when
    /// the rules do not appear in time. Errors of systemd and of writing the unit's file.
    pub fn install(&self) -> Result<bool> {
        let lacks = self.lacks(&self.guard.intended()?)?;
        if matches!(lacks, Lacks::Nothing) {
            return Ok(false);
        }
        if matches!(lacks, Lacks::Start) {
            // Fails if another guard runs, because that guard holds the lock, and the unit could
            // not start beside it.
            NodeLock::of_guard(Path::new(LOCK_DIR), "guarded")?;
        }
        if matches!(lacks, Lacks::Start | Lacks::Restart) {
            self.store.make_guard_dir()?;
            runtime::copy_program(&self.program())?;
            write(UNIT, &self.text())?;
            systemctl(&["daemon-reload"], TIMEOUT)?;
            systemctl(&["restart", UNIT], TIMEOUT)?;
        }
        self.wait()?;
        enable(UNIT)?;
        Ok(true)
    }

    /// Waits until the unit is active and its rules are in position.
    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let missing = self.guard.intended()?.first().map(ToString::to_string);
            let missing = if systemd::is_active(UNIT) { missing } else { Some("start".into()) };
            let Some(missing) = missing else { return Ok(()) };
            if start.elapsed() > TIMEOUT {
                let after = TIMEOUT.as_secs();
                let cause = format!("did not, within {after} s: {missing}{}", systemd::log(UNIT));
                let hint = format!("see `journalctl -u {UNIT}`");
                return Err(Error::new(Kind::Command, UNIT, cause).hint(hint));
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn text(&self) -> String {
        let exceptions = self.guard.exceptions.iter().map(Exception::to_string);
        format!(
            "{OURS}\
             [Unit]\n\
             Description=An exception for INVALID packets, kept before what drops them\n\
             After=network-pre.target\n\n\
             [Service]\n\
             Type=exec\n\
             ExecStart={} --progress plain --lock-wait {} guard --for {}\n\
             # SIGTERM takes the rules away; that may wait for the xtables lock.\n\
             TimeoutStopSec=60\n\
             Restart=on-failure\n\
             RestartSec=30\n\
             # Wrong arguments stay wrong.\n\
             RestartPreventExitStatus=2\n\n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            exec_path(&self.program()),
            self.guard.lock_wait.as_secs(),
            exec_argument(exceptions.collect::<Vec<_>>().join(",")),
        )
    }
}
