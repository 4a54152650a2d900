//! Numbers among the sysctls of a state.

use crate::state::NodeState;

/// The value of a numeric sysctl. The error names the missing data.
pub(super) fn number(state: &NodeState, name: &str) -> Result<u64, String> {
    let sysctls = state.sysctls().ok_or("the sysctls are not in this state")?;
    let value = sysctls.get(name).ok_or(format!("{name} is not in this state"))?;
    value.parse().map_err(|_| format!("{name} = {value} is no number"))
}
