//! Who began a run, as it is shown.

use crate::node::secrets::masked;
use crate::runtime::Caller;
use crate::store::run::Run;

/// Who began a run, without secrets in the words. None for a run that does not say.
pub fn begun_by(run: &Run) -> Option<Caller> {
    let by = run.by.as_ref()?;
    Some(Caller { words: masked(&by.words), ..by.clone() })
}
