//! Batches: edits that the kernel applies all at once, on the generation of their plan.

use std::fmt;

use netlink_bindings::consts::{NLM_F_ACK, NLM_F_NONREC};
use netlink_bindings::nftables::{Nfgenmsg, Request};
use rustix::io::Errno;

use super::socket::{BatchReply, Socket, append, refused};
use super::{TableFamily, checked_name};
use crate::error::{Error, Kind, Result};
use crate::state::Family;

/// Zero means "do not compare" to the kernel.
const ANY_GENERATION: u32 = 0;

/// Removals to apply together, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch<'a> {
    removals: Vec<BatchMessage<'a>>,
}

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum BatchMessage<'a> {
    Rule { family: Family, table: &'a str, chain: &'a str, handle: u64 },
    Rules { family: Family, table: &'a str, chain: &'a str },
    Chain { family: Family, table: &'a str, chain: &'a str },
    Table { family: &'a str, table: &'a str },
}

impl<'a> Batch<'a> {
    /// An empty batch.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Deletes one rule; fails if it is missing.
    pub fn delete_rule(&mut self, family: Family, table: &'a str, chain: &'a str, handle: u64) {
        self.removals.push(BatchMessage::Rule { family, table, chain, handle });
    }

    /// Deletes all rules that a chain has when the batch is applied. Fails for a missing chain. The
    /// kernel finds a rule by walking its chain, so naming each of 40,000 takes 6 s.
    pub fn flush_chain(&mut self, family: Family, table: &'a str, chain: &'a str) {
        self.removals.push(BatchMessage::Rules { family, table, chain });
    }

    /// Deletes a chain. Fails if it has rules, or if a rule or map element jumps to it. Chains that
    /// jump to each other must all be emptied first.
    pub fn delete_chain(&mut self, family: Family, table: &'a str, chain: &'a str) {
        self.removals.push(BatchMessage::Chain { family, table, chain });
    }

    /// Deletes a table with its content; `family` is nft's name (`ip`, `ip6`, `inet`, …).
    pub fn delete_table(&mut self, family: &'a str, table: &'a str) {
        self.removals.push(BatchMessage::Table { family, table });
    }

    /// The number of removals.
    pub fn len(&self) -> usize {
        self.removals.len()
    }

    /// True without removals.
    pub fn is_empty(&self) -> bool {
        self.removals.is_empty()
    }
}

impl fmt::Display for BatchMessage<'_> {
    /// The removed object, in nft's words.
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
                // Without NONREC the kernel would also delete the chain's rules, which the batch
                // does not name.
                append(buffer, &request, sequence, flags | NLM_F_NONREC);
            }
            BatchMessage::Table { family, table } => {
                let family = TableFamily::from_name(family)
                    .ok_or_else(|| Error::new(Kind::Kernel, self.to_string(), "unknown family"))?;
                let mut request = Request::new().op_deltable_do(&family.header());
                request.encode().push_name_bytes(checked_name(table)?);
                append(buffer, &request, sequence, flags);
            }
        }
        Ok(())
    }
}

/// Sends `batch`; see [`super::Netfilter::commit`].
pub(super) fn commit(socket: &mut Socket, batch: &Batch<'_>, generation: u32) -> Result<()> {
    let count = batch.removals.len();
    if count == 0 {
        return Ok(());
    }
    let object = format!("batch of {count} removals");
    if generation == ANY_GENERATION {
        return Err(Error::new(Kind::Unexpected, object, "no generation to commit it on"));
    }
    let too_many = |_| Error::new(Kind::Unexpected, object.clone(), "more than a batch can hold");
    let messages = u32::try_from(count + 2).map_err(too_many)?;
    let begin = socket.reserve(messages);

    let mut bytes = Vec::new();
    append_frame(&mut bytes, Frame::Begin(generation), begin);
    for (index, removal) in batch.removals.iter().enumerate() {
        // One acknowledgement, of the last removal, reports the commit. Kernels before 6.10 do not
        // acknowledge the end of a batch, and an acknowledgement for each of tens of thousands
        // would overrun the receive buffer.
        let flags = if index + 1 == count { NLM_F_ACK } else { 0 };
        removal.append(&mut bytes, begin.wrapping_add(index as u32 + 1), flags)?;
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
    // Sequence 0 is the beginning of the batch: its error concerns the whole commit.
    let index = sequence.wrapping_sub(begin).wrapping_sub(1) as usize;
    let object = batch.removals.get(index).map_or(object, |removal| removal.to_string());
    let error = refused(&object, errno);
    Err(match errno {
        Errno::BUSY => Error { kind: Kind::LostRace, ..error }
            .hint("it still has rules, or a rule elsewhere still jumps to it: plan again"),
        Errno::NOENT => Error { kind: Kind::LostRace, ..error }.hint("it is not there: plan again"),
        _ => error,
    })
}

/// Waits until no commit is under way. An empty batch takes the kernel's commit lock, and changes
/// nothing, not even the generation.
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

/// The messages at the beginning and the end of a batch.
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
