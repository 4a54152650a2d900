//! Requests of the subsystems of nfnetlink that `netlink-bindings` does not know, and the attributes
//! of the replies.

use netlink_bindings::conntrack::Nfgenmsg;
use netlink_bindings::consts::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::ErrorContext;

use super::socket::{Consistent, Socket};
use crate::error::{Error, Kind, Result};

/// The length of an attribute's header.
const HEADER: usize = 4;

/// The flag of an attribute that holds attributes (NLA_F_NESTED).
const NESTED: u16 = 1 << 15;

/// The bits of an attribute's type that are its number (NLA_TYPE_MASK).
const NUMBER: u16 = !(NESTED | 1 << 14);

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

/// The header of every message: AF_UNSPEC, the only version, no resource.
fn header() -> Vec<u8> {
    Nfgenmsg::new().as_slice().to_vec()
}

fn push(payload: &mut Vec<u8>, number: u16, value: &[u8]) {
    // The kernel refuses a value that is too long, whatever the number says.
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    payload.extend(length.to_ne_bytes());
    payload.extend(number.to_ne_bytes());
    payload.extend(value);
    payload.resize(payload.len().next_multiple_of(HEADER), 0);
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

/// The attributes in the bytes of a message, each with its number.
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.0.split_at_checked(HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = self.0.get(HEADER..length)?;
        self.0 = self.0.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & NUMBER, value))
    }
}

impl<'a> Attributes<'a> {
    /// The value of the attribute `number`.
    pub(super) fn get(&self, number: u16) -> Option<&'a [u8]> {
        Attributes(self.0).find(|(other, _)| *other == number).map(|(_, value)| value)
    }

    /// The value of the attribute `number`, a text up to a NUL. None if it is not in UTF-8.
    pub(super) fn text(&self, number: u16) -> Option<String> {
        let value = self.get(number)?.split(|byte| *byte == 0).next()?;
        String::from_utf8(value.to_vec()).ok()
    }

    /// The value of the attribute `number`, a number of 32 bits.
    pub(super) fn u32(&self, number: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(number)?.try_into().ok()?))
    }

    /// The value of the attribute `number`, a number of 64 bits.
    pub(super) fn u64(&self, number: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(number)?.try_into().ok()?))
    }
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
