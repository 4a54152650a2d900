//! Going on with whatever run was cut off.

use crate::error::{Error, Kind, Result};
use crate::interrupt;
use crate::run::{Context, cleanup, migrate};
use crate::store::run::{RunKind, RunState};

/// What was gone on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resumed {
    /// A clean-up.
    Cleanup(cleanup::Report),
    /// A migration.
    Migration(migrate::Report),
}

/// Goes on with the run that is pending.
///
/// # Errors
/// [`Kind::NotFound`] when there is none; [`Kind::Pending`] when only a rollback can be offered, or
/// when it waits to be confirmed.
pub fn resume(context: &Context<'_>) -> Result<Resumed> {
    let _lock = context.lock("resume")?;
    let _change = interrupt::change();
    let Some(run) = context.store.pending()? else {
        return Err(Error::new(Kind::NotFound, "resume", "no run is pending")
            .hint("`proxyshift status` lists the runs"));
    };
    if run.state == RunState::Unconfirmed {
        let cause = "has done its work and waits to be confirmed";
        return Err(Error::new(Kind::Pending, format!("run {}", run.id), cause)
            .hint("`proxyshift confirm` keeps it, `proxyshift rollback` undoes it"));
    }
    match run.kind {
        RunKind::Migrate(_) => migrate::resume(context, run).map(Resumed::Migration),
        RunKind::Cleanup(_) | RunKind::Fix { .. } => {
            cleanup::keep_waiting(context, run).map(Resumed::Cleanup)
        }
    }
}
