//! The two backends of iptables, and rules that iptables-save no longer shows correctly.

mod both;
mod garbled;
mod hint;
mod lost_match;

use super::{Check, Facts};
use crate::state::ruleset::Ruleset;
use crate::state::{Backend, Family, RulesetId};

pub(super) const CHECKS: &[&Check] =
    &[&both::CHECK, &garbled::CHECK, &hint::CHECK, &lost_match::CHECK];

/// The ruleset of a family in a backend, if the ruleset has a rule, a chain that is not built in,
/// or a policy other than ACCEPT.
fn used<'a>(facts: &Facts<'a>, family: Family, backend: Backend) -> Option<&'a Ruleset> {
    let ruleset = facts.now.rulesets.get(&RulesetId { family, backend })?;
    (!ruleset.tables.iter().all(|t| t.is_pristine())).then_some(ruleset)
}

/// The backend that the host's own `iptables` uses.
fn of_the_host(facts: &Facts<'_>) -> Result<Backend, String> {
    let tools = facts.now.tools.as_ref().ok_or("the tools are not in this state")?;
    match tools.get("iptables").map(|t| t.text.as_str()) {
        Some(text) if text.contains("(nf_tables)") => Ok(Backend::Nft),
        Some(text) if text.contains("(legacy)") => Ok(Backend::Legacy),
        Some(text) => Err(format!("iptables does not say its backend: `{text}`")),
        None => Err("the list of tools does not name iptables".into()),
    }
}
