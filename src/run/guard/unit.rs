//! The unit of systemd that keeps an exception, for whom installs no program of ours on the node.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::here;
use crate::node::systemd::{self, systemctl};
use crate::run::guard::{Exception, Guard};
use crate::store::Store;

/// As the unit that comes with the program is called.
const UNIT: &str = "proxyshift-guard.service";

/// How long systemd may take, and then the guard until its rules stand.
const PATIENCE: Duration = Duration::from_secs(60);

/// A unit that keeps exceptions; it starts a copy of this program in the store.
pub struct Unit<'a> {
    guard: &'a Guard<'a>,
    program: PathBuf,
}

impl<'a> Unit<'a> {
    /// The unit for what `guard` is told.
    pub fn new(guard: &'a Guard<'a>, store: &Store) -> Unit<'a> {
        Unit { guard, program: store.dir().join("guard").join(here::NAME) }
    }

    /// Whether the unit, its program or a rule is not as it should be.
    ///
    /// # Errors
    /// As [`Guard::intended`].
    pub fn is_wanting(&self) -> Result<bool> {
        Ok(!self.is_installed()? || !self.guard.intended()?.is_empty())
    }

    fn is_installed(&self) -> Result<bool> {
        Ok(systemd::is_installed(UNIT, &self.text()) && self.is_this_program()?)
    }

    fn is_this_program(&self) -> Result<bool> {
        let own = here::program()?;
        let read = |path: &Path| fs::read(path).map_err(|e| Error::io(path, &e));
        Ok(self.program.exists() && read(&self.program)? == read(&own)?)
    }

    /// Has the unit keep the exceptions from now on, and after each boot; whether anything had to be
    /// changed for that.
    ///
    /// # Errors
    /// What writing it, or systemd, fails with; [`Kind::Command`] when the rules do not come to stand.
    pub fn keep(&self) -> Result<bool> {
        let wanting = self.is_wanting()?;
        let installed = self.is_installed()?;
        if !installed {
            let folder = self.program.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
            here::copy_program(&self.program)?;
            systemd::install(UNIT, &self.text())?;
            systemctl(&["daemon-reload"], PATIENCE)?;
        }
        let verb = if installed { "start" } else { "restart" };
        systemctl(&[verb, UNIT], PATIENCE)?;
        let start = Instant::now();
        while let Some(missing) = self.guard.intended()?.first() {
            if start.elapsed() > PATIENCE {
                let cause = format!("after {} s it has not done: {missing}", PATIENCE.as_secs());
                return Err(Error::new(Kind::Command, UNIT, cause)
                    .hint(format!("see `journalctl -u {UNIT}`")));
            }
            thread::sleep(Duration::from_millis(200));
        }
        Ok(wanting)
    }

    fn text(&self) -> String {
        let exceptions = self.guard.exceptions.iter().map(Exception::to_string);
        format!(
            "# Written by proxyshift for the state `guarded` of its Ansible module.\n\
             [Unit]\n\
             Description=An exception for INVALID packets, kept before what drops them\n\
             After=network-pre.target\n\n\
             [Service]\n\
             Type=exec\n\
             ExecStart=\"{}\" --progress plain guard --for {}\n\
             # SIGTERM takes the rules away; that may wait for the xtables lock.\n\
             TimeoutStopSec=60\n\
             Restart=on-failure\n\
             RestartSec=30\n\
             # Wrong arguments stay wrong.\n\
             RestartPreventExitStatus=2\n\n\
             [Install]\n\
             WantedBy=multi-user.target\n",
            self.program.display(),
            exceptions.collect::<Vec<_>>().join(","),
        )
    }
}
