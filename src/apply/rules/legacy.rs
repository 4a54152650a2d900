//! Edits legacy tables: reads, compares and writes them under `/run/xtables.lock`.
//!
//! The kernel replaces a legacy table as a whole, so only the xtables lock excludes other writers.
//! This process holds the lock, so no other writer comes between the read, the comparison and the
//! write. The iptables programs that this process runs are given another lock file
//! (`XTABLES_LOCKFILE`, iptables ≥ 1.8.5), because otherwise they would wait for the lock that this
//! process holds.

use std::path::Path;
use std::time::Instant;

use crate::apply::rules::{payload, table};
use crate::apply::{Applied, Kernel};
use crate::error::{Error, Kind, Result};
use crate::node::command::Command;
use crate::node::locks::{XTABLES_LOCK, XtablesLock, lock_of_children};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, TableEdit};
use crate::state::ruleset::Ruleset;

/// The environment variable that names the lock file that a child uses.
const LOCK_VARIABLE: &str = "XTABLES_LOCKFILE";

/// How the error of a program begins that ended by itself, and so has changed nothing.
const ENDED: &str = "exit status";

pub(in crate::apply) fn apply(
    kernel: &Kernel<'_>,
    direction: Direction,
    edit: &TableEdit,
) -> Result<Applied> {
    let child_lock = lock_of_children()?;
    is_honoured(kernel, edit, &child_lock)?;
    let lock = XtablesLock::acquire(Path::new(XTABLES_LOCK), kernel.lock_wait)?;
    let start = Instant::now();
    let locked = Locked { kernel, edit, lock, child_lock: &child_lock };
    let now = locked.read()?;
    let inputs = locked.inputs(direction, now.as_ref())?;
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
    locked.write(inputs)?;
    let after = locked.read()?;
    Ok(table::applied(direction, edit, now.as_ref(), after.as_ref()))
}

/// One table, while this process holds the xtables lock.
struct Locked<'a> {
    kernel: &'a Kernel<'a>,
    edit: &'a TableEdit,
    lock: XtablesLock,
    child_lock: &'a Path,
}

/// What iptables-restore is given.
struct Inputs {
    text: String,
    /// The same with each rule named by its index, if `text` names one by its text.
    by_index: Option<String>,
}

impl Locked<'_> {
    fn read(&self) -> Result<Option<Ruleset>> {
        let Locked { kernel, edit, child_lock, .. } = self;
        table::read(kernel.tools, edit.ruleset, &edit.table, Some((LOCK_VARIABLE, child_lock)))
    }

    fn inputs(&self, direction: Direction, now: Option<&Ruleset>) -> Result<Inputs> {
        let edit = self.edit;
        Ok(match direction {
            Direction::Remove => {
                let rules = table::find_rules(edit, now)?;
                let by_index = payload::removal(&edit.table, &[], &rules, &edit.chains);
                let (only, repeated) = table::only_and_repeated(&edit.table, rules, now);
                let text = payload::removal(&edit.table, &only, &repeated, &edit.chains);
                Inputs { text, by_index: (!only.is_empty()).then_some(by_index) }
            }
            Direction::Add => {
                let rules = table::insert_positions(edit, now)?;
                let text = payload::addition(&edit.table, "", &rules, &edit.chains);
                Inputs { text, by_index: None }
            }
        })
    }

    /// Writes the table. iptables may print a rule that it then does not find by that text: such
    /// a rule is named by its index after all, which is safe while this process holds the lock.
    fn write(&self, inputs: Inputs) -> Result<()> {
        let failed = match (self.restore(inputs.text), inputs.by_index) {
            (Err(e), Some(by_index)) if e.cause.starts_with(ENDED) => self.restore(by_index),
            (written, _) => written,
        };
        failed.map_err(|e| Error { kind: Kind::Kernel, ..e })
    }

    /// Runs iptables-restore. It dies with this process; and until it is dead, it holds the lock
    /// that this process held, so that nobody else writes before it does.
    fn restore(&self, text: String) -> Result<()> {
        self.kernel
            .writer(Tool::Restore(self.edit.ruleset))?
            .args(["--noflush"])
            .env(LOCK_VARIABLE, self.child_lock)
            .stdin(text)
            .deadline(table::DEADLINE)
            .holding(&self.lock)
            .run()
            .map(drop)
    }
}

/// Verifies that this iptables honours `XTABLES_LOCKFILE`. A version that ignores it would wait
/// forever for the lock that this process holds. To find out, runs a child for which the variable
/// names a lock file in a folder that does not exist: an iptables that honours the variable must
/// fail.
fn is_honoured(kernel: &Kernel<'_>, edit: &TableEdit, child_lock: &Path) -> Result<()> {
    let nowhere = child_lock.with_file_name("none").join("xtables.lock");
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
