//! Accounting objects (nfacct(8)): counters by name, which rules of the match `nfacct` count into.
//! The kernel takes such a rule only if its object is there; kube-proxy makes its own since 1.31.

use std::collections::BTreeSet;

use netlink_bindings::conntrack::Nfgenmsg;
use netlink_bindings::consts::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP};
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::ErrorContext;

use super::socket::{Consistent, Socket};
use crate::error::{Error, Kind, Result};

/// The number of the subsystem (NFNL_SUBSYS_ACCT), and of its messages NFNL_MSG_ACCT_NEW and
/// NFNL_MSG_ACCT_GET (linux/netfilter/nfnetlink_acct.h).
const SUBSYSTEM: u16 = 7 << 8;
const NEW: u16 = SUBSYSTEM;
const GET: u16 = SUBSYSTEM | 1;

/// The attribute with the object's name (NFACCT_NAME), which ends with a NUL.
const NAME: u16 = 1;

/// The length of an attribute's header.
const HEADER: usize = 4;

/// How often a list is asked for while others write.
const TRIES: u32 = 5;

/// Makes the accounting objects `names` that this network namespace lacks.
///
/// # Errors
/// [`Kind::Kernel`] when the kernel has no such objects, or refuses a name.
pub fn make(names: &BTreeSet<String>) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open()?;
    let there = list(&mut socket)?;
    for name in names.iter().filter(|name| !there.contains(*name)) {
        let object = format!("accounting object {name}");
        let request = AccountingRequest::create(name);
        socket.request(&request, &object, |()| Ok(())).map_err(|e| Error {
            hint: Some("rules of the match nfacct need it; `nfacct add` makes one by hand".into()),
            ..e
        })?;
    }
    Ok(())
}

/// The names of the accounting objects of this network namespace.
fn list(socket: &mut Socket) -> Result<BTreeSet<String>> {
    let object = "the accounting objects";
    for _ in 0..TRIES {
        let mut names = BTreeSet::new();
        let reply = |message: Vec<u8>| -> Result<(), ErrorContext> {
            names.extend(name_in(&message));
            Ok(())
        };
        if socket.request(&List, object, reply)? == Consistent::Yes {
            return Ok(names);
        }
    }
    Err(Error::new(Kind::Unstable, object, "others keep changing them"))
}

/// The name in the attributes of a message.
fn name_in(message: &[u8]) -> Option<String> {
    let mut rest = message.get(Nfgenmsg::len()..)?;
    while let Some((header, _)) = rest.split_at_checked(HEADER) {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = rest.get(HEADER..length)?;
        if u16::from_ne_bytes([header[2], header[3]]) == NAME {
            let name = value.split(|byte| *byte == 0).next()?;
            return String::from_utf8(name.to_vec()).ok();
        }
        rest = rest.get(length.next_multiple_of(HEADER)..)?;
    }
    None
}

/// The request for one object.
struct AccountingRequest {
    payload: Vec<u8>,
}

impl AccountingRequest {
    fn create(name: &str) -> AccountingRequest {
        let mut payload = Nfgenmsg::new().as_slice().to_vec();
        // The kernel refuses a name that is too long, whatever the number says.
        let length = u16::try_from(HEADER + name.len() + 1).unwrap_or(u16::MAX);
        payload.extend(length.to_ne_bytes());
        payload.extend(NAME.to_ne_bytes());
        payload.extend(name.as_bytes());
        payload.push(0);
        payload.resize(payload.len().next_multiple_of(HEADER), 0);
        AccountingRequest { payload }
    }
}

impl NetlinkRequest for AccountingRequest {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: libc::NETLINK_NETFILTER as u16, request_type: NEW }
    }

    fn flags(&self) -> u16 {
        (NLM_F_CREATE | NLM_F_ACK) as u16
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    type ReplyType<'buf> = ();

    fn decode_reply(_: &[u8]) {}
}

/// The request for all objects.
struct List;

impl NetlinkRequest for List {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: libc::NETLINK_NETFILTER as u16, request_type: GET }
    }

    fn flags(&self) -> u16 {
        NLM_F_DUMP as u16
    }

    fn payload(&self) -> &[u8] {
        // AF_UNSPEC, the only version, no resource.
        &[0; Nfgenmsg::len()]
    }

    type ReplyType<'buf> = Vec<u8>;

    fn decode_reply(message: &[u8]) -> Vec<u8> {
        message.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_among_the_attributes() {
        let AccountingRequest { payload } = AccountingRequest::create("ab");
        assert_eq!(name_in(&payload).as_deref(), Some("ab"));
        // The packets (NFACCT_PKTS) come first.
        let packets = [12, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let (header, name) = payload.split_at(Nfgenmsg::len());
        assert_eq!(name_in(&[header, &packets, name].concat()).as_deref(), Some("ab"));
        for cut in 0..payload.len() - 3 {
            assert_eq!(name_in(&payload[..cut]), None, "{cut}");
        }
        assert_eq!(name_in(&[header, &[0; 8]].concat()), None);
    }
}
