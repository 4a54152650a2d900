//! Requests of the subsystems of nfnetlink that `netlink-bindings` does not know, and the attributes
//! of the replies.

use netlink_bindings::conntrack::Nfgenmsg;
use netlink_bindings::consts::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::ErrorContext;

use super::TableFamily;
use super::socket::{Consistent, Socket};
use crate::error::{Error, Kind, Result};
pub(super) use crate::state::netlink_attributes::Attributes;
use crate::state::netlink_attributes::{NESTED, push};

/// How often a list is asked for while others write.
const TRIES: u32 = 5;

/// A request to a subsystem.
pub(super) struct RawRequest {
    message: u16,
    flags: u16,
    payload: Vec<u8>,
}

impl RawRequest {
    /// A request for all objects, by the number of a message that gets one.
    fn list(message: u16) -> RawRequest {
        RawRequest { message, flags: NLM_F_DUMP as u16, payload: header() }
    }

    /// A request for all objects of one of nf_tables' families.
    pub(super) fn list_of(message: u16, family: TableFamily) -> RawRequest {
        RawRequest { message, flags: NLM_F_DUMP as u16, payload: header_of(family) }
    }

    /// A message of a batch that makes an object of one of nf_tables' families from attributes.
    pub(super) fn with_attributes(
        message: u16,
        flags: i32,
        family: TableFamily,
        attributes: &[u8],
    ) -> RawRequest {
        let payload = [&header_of(family)[..], attributes].concat();
        RawRequest { message, flags: flags as u16, payload }
    }

    /// A request for a new object, by the number of the message that makes one. The kernel refuses
    /// the request if the object is there.
    pub(super) fn create(message: u16) -> RawRequest {
        let flags = (NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK) as u16;
        RawRequest { message, flags, payload: header() }
    }

    /// Sends the request, which the kernel acknowledges. `object` is what errors name.
    pub(super) fn send(&self, object: &str) -> Result<()> {
        Socket::open()?.request(self, object, |_| Ok(())).map(drop)
    }

    /// Adds an attribute.
    pub(super) fn push(&mut self, number: u16, value: &[u8]) -> &mut RawRequest {
        push(&mut self.payload, number, value);
        self
    }

    /// Adds an attribute with a text, which ends with a NUL.
    pub(super) fn push_text(&mut self, number: u16, text: &str) -> &mut RawRequest {
        self.push(number, &[text.as_bytes(), &[0]].concat())
    }

    /// Adds an attribute that holds `attributes`.
    pub(super) fn push_nested(&mut self, number: u16, attributes: &[(u16, u32)]) {
        let mut nested = Vec::new();
        for (number, value) in attributes {
            push(&mut nested, *number, &value.to_be_bytes());
        }
        self.push(number | NESTED, &nested);
    }
}

/// The header of a message of nf_tables.
fn header_of(family: TableFamily) -> Vec<u8> {
    family.header().as_slice().to_vec()
}

/// The header of every other message: AF_UNSPEC, the only version, no resource.
fn header() -> Vec<u8> {
    Nfgenmsg::new().as_slice().to_vec()
}

impl NetlinkRequest for RawRequest {
    fn protocol(&self) -> Protocol {
        Protocol::Raw { protonum: libc::NETLINK_NETFILTER as u16, request_type: self.message }
    }

    fn flags(&self) -> u16 {
        self.flags
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    type ReplyType<'buf> = Vec<u8>;

    fn decode_reply(message: &[u8]) -> Vec<u8> {
        message.to_vec()
    }
}

/// All objects of a subsystem: `read` turns the attributes of one into the object, or into nothing if
/// it is none that a rule can name. `object` is what errors name.
pub(super) fn list<T>(
    message: u16,
    object: &str,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>> {
    let mut socket = Socket::open()?;
    for _ in 0..TRIES {
        let mut found = Vec::new();
        let reply = |reply: Vec<u8>| -> Result<(), ErrorContext> {
            found.extend(reply.get(Nfgenmsg::len()..).and_then(&read));
            Ok(())
        };
        if socket.request(&RawRequest::list(message), object, reply)? == Consistent::Yes {
            return Ok(found);
        }
    }
    Err(Error::new(Kind::Unstable, object, "others keep changing them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_read_and_what_is_cut_off_is_not() {
        let mut request = RawRequest::create(7);
        request.push(2, &7u64.to_be_bytes()).push_text(1, "ab").push_nested(4, &[(3, 9)]);
        let payload = &request.payload()[Nfgenmsg::len()..];
        let all = Attributes(payload);
        assert_eq!((all.u64(2), all.text(1).as_deref(), all.get(9)), (Some(7), Some("ab"), None));
        assert_eq!(Attributes(all.get(4).unwrap()).u32(3), Some(9));
        for cut in 0..payload.len() {
            assert_eq!(Attributes(&payload[..cut]).get(4), None, "{cut}");
        }
        assert_eq!(Attributes(&[0; 8]).next(), None);
    }
}
