//! Announces a pending migration, and how it ended, to whom the controller of kube-proxy serves: the
//! administrators of a cluster see it at the Node. Nothing depends on it, so nothing fails because of it.

use crate::apply::kube_proxy::operate;
use crate::clock;
use crate::run::Context;
use crate::run::caller::begun_by;
use crate::state::kubernetes::{NoteState, RunNote};
use crate::store::run::{ConfiguredBy, Migration, Run};

/// Announces that the migration `run` is pending, and how far it is.
pub(super) fn announce(context: &Context<'_>, run: &Run, state: NoteState) {
    let Some((migration, by)) = controlled(run) else { return };
    let left = run.pending.as_ref().map(|pending| clock::after(pending.left()));
    let note = RunNote {
        id: run.id.clone(),
        from: migration.modes.from,
        to: migration.modes.to,
        state,
        deadline: left.filter(|_| state != NoteState::UndonePartly),
    };
    warn(context, operate(&by.controller).announce(Some(&note)));
    let event = match state {
        NoteState::Running => format!("kube-proxy moves {}{}", described(run, migration), who(run)),
        NoteState::UndonePartly => {
            format!("kube-proxy could not be moved back entirely {}", described(run, migration))
        }
        NoteState::Unconfirmed | NoteState::RollingBack => return,
    };
    warn(context, operate(&by.controller).report_event(&event));
}

/// Announces that `run` is pending no more, because it is kept, or was undone.
pub(super) fn announce_end(context: &Context<'_>, run: &Run, is_kept: bool) {
    let Some((migration, by)) = controlled(run) else { return };
    warn(context, operate(&by.controller).announce(None));
    let what = if is_kept { "has moved" } else { "was moved back, as if it had not moved" };
    let event = format!("kube-proxy {what} {}", described(run, migration));
    warn(context, operate(&by.controller).report_event(&event));
}

fn controlled(run: &Run) -> Option<(&Migration, &ConfiguredBy)> {
    let migration = run.migration()?;
    Some((migration, migration.kube_proxy.as_ref()?))
}

fn described(run: &Run, migration: &Migration) -> String {
    format!(
        "from {} to {} mode (proxyshift, run {})",
        migration.modes.from, migration.modes.to, run.id
    )
}

/// Who began the run, as far as it is known.
fn who(run: &Run) -> String {
    let Some(by) = begun_by(run) else { return String::new() };
    let user = by.sudo_user.or_else(|| by.login_uid.map(|uid| format!("uid {uid}")));
    let user = user.map(|user| format!(" by {user}")).unwrap_or_default();
    format!("{user}: {}", by.words)
}

fn warn(context: &Context<'_>, announced: crate::error::Result<()>) {
    if let Err(e) = announced {
        context.sink.warning(format!("the cluster is not told of the run: {e}"));
    }
}
