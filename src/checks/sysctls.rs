//! The sysctls of a state, parsed.

use crate::state::NodeState;
use crate::state::sysctl::Sysctls;

/// The sysctls of a state; `None` if they were not captured.
pub(super) fn sysctls(state: &NodeState) -> Option<Sysctls> {
    const FILE: &str = "sysctl.txt";
    Sysctls::parse(FILE, state.files.get(FILE)?).ok()
}

/// The value of a numeric sysctl. The error names the missing data.
pub(super) fn number(state: &NodeState, name: &str) -> Result<u64, String> {
    let sysctls = sysctls(state).ok_or("the sysctls are not in this state")?;
    let value = sysctls.get(name).ok_or(format!("{name} is not in this state"))?;
    value.parse().map_err(|_| format!("{name} = {value} is no number"))
}
