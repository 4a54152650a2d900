//! The sysctls of a state.

use crate::state::NodeState;
use crate::state::sysctl::Sysctls;

/// The sysctls, if the state has them.
pub(super) fn sysctls(state: &NodeState) -> Option<Sysctls> {
    const FILE: &str = "sysctl.txt";
    Sysctls::parse(FILE, state.files.get(FILE)?).ok()
}

/// The number in a sysctl.
pub(super) fn number(state: &NodeState, name: &str) -> Result<u64, String> {
    let sysctls = sysctls(state).ok_or("the sysctls are not in this state")?;
    let value = sysctls.get(name).ok_or(format!("{name} is not in this state"))?;
    value.parse().map_err(|_| format!("{name} = {value} is no number"))
}
