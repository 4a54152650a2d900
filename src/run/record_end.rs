//! Records how a run that is not kept ended, wherever that can be written.

use crate::run::Context;
use crate::store::run::{Run, RunState};
use crate::store::write_run::Written;

/// Records that `run` ended in `state`. Warns if the disk of the store could not be written: the
/// node counts more than the record.
pub(super) fn record_end(context: &Context<'_>, run: &mut Run, state: RunState) {
    let warn = |text: String| context.sink.warning(text);
    match context.store.finish_somewhere(run, state) {
        Written::OnDisk => {}
        Written::InMemory(e) => warn(format!(
            "the store cannot be written ({e}); how run {} ended is noted in memory, until a \
             later proxyshift can write it there",
            run.id
        )),
        Written::Nowhere(e) => {
            warn(format!("how run {} ended could not be noted anywhere: {e}", run.id));
        }
    }
}
