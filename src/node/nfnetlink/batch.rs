//! Batches: edits that the kernel applies all at once, on the generation they were planned on.

use std::fmt;

use netlink_bindings::consts::{NLM_F_ACK, NLM_F_NONREC};
use netlink_bindings::nftables::{Nfgenmsg, Request};
use rustix::io::Errno;

use super::socket::{Socket, Verdict, append, refused};
use super::{TableFamily, checked_name};
use crate::error::{Error, Kind, Result};
use crate::state::Family;

/// To the kernel zero means "do not compare".
const ANY_GENERATION: u32 = 0;

/// Removals to be applied together, in the order in which they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch<'a> {
    removals: Vec<Removal<'a>>,
}

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Removal<'a> {
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

    /// Deletes one rule; fails if it is not there.
    pub fn delete_rule(&mut self, family: Family, table: &'a str, chain: &'a str, handle: u64) {
        self.removals.push(Removal::Rule { family, table, chain, handle });
    }

    /// Deletes all rules that a chain has when the batch is applied. Fails if there is no such chain.
    /// The kernel finds a rule by walking its chain, so that naming each of 40,000 takes it 6 s.
    pub fn flush_chain(&mut self, family: Family, table: &'a str, chain: &'a str) {
        self.removals.push(Removal::Rules { family, table, chain });
    }

    /// Deletes a chain; fails if it still has rules, or if a rule or map element still jumps to it.
    /// Chains that jump to each other are all emptied first, then deleted.
    pub fn delete_chain(&mut self, family: Family, table: &'a str, chain: &'a str) {
        self.removals.push(Removal::Chain { family, table, chain });
    }

    /// Deletes a table with all that is in it; `family` is nft's name (`ip`, `ip6`, `inet`, …).
    pub fn delete_table(&mut self, family: &'a str, table: &'a str) {
        self.removals.push(Removal::Table { family, table });
    }

    /// The number of removals.
    pub fn len(&self) -> usize {
        self.removals.len()
    }

    /// Nothing is to be removed.
    pub fn is_empty(&self) -> bool {
        self.removals.is_empty()
    }
}

impl fmt::Display for Removal<'_> {
    /// The object that is removed, as nft names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Rule { family, table, chain, handle } => {
                write!(f, "rule with handle {handle} of chain {} {table} {chain}", family.nft())
            }
            Removal::Rules { family, table, chain } => {
                write!(f, "rules of chain {} {table} {chain}", family.nft())
            }
            Removal::Chain { family, table, chain } => {
                write!(f, "chain {} {table} {chain}", family.nft())
            }
            Removal::Table { family, table } => write!(f, "table {family} {table}"),
        }
    }
}

impl Removal<'_> {
    fn append(&self, buffer: &mut Vec<u8>, sequence: u32, flags: i32) -> Result<()> {
        match self {
            Removal::Rule { family, table, chain, handle } => {
                let header = TableFamily::from(*family).header();
                let mut request = Request::new().op_delrule_do(&header);
                request
                    .encode()
                    .push_table_bytes(checked_name(table)?)
                    .push_chain_bytes(checked_name(chain)?)
                    .push_handle(*handle);
                append(buffer, &request, sequence, flags);
            }
            Removal::Rules { family, table, chain } => {
                let header = TableFamily::from(*family).header();
                let mut request = Request::new().op_delrule_do(&header);
                request
                    .encode()
                    .push_table_bytes(checked_name(table)?)
                    .push_chain_bytes(checked_name(chain)?);
                append(buffer, &request, sequence, flags);
            }
            Removal::Chain { family, table, chain } => {
                let header = TableFamily::from(*family).header();
                let mut request = Request::new().op_delchain_do(&header);
                request
                    .encode()
                    .push_table_bytes(checked_name(table)?)
                    .push_name_bytes(checked_name(chain)?);
                // Without NONREC the kernel would delete the chain's rules too, unnamed.
                append(buffer, &request, sequence, flags | NLM_F_NONREC);
            }
            Removal::Table { family, table } => {
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
        // One acknowledgement, of the last removal, says that the commit went through: kernels
        // before 6.10 do not acknowledge the end of a batch, and one for each of tens of
        // thousands would overrun the receive buffer.
        let flags = if index + 1 == count { NLM_F_ACK } else { 0 };
        removal.append(&mut bytes, begin.wrapping_add(index as u32 + 1), flags)?;
    }
    append_frame(&mut bytes, Frame::End, begin.wrapping_add(messages - 1));

    let Verdict { sequence, outcome } = socket.ask_batch(&bytes, begin, messages, &object)?;
    let Err(errno) = outcome else { return Ok(()) };
    if errno == Errno::RESTART {
        let cause = format!("someone else wrote nftables rules after generation {generation}");
        return Err(
            Error::new(Kind::LostRace, object, cause).hint("nothing was changed: plan again")
        );
    }
    // Sequence 0 is the beginning of the batch: what fails there is the commit as a whole.
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

/// Waits until nobody is in the midst of a commit. An empty batch takes the lock under which the
/// kernel commits, and changes nothing, not even the generation.
pub(super) fn await_commit(socket: &mut Socket) -> Result<()> {
    let begin = socket.reserve(2);
    let mut bytes = Vec::new();
    append_frame(&mut bytes, Frame::Begin(ANY_GENERATION), begin);
    append_frame(&mut bytes, Frame::End, begin.wrapping_add(1));
    socket.tell_batch(&bytes, begin, "empty batch")
}

enum Frame {
    Begin(u32),
    End,
}

/// The messages that a batch begins and ends with.
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
