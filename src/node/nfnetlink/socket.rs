//! The netlink socket: sends one request at a time, and reads its replies.
//!
//! `netlink-bindings` encodes and decodes the messages. The socket is our own, because
//! `netlink-socket2` lacks four things: whether a dump was interrupted, the size of the send
//! buffer, a receive timeout, and a choice of the messages in a batch that request an
//! acknowledgement (it requests one for each, which overruns the receive buffer).

use std::os::fd::OwnedFd;
use std::time::Duration;

use netlink_bindings::builtin::Nlmsghdr;
use netlink_bindings::consts::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};
use netlink_bindings::traits::{NetlinkRequest, Protocol};
use netlink_bindings::utils::{ErrorContext, align, parse_i32};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use super::malformed;
use crate::error::{Error, Kind, Result};

/// The receive timeout. The kernel replies while it processes the request, so only an unexpected
/// wait takes this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The size of the receive buffer. The kernel sends at most 32 KiB at a time.
const BUFFER: usize = 64 * 1024;

/// Message types below this belong to netlink itself, not to a subsystem.
const NLMSG_MIN_TYPE: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Whether a dump shows the state at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum Consistent {
    Yes,
    /// Another program wrote during the dump (NLM_F_DUMP_INTR).
    No,
}

/// The kernel's reply to one message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchReply {
    pub(super) sequence: u32,
    pub(super) outcome: Result<(), Errno>,
}

#[derive(Debug)]
pub(in crate::node) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Socket {
    pub(in crate::node) fn open() -> Result<Self> {
        let open = || -> rustix::io::Result<OwnedFd> {
            let fd = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                Some(netlink::NETFILTER),
            )?;
            sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(TIMEOUT))?;
            Ok(fd)
        };
        let fd = open().map_err(|errno| refused("netfilter netlink socket", errno))?;
        Ok(Socket { fd, buffer: vec![0; BUFFER], sequence: 0 })
    }

    /// Opens a socket that receives the events of a multicast group (groups count from 1). Its
    /// receive buffer has `room` bytes for events that are not read yet.
    pub(super) fn subscribed(group: u32, room: usize) -> Result<Self> {
        let socket = Socket::open()?;
        if sockopt::set_socket_recv_buffer_size_force(&socket.fd, room).is_err() {
            // Root of another user namespace may not exceed rmem_max, and gets at most that.
            let _ = sockopt::set_socket_recv_buffer_size(&socket.fd, room);
        }
        rustix::net::bind(&socket.fd, &netlink::SocketAddrNetlink::new(0, 1 << (group - 1)))
            .map_err(|errno| refused("netfilter netlink group", errno))?;
        Ok(socket)
    }

    /// Passes the type and payload of each event received so far to `each`. Returns true if events
    /// were lost.
    pub(super) fn receive_events(&mut self, mut each: impl FnMut(u16, &[u8])) -> bool {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let mut missed = false;
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), flags) {
                Ok((_, length)) if length <= self.buffer.len() => {
                    for message in Messages(&self.buffer[..length]) {
                        each(message.header.r#type, message.payload);
                    }
                }
                Ok(_) | Err(Errno::NOBUFS) => missed = true,
                Err(Errno::INTR) => {}
                Err(_) => return missed,
            }
        }
    }

    /// Reserves `count` consecutive sequence numbers, and returns the first.
    pub(super) fn reserve(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    /// Sends one request and passes each reply to `each`: all replies to a dump, or the one reply
    /// to any other request.
    pub(in crate::node) fn request<R: NetlinkRequest>(
        &mut self,
        request: &R,
        object: &str,
        mut each: impl FnMut(R::ReplyType<'_>) -> Result<(), ErrorContext>,
    ) -> Result<Consistent> {
        let sequence = self.reserve(1);
        let mut message = Vec::new();
        append(&mut message, request, sequence, 0);
        self.send(&message, object)?;

        let dump = i32::from(request.flags()) & NLM_F_DUMP != 0;
        let mut consistent = Consistent::Yes;
        // A dump with an unreadable reply is still read to its end, because until then the kernel
        // starts no other dump on this socket.
        let mut unreadable = None;
        loop {
            let length = self.receive(object)?;
            for answer in Messages(&self.buffer[..length]) {
                if answer.header.seq != sequence {
                    continue;
                }
                if i32::from(answer.header.flags) & NLM_F_DUMP_INTR != 0 {
                    consistent = Consistent::No;
                }
                match answer.header.r#type {
                    NLMSG_ERROR | NLMSG_DONE => {
                        answer.outcome().map_err(|errno| refused(object, errno))?;
                        return unreadable.map_or(Ok(consistent), Err);
                    }
                    own if own < NLMSG_MIN_TYPE => {}
                    _ => {
                        if let Err(cause) = each(R::decode_reply(answer.payload)) {
                            unreadable = Some(malformed(object, &cause));
                        }
                        if !dump {
                            return unreadable.map_or(Ok(consistent), Err);
                        }
                    }
                }
            }
        }
    }

    /// Sends a whole batch of `count` messages at once, and returns the kernel's first reply.
    ///
    /// The first reply shows the result of the whole batch: errors arrive in the order of the
    /// messages, before the acknowledgement of the last one, and a single error means that nothing
    /// was applied. By the time the batch is sent, the kernel has replied.
    pub(super) fn send_batch(
        &mut self,
        batch: &[u8],
        first: u32,
        count: u32,
        object: &str,
    ) -> Result<BatchReply> {
        self.make_room_to_send(batch.len());
        self.send(batch, object)?;
        let verdict = loop {
            let length = self.receive(object)?;
            let verdict = Messages(&self.buffer[..length])
                .filter(|answer| answer.header.r#type == NLMSG_ERROR)
                .find(|answer| answer.header.seq.wrapping_sub(first) < count)
                .map(|answer| BatchReply {
                    sequence: answer.header.seq,
                    outcome: answer.outcome(),
                });
            if let Some(verdict) = verdict {
                break verdict;
            }
        };
        self.drain();
        Ok(verdict)
    }

    /// Sends a batch that requests no acknowledgements. Once the batch is sent, the kernel has
    /// already processed it, and has replied if there was an error.
    pub(super) fn send_quiet_batch(
        &mut self,
        batch: &[u8],
        first: u32,
        object: &str,
    ) -> Result<()> {
        self.send(batch, object)?;
        let mut outcome = Ok(());
        let flags = RecvFlags::DONTWAIT;
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), flags) {
                Ok((length, _)) => {
                    for answer in Messages(&self.buffer[..length]) {
                        let ours = answer.header.seq.wrapping_sub(first) < 2;
                        if ours && answer.header.r#type == NLMSG_ERROR {
                            outcome = outcome.and(answer.outcome());
                        }
                    }
                }
                Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(_) => return outcome.map_err(|errno| refused(object, errno)),
            }
        }
    }

    /// Enlarges the send buffer, because a batch must fit into it as a whole. Root of the initial
    /// user namespace may exceed net.core.wmem_max (SO_SNDBUFFORCE). Root of another user namespace
    /// gets at most wmem_max. (If such a root runs `nft`, `nft` stays at wmem_default and fails.)
    fn make_room_to_send(&self, bytes: usize) {
        // The kernel uses some of the buffer itself, and doubles the requested size.
        let wanted = bytes + 4096;
        if sockopt::set_socket_send_buffer_size_force(&self.fd, wanted).is_err() {
            // If the buffer is still too small, sending the batch fails with EMSGSIZE.
            let _ = sockopt::set_socket_send_buffer_size(&self.fd, wanted);
        }
    }

    fn send(&self, message: &[u8], object: &str) -> Result<()> {
        match rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, message, SendFlags::empty()))
        {
            Ok(sent) if sent == message.len() => Ok(()),
            Ok(_) => Err(Error::new(Kind::Kernel, object, "the kernel took only a part of it")),
            Err(Errno::MSGSIZE) => Err(Error::new(
                Kind::Kernel,
                object,
                format!("{} bytes are more than the kernel takes at once", message.len()),
            )
            .hint(format!(
                "run as root, or raise the limit on the host: sysctl -w net.core.wmem_max={}",
                message.len()
            ))),
            Err(errno) => Err(refused(object, errno)),
        }
    }

    fn receive(&mut self, object: &str) -> Result<usize> {
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), RecvFlags::TRUNC) {
                Ok((_, length)) if length <= self.buffer.len() => return Ok(length),
                Ok((_, length)) => {
                    let cause = format!("an answer of {length} bytes, more than the kernel sends");
                    return Err(Error::new(Kind::Kernel, object, cause));
                }
                // ENOBUFS only means that later replies were lost; those before are complete.
                Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(Errno::AGAIN) => return Err(super::no_answer(object)),
                Err(errno) => return Err(refused(object, errno)),
            }
        }
    }

    /// Discards the remaining replies to a batch, so that they do not fill the receive buffer.
    fn drain(&mut self) {
        let flags = RecvFlags::DONTWAIT;
        loop {
            match rustix::net::recv(&self.fd, self.buffer.as_mut_slice(), flags) {
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(_) => return,
            }
        }
    }
}

/// Appends `request` to `buffer` as a netlink message with its header.
pub(super) fn append<R: NetlinkRequest>(
    buffer: &mut Vec<u8>,
    request: &R,
    sequence: u32,
    flags: i32,
) {
    let request_type = match request.protocol() {
        Protocol::Raw { request_type, .. } => request_type,
        // This does not occur, because nf_tables is no generic netlink family. If it did, the
        // kernel would ignore the message, because type 1 is a NOOP.
        Protocol::Generic(_) => 1,
    };
    let start = buffer.len();
    buffer.extend_from_slice(Nlmsghdr::new().as_slice());
    buffer.extend_from_slice(request.payload());
    align(buffer);
    let header = Nlmsghdr {
        // The length fits: a message is a few hundred bytes long, because names have at most 255.
        len: (buffer.len() - start) as u32,
        r#type: request_type,
        flags: request.flags() | (NLM_F_REQUEST | flags) as u16,
        seq: sequence,
        pid: 0,
    };
    buffer[start..start + Nlmsghdr::len()].copy_from_slice(header.as_slice());
}

/// The error for a request about `object` that the kernel refused with `errno`.
pub(super) fn refused(object: &str, errno: Errno) -> Error {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            Error::new(Kind::Permission, object, errno).hint("run as root")
        }
        _ => Error::new(Kind::Kernel, object, errno),
    }
}

struct NetlinkMessage<'a> {
    header: Nlmsghdr,
    payload: &'a [u8],
}

impl NetlinkMessage<'_> {
    /// The error number at the beginning of an NLMSG_ERROR or NLMSG_DONE message. Zero means
    /// success.
    fn outcome(&self) -> Result<(), Errno> {
        match parse_i32(self.payload) {
            Some(0) => Ok(()),
            Some(number) => Err(Errno::from_raw_os_error(number.saturating_neg())),
            None => Err(Errno::BADMSG),
        }
    }
}

/// Iterates over the netlink messages in the received bytes.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = NetlinkMessage<'a>;

    fn next(&mut self) -> Option<NetlinkMessage<'a>> {
        let header = Nlmsghdr::new_from_slice(self.0.get(..Nlmsghdr::len())?)?;
        let length = header.len as usize;
        let payload = self.0.get(Nlmsghdr::len()..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(NetlinkMessage { header, payload })
    }
}
