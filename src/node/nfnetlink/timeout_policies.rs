//! Timeout policies of connection tracking in the kernel.

use super::raw::{Attributes, RawRequest, list};
use crate::error::Result;
use crate::state::Family;
use crate::state::timeout_policy::TimeoutPolicy;

/// The number of the subsystem (NFNL_SUBSYS_CTNETLINK_TIMEOUT), and of its messages
/// IPCTNL_MSG_TIMEOUT_NEW and IPCTNL_MSG_TIMEOUT_GET (linux/netfilter/nfnetlink_cttimeout.h).
const SUBSYSTEM: u16 = 8 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;

/// The attributes of a policy (CTA_TIMEOUT_NAME and so on).
const NAME: u16 = 1;
const FAMILY: u16 = 2;
const PROTOCOL: u16 = 3;
const TIMEOUTS: u16 = 4;

/// The timeout policies of this network namespace that a rule can name. To ask loads
/// `nfnetlink_cttimeout`.
///
/// # Errors
/// [`Kind::Kernel`](crate::error::Kind::Kernel) when the kernel has no such policies.
pub fn timeout_policies() -> Result<Vec<TimeoutPolicy>> {
    list(GET, "the timeout policies", policy)
}

fn policy(message: &[u8]) -> Option<TimeoutPolicy> {
    let attributes = Attributes(message);
    let family = u16::from_be_bytes(attributes.get(FAMILY)?.try_into().ok()?);
    let timeouts = Attributes(attributes.get(TIMEOUTS)?);
    let timeout =
        |(state, value): (u16, &[u8])| Some((state, u32::from_be_bytes(value.try_into().ok()?)));
    Some(TimeoutPolicy {
        name: attributes.text(NAME)?,
        family: Family::ALL.into_iter().find(|known| number(*known) == family)?,
        protocol: *attributes.get(PROTOCOL)?.first()?,
        timeouts: timeouts.filter_map(timeout).collect(),
    })
}

/// The kernel's number of an address family (AF_INET, AF_INET6).
fn number(family: Family) -> u16 {
    match family {
        Family::Ipv4 => 2,
        Family::Ipv6 => 10,
    }
}

/// Makes a timeout policy.
///
/// # Errors
/// [`Kind::Kernel`](crate::error::Kind::Kernel) when the kernel has no such policies, or refuses this
/// one.
pub fn create_timeout_policy(policy: &TimeoutPolicy) -> Result<()> {
    let mut request = RawRequest::create(NEW);
    request
        .push_text(NAME, &policy.name)
        .push(FAMILY, &number(policy.family).to_be_bytes())
        .push(PROTOCOL, &[policy.protocol])
        .push_nested(TIMEOUTS, &policy.timeouts);
    request.send(&format!("timeout policy {}", policy.name))
}
