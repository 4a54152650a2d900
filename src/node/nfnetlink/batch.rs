//! Batches of nf_tables removals and additions, which the kernel applies all or none, and only at a
//! given generation.

use std::fmt;

use netlink_bindings::consts::{NLM_F_ACK, NLM_F_NONREC};
use netlink_bindings::nftables::{Nfgenmsg, Request};
use rustix::io::Errno;

use super::socket::{BatchReply, Socket, append, refused};
use super::table_copy::new_part;
use super::{TableFamily, checked_name};
use crate::error::{Error, Kind, Result};
use crate::state::Family;
use crate::state::nft_messages::{MessageKind, TableMessage};

/// The generation 0, which tells the kernel not to compare generations.
const ANY_GENERATION: u32 = 0;

/// Removals and additions that are applied together, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch<'a> {
    messages: Vec<BatchMessage<'a>>,
}

/// One removal or addition, which is one netlink message.
#[derive(Debug, Clone, PartialEq, Eq)]
enum BatchMessage<'a> {
    Rule { family: Family, table: &'a str, chain: &'a str, handle: u64 },
    Rules { family: Family, table: &'a str, chain: &'a str },
    Chain { family: Family, table: &'a str, chain: &'a str },
    Table { family: &'a str, table: &'a str },
    New { family: &'a str, table: &'a str, message: &'a TableMessage },
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Deletes one rule; the batch fails if the rule is missing.
    pub fn delete_rule(&mut self, family: Family, table: &'a str, chain: &'a str, handle: u64) {
        self.messages.push(BatchMessage::Rule { family, table, chain, handle });
    }

    /// Deletes all rules that a chain has at the moment when the batch is applied. The batch fails
    /// if the chain is missing. Faster than [`Self::delete_rule`] for each rule: the kernel walks
    /// the chain to find a rule, so naming each of 40,000 rules takes 6 s.
    pub fn flush_chain(&mut self, family: Family, table: &'a str, chain: &'a str) {
        self.messages.push(BatchMessage::Rules { family, table, chain });
    }

    /// Deletes a chain. The batch fails if the chain has rules, or if a rule or map element jumps
    /// to it. Chains that jump to each other must therefore all be emptied first.
    pub fn delete_chain(&mut self, family: Family, table: &'a str, chain: &'a str) {
        self.messages.push(BatchMessage::Chain { family, table, chain });
    }

    /// Deletes a table with all that it holds. `family` is nft's name of the table's family (`ip`,
    /// `ip6`, `inet`, …).
    pub fn delete_table(&mut self, family: &'a str, table: &'a str) {
        self.messages.push(BatchMessage::Table { family, table });
    }

    /// Makes a part of a table, in the order of its messages. The batch fails if the table is there.
    pub fn make(&mut self, family: &'a str, table: &'a str, message: &'a TableMessage) {
        self.messages.push(BatchMessage::New { family, table, message });
    }

    /// The number of messages in the batch.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// True if the batch has no messages.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl fmt::Display for BatchMessage<'_> {
    /// Names the object to remove as nft does: family, table, chain, and handle.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BatchMessage::Rule { family, table, chain, handle } => {
                write!(f, "rule with handle {handle} of chain {} {table} {chain}", family.nft())
            }
            BatchMessage::Rules { family, table, chain } => {
                write!(f, "rules of chain {} {table} {chain}", family.nft())
            }
            BatchMessage::Chain { family, table, chain } => {
                write!(f, "chain {} {table} {chain}", family.nft())
            }
            BatchMessage::Table { family, table } => write!(f, "table {family} {table}"),
            BatchMessage::New { family, table, message } if message.kind != MessageKind::Table => {
                write!(f, "{} of table {family} {table}", message.kind.name())
            }
            BatchMessage::New { family, table, .. } => write!(f, "new table {family} {table}"),
        }
    }
}

impl BatchMessage<'_> {
    fn append(&self, buffer: &mut Vec<u8>, sequence: u32, flags: i32) -> Result<()> {
        match self {
            BatchMessage::Rule { family, table, chain, handle } => {
                let header = TableFamily::from(*family).header();
                let mut request = Request::new().op_delrule_do(&header);
                request
                    .encode()
                    .push_table_bytes(checked_name(table)?)
                    .push_chain_bytes(checked_name(chain)?)
                    .push_handle(*handle);
                append(buffer, &request, sequence, flags);
            }
            BatchMessage::Rules { family, table, chain } => {
                let header = TableFamily::from(*family).header();
                let mut request = Request::new().op_delrule_do(&header);
                request
                    .encode()
                    .push_table_bytes(checked_name(table)?)
                    .push_chain_bytes(checked_name(chain)?);
                append(buffer, &request, sequence, flags);
            }
            BatchMessage::Chain { family, table, chain } => {
                let header = TableFamily::from(*family).header();
                let mut request = Request::new().op_delchain_do(&header);
                request
                    .encode()
                    .push_table_bytes(checked_name(table)?)
                    .push_name_bytes(checked_name(chain)?);
                // With NONREC the kernel refuses to delete a chain that still has rules. Otherwise
                // it would delete rules that the batch does not name.
                append(buffer, &request, sequence, flags | NLM_F_NONREC);
            }
            BatchMessage::Table { family, table } => {
                let family = TableFamily::named(family)
                    .map_err(|e| Error { object: self.to_string(), ..e })?;
                let mut request = Request::new().op_deltable_do(&family.header());
                request.encode().push_name_bytes(checked_name(table)?);
                append(buffer, &request, sequence, flags);
            }
            BatchMessage::New { family, message, .. } => {
                let family = TableFamily::named(family)
                    .map_err(|e| Error { object: self.to_string(), ..e })?;
                append(buffer, &new_part(family, message, sequence), sequence, flags);
            }
        }
        Ok(())
    }
}

/// Sends `batch` to be applied at `generation`; see [`super::Netfilter::commit`].
pub(super) fn commit(socket: &mut Socket, batch: &Batch<'_>, generation: u32) -> Result<()> {
    let count = batch.messages.len();
    if count == 0 {
        return Ok(());
    }
    let object = format!("batch of {count} messages");
    if generation == ANY_GENERATION {
        return Err(Error::new(Kind::Unexpected, object, "no generation to commit it on"));
    }
    let too_many = |_| Error::new(Kind::Unexpected, object.clone(), "more than a batch can hold");
    let messages = u32::try_from(count + 2).map_err(too_many)?;
    let begin = socket.reserve(messages);

    let mut bytes = Vec::new();
    append_frame(&mut bytes, Frame::Begin(generation), begin);
    for (index, message) in batch.messages.iter().enumerate() {
        // Only the last message requests an acknowledgement, which reports the whole commit. If
        // every message requested one, tens of thousands of acknowledgements would overrun the
        // receive buffer. The message that ends the batch cannot request it, because kernels before
        // 6.10 do not acknowledge that message.
        let flags = if index + 1 == count { NLM_F_ACK } else { 0 };
        message.append(&mut bytes, begin.wrapping_add(index as u32 + 1), flags)?;
    }
    append_frame(&mut bytes, Frame::End, begin.wrapping_add(messages - 1));

    let BatchReply { sequence, outcome } = socket.send_batch(&bytes, begin, messages, &object)?;
    let Err(errno) = outcome else { return Ok(()) };
    if errno == Errno::RESTART {
        let cause = format!("someone else wrote nftables rules after generation {generation}");
        return Err(
            Error::new(Kind::LostRace, object, cause).hint("nothing was changed: plan again")
        );
    }
    // An error with the first sequence number concerns the beginning of the batch, and so the whole
    // commit.
    let index = sequence.wrapping_sub(begin).wrapping_sub(1) as usize;
    let object = batch.messages.get(index).map_or(object, |message| message.to_string());
    let error = refused(&object, errno);
    Err(match errno {
        Errno::BUSY => Error { kind: Kind::LostRace, ..error }
            .hint("it still has rules, or a rule elsewhere still jumps to it: plan again"),
        Errno::EXIST => {
            Error { kind: Kind::LostRace, ..error }.hint("someone made it meanwhile: plan again")
        }
        Errno::NOENT => Error { kind: Kind::LostRace, ..error }.hint("it is not there: plan again"),
        _ => error,
    })
}

/// Waits until the kernel is not in the middle of a commit. To do so, sends an empty batch, for
/// which the kernel takes its commit lock but changes nothing, not even the generation.
pub(super) fn await_commit(socket: &mut Socket) -> Result<()> {
    let begin = socket.reserve(2);
    let mut bytes = Vec::new();
    append_frame(&mut bytes, Frame::Begin(ANY_GENERATION), begin);
    append_frame(&mut bytes, Frame::End, begin.wrapping_add(1));
    socket.send_quiet_batch(&bytes, begin, "empty batch")
}

enum Frame {
    Begin(u32),
    End,
}

/// Appends the message that begins or ends a batch.
fn append_frame(buffer: &mut Vec<u8>, frame: Frame, sequence: u32) {
    let mut header = Nfgenmsg::new();
    header.set_res_id(10); // NFNL_SUBSYS_NFTABLES
    match frame {
        Frame::Begin(generation) => {
            let mut request = Request::new().op_batch_begin_do(&header);
            request.encode().push_genid(generation);
            append(buffer, &request, sequence, 0);
        }
        Frame::End => append(buffer, &Request::new().op_batch_end_do(&header), sequence, 0),
    }
}
