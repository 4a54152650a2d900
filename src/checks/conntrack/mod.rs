//! Connection tracking: its table, its counters, and its settings.

pub(super) mod be_liberal;
pub(super) mod rising;
pub(super) mod table_full;
pub(super) mod tcp_loose;

use crate::state::NodeState;
use crate::state::sysctl::Sysctls;

/// The sysctls of a state, if they are in it.
fn sysctls(state: &NodeState) -> Option<Sysctls> {
    Sysctls::parse("sysctl.txt", state.files.get("sysctl.txt")?).ok()
}

/// The number that a sysctl of conntrack has, or what was missing to know.
fn value(state: &NodeState, name: &str) -> Result<u64, String> {
    let sysctls = sysctls(state).ok_or("the sysctls are not in this state")?;
    let name = format!("net.netfilter.{name}");
    let value = sysctls.get(&name).ok_or(format!("{name} is not in this state"))?;
    value.parse().map_err(|_| format!("{name} = {value} is no number"))
}

#[cfg(test)]
mod testing {
    use crate::state::NodeState;

    /// A captured node with another value of a sysctl, or without it.
    pub fn with(name: &str, value: Option<&str>) -> NodeState {
        let mut state = super::super::testing::node("docker-iptables-1.30");
        let text = &state.files["sysctl.txt"];
        let prefix = format!("net.netfilter.{name} = ");
        let mut lines: String =
            text.lines().filter(|l| !l.starts_with(&prefix)).map(|l| format!("{l}\n")).collect();
        lines.extend(value.map(|v| format!("{prefix}{v}\n")));
        state.files.insert("sysctl.txt".into(), lines.into());
        state
    }
}
