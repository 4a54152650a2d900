//! The value of `--to`, which many verbs have.

use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::kube_proxy::mode;
use crate::state::kube_proxy::Mode;

/// A mode that a node can be taken to.
pub(super) fn target() -> impl TypedValueParser<Value = Mode> {
    PossibleValuesParser::new(mode::targets().map(Mode::name)).try_map(|name| mode::target(&name))
}
