//! The modes of kube-proxy and their names. Everything else about a mode is in `kube_proxy/mode`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// How kube-proxy programs the kernel to serve services.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// DNAT rules of iptables; kube-proxy's default on Linux.
    #[default]
    Iptables,
    /// Virtual servers of ipvs, with a few iptables rules and ipsets.
    Ipvs,
    /// Native nf_tables tables of kube-proxy (1.29 and later).
    Nftables,
    /// A proxy process in user space (up to 1.25).
    Userspace,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 4] = [Mode::Iptables, Mode::Ipvs, Mode::Nftables, Mode::Userspace];

    /// The mode's name in kube-proxy's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Iptables => "iptables",
            Mode::Ipvs => "ipvs",
            Mode::Nftables => "nftables",
            Mode::Userspace => "userspace",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| {
            let cause = format!("kube-proxy has no mode `{name}`");
            Error::new(Kind::Usage, "mode", cause).hint("use iptables, ipvs or nftables")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_one_name_everywhere() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
        assert_eq!("".parse::<Mode>().unwrap_err().kind, Kind::Usage);
    }
}
