//! The unit of systemd that keeps an exception, for whom installs no program of ours on the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::apply::systemd::{enable, systemctl, write};
use crate::error::{Error, Kind, Result};
use crate::guard::Exception;
use crate::guard::Guard;
use crate::node::locks::LOCK_DIR;
use crate::node::locks::NodeLock;
use crate::node::systemd;
use crate::runtime;
use crate::store::Store;

/// As the unit that comes with the program is called.
const UNIT: &str = "proxyshift-guard.service";

/// The first line of a unit that is ours to change.
const OURS: &str = "# Written by proxyshift for the state `guarded` of its Ansible module.\n";

/// How long systemd may take: longer than it waits for a guard that takes its rules away.
const PATIENCE: Duration = Duration::from_secs(90);

/// A unit that keeps exceptions; it starts a copy of this program in the store.
pub struct Unit<'a> {
    guard: &'a Guard<'a>,
    store: &'a Store,
}

/// What a unit lacks to keep what it should.
enum Lacks {
    Nothing,
    /// It runs as it should; a rule is missing, which it is about to put back.
    Rule,
    /// Its file or program is another one, or it does not run.
    Start,
}

impl<'a> Unit<'a> {
    /// The unit for what `guard` is told.
    pub fn new(guard: &'a Guard<'a>, store: &'a Store) -> Unit<'a> {
        Unit { guard, store }
    }

    /// Whether the unit, its program or a rule is not as it should be.
    ///
    /// # Errors
    /// [`Kind::Contested`] where somebody else has written a unit of that name, or as
    /// [`Guard::intended`].
    pub fn is_wanting(&self) -> Result<bool> {
        Ok(!matches!(self.lacks()?, Lacks::Nothing))
    }

    fn lacks(&self) -> Result<Lacks> {
        // Where the rules may not stand, no unit is to try.
        let rules = self.guard.intended()?;
        let unit = systemd::installed(UNIT);
        if unit.as_ref().is_some_and(|unit| !unit.text.starts_with(OURS)) {
            let cause = "this unit keeps an exception already, and was not written by this module";
            return Err(Error::new(Kind::Contested, UNIT, cause)
                .hint("let it keep what it is told to, or remove it first"));
        }
        if !systemd::is_active(UNIT) {
            return Ok(Lacks::Start);
        }
        let as_told = unit.is_some_and(|unit| unit.at_boot && unit.text == self.text());
        Ok(match as_told && self.is_this_program()? {
            false => Lacks::Start,
            true if rules.is_empty() => Lacks::Nothing,
            true => Lacks::Rule,
        })
    }

    fn program(&self) -> PathBuf {
        self.store.guard_dir().join(runtime::NAME)
    }

    fn is_this_program(&self) -> Result<bool> {
        let (own, copy) = (runtime::program()?, self.program());
        let read = |path: &Path| fs::read(path).map_err(|e| Error::io(path, &e));
        Ok(copy.exists() && read(&copy)? == read(&own)?)
    }

    /// Has the unit keep the exceptions from now on, and after each boot; whether anything had to be
    /// changed for that. Cut off, it begins anew the next time: that a boot starts the unit comes last.
    ///
    /// # Errors
    /// As [`Self::is_wanting`]; [`Kind::Lock`] where another guard is at work; what writing it, or systemd, fails with; [`Kind::Command`] when the
    /// rules do not come to stand.
    pub fn keep(&self) -> Result<bool> {
        let lacks = self.lacks()?;
        if let Lacks::Start = lacks {
            if !systemd::is_active(UNIT) {
                // Another guard, which somebody else has started, would not let this one be.
                NodeLock::of_guard(Path::new(LOCK_DIR), "guarded")?;
            }
            self.store.make_guard_dir()?;
            runtime::copy_program(&self.program())?;
            write(UNIT, &self.text())?;
            systemctl(&["daemon-reload"], PATIENCE)?;
            systemctl(&["restart", UNIT], PATIENCE)?;
        }
        self.wait()?;
        enable(UNIT)?;
        Ok(!matches!(lacks, Lacks::Nothing))
    }

    /// Waits until the unit has its rules in place.
    fn wait(&self) -> Result<()> {
        let start = Instant::now();
        loop {
            let missing = self.guard.intended()?.first().map(ToString::to_string);
            let missing = match systemd::is_active(UNIT) {
                true => missing,
                false => Some("start".into()),
            };
            let Some(missing) = missing else { return Ok(()) };
            if start.elapsed() > PATIENCE {
                let after = PATIENCE.as_secs();
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
             ExecStart=\"{}\" --progress plain --lock-wait {} guard --for {}\n\
             # SIGTERM takes the rules away; that may wait for the xtables lock.\n\
             TimeoutStopSec=60\n\
             Restart=on-failure\n\
             RestartSec=30\n\
             # Deviation arguments stay wrong.\n\
             RestartPreventExitStatus=2\n\n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            self.program().display(),
            self.guard.lock_wait.as_secs(),
            exceptions.collect::<Vec<_>>().join(","),
        )
    }
}
