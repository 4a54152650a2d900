//! Edits legacy tables: reads, compares and writes them under `/run/xtables.lock`.
//!
//! The kernel replaces a legacy table as a whole, so only the xtables lock excludes other writers.
//! This process holds the lock, so no other writer comes between the read, the comparison and the
//! write. The iptables programs that this process runs are given another lock file
//! (`XTABLES_LOCKFILE`, iptables ≥ 1.8.5), because otherwise they would wait for the lock that this
//! process holds.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::apply::rules::{payload, table};
use crate::apply::{Applied, Kernel};
use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::locks::XTABLES_LOCK;
use crate::node::locks::XtablesLock;
use crate::node::tools::Tool;
use crate::plan::change::{Direction, TableEdit};

/// The environment variable that names the lock file that a child uses.
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";

pub(in crate::apply) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    edit: &TableEdit,
) -> Result<Applied> {
    let child_lock = ChildLock::new()?;
    child_lock.is_honoured(kernel, edit)?;
    let _lock = XtablesLock::acquire(Path::new(XTABLES_LOCK), kernel.lock_wait)?;
    let start = Instant::now();
    let environment = Some((LOCK_VARIABLE, child_lock.path.as_path()));
    let now = table::read(kernel.tools, edit.ruleset, &edit.table, environment)?;
    let text = match direction {
        Direction::Remove => {
            let rules = table::find_rules(edit, now.as_ref())?;
            payload::removal(&edit.table, &rules, &edit.chains)
        }
        Direction::Add => {
            let rules = table::insert_positions(edit, now.as_ref())?;
            payload::addition(&edit.table, "", &rules, &edit.chains)
        }
    };
    if kernel.hold_limit.is_some_and(|limit| start.elapsed() * 2 > limit) {
        // Reading alone took more than half of the time for which other programs may be kept
        // waiting, and writing would take more than the rest.
        let object = format!("{} {}", edit.ruleset, edit.table);
        let took = start.elapsed().as_secs_f64();
        let cause = format!("reading it took {took:.1} s under the xtables lock, and others wait");
        return Err(Error::new(Kind::Busy, object, cause).hint(
            "try again when the node is less busy; a table this large needs a drained node",
        ));
    }
    Command::new(kernel.tools.tool(Tool::Restore(edit.ruleset))?)
        .args(["--noflush"])
        .env(LOCK_VARIABLE, &child_lock.path)
        .stdin(text)
        .deadline(table::DEADLINE)
        .run()
        .map_err(|e| Error { kind: Kind::Kernel, ..e })?;
    let after = table::read(kernel.tools, edit.ruleset, &edit.table, environment)?;
    Ok(table::applied(direction, edit, now.as_ref(), after.as_ref()))
}

/// The lock file that the children of this process use while this process holds
/// `/run/xtables.lock`.
struct ChildLock {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl ChildLock {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), &e))?;
        Ok(ChildLock { path: dir.path().join("xtables.lock"), _dir: dir })
    }

    /// Verifies that this iptables honours `XTABLES_LOCKFILE`. A version that ignores it would wait
    /// forever for the lock that this process holds. To find out, runs a child for which the
    /// variable names a lock file in a folder that does not exist: an iptables that honours the
    /// variable must fail.
    fn is_honoured(&self, kernel: &Kernel<'_>, edit: &TableEdit) -> Result<()> {
        let nowhere = self.path.with_file_name("none").join("xtables.lock");
        let refused = Command::new(kernel.tools.tool(Tool::Restore(edit.ruleset))?)
            .args(["--noflush", "--test"])
            .env(LOCK_VARIABLE, &nowhere)
            .stdin(format!("*{}\nCOMMIT\n", edit.table))
            .run();
        match refused {
            Err(e) if e.cause.contains(&nowhere.display().to_string()) => Ok(()),
            _ => Err(Error::new(
                Kind::MissingTool,
                Tool::Restore(edit.ruleset).program(),
                "does not honour XTABLES_LOCKFILE, so the lock cannot be held over a comparison",
            )
            .hint("install iptables 1.8.5 or later")),
        }
    }
}
