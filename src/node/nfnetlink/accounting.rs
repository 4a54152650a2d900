//! Accounting objects in the kernel.

use super::raw::{Attributes, RawRequest, list};
use crate::error::Result;
use crate::state::accounting::{AccountingObject, Quota};

/// The number of the subsystem (NFNL_SUBSYS_ACCT), and of its messages NFNL_MSG_ACCT_NEW and
/// NFNL_MSG_ACCT_GET (linux/netfilter/nfnetlink_acct.h).
const SUBSYSTEM: u16 = 7 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;

/// The attributes of an object (NFACCT_NAME and so on).
const NAME: u16 = 1;
const PACKETS: u16 = 2;
const BYTES: u16 = 3;
const FLAGS: u16 = 5;
const QUOTA: u16 = 6;

/// The flags that say of what the quota is (NFACCT_F_QUOTA_PKTS, NFACCT_F_QUOTA_BYTES).
const OF_PACKETS: u32 = 1;
const OF_BYTES: u32 = 2;

/// The accounting objects of this network namespace. To ask loads `nfnetlink_acct`.
///
/// # Errors
/// [`Kind::Kernel`](crate::error::Kind::Kernel) when the kernel has no such objects.
pub fn accounting_objects() -> Result<Vec<AccountingObject>> {
    list(GET, "the accounting objects", object)
}

fn object(message: &[u8]) -> Option<AccountingObject> {
    let attributes = Attributes(message);
    let quota = attributes.u64(QUOTA);
    let flags = attributes.u32(FLAGS).unwrap_or_default();
    Some(AccountingObject {
        name: attributes.text(NAME)?,
        quota: match quota {
            Some(quota) if flags & OF_PACKETS != 0 => Some(Quota::Packets(quota)),
            Some(quota) if flags & OF_BYTES != 0 => Some(Quota::Bytes(quota)),
            _ => None,
        },
        packets: attributes.u64(PACKETS)?,
        bytes: attributes.u64(BYTES)?,
    })
}

/// Makes an accounting object with its quota and counters.
///
/// # Errors
/// [`Kind::Kernel`](crate::error::Kind::Kernel) when the kernel has no such objects, or refuses this
/// one.
pub fn create_accounting_object(object: &AccountingObject) -> Result<()> {
    let mut request = RawRequest::create(NEW);
    request
        .push_text(NAME, &object.name)
        .push(PACKETS, &object.packets.to_be_bytes())
        .push(BYTES, &object.bytes.to_be_bytes());
    let quota = object.quota.map(|quota| match quota {
        Quota::Packets(quota) => (OF_PACKETS, quota),
        Quota::Bytes(quota) => (OF_BYTES, quota),
    });
    if let Some((flags, quota)) = quota {
        request.push(FLAGS, &flags.to_be_bytes()).push(QUOTA, &quota.to_be_bytes());
    }
    request.send(&format!("accounting object {}", object.name))
}
