//! Reads nf_tables over netlink: its generation, tables, chains and rules. Sends batches that apply
//! only at a given generation.
//!
//! Opening a connection loads the kernel modules `nfnetlink` and `nf_tables`, so open one only
//! where they are already in use. Rules are dumped one chain at a time, because the time to dump
//! the whole ruleset grows with the square of its size.

pub mod accounting;
mod batch;
mod listener;
mod native;
mod raw;
pub(in crate::node) mod socket;
mod table_copy;
pub mod timeout_policies;

use std::ffi::CStr;
use std::fmt;

use netlink_bindings::nftables::{Nfgenmsg, Request};
use netlink_bindings::utils::ErrorContext;

pub use batch::Batch;
pub use listener::{Commit, Commits, Listener};
use socket::Socket;

use crate::error::{Error, Kind, Result};
use crate::state::Family;

/// How often a dump is tried when writes of other programs interrupt it.
const DUMP_TRIES: u32 = 5;

/// The family of an nf_tables table, as the kernel's number. iptables-nft uses only `ip` and `ip6`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableFamily(u8);

/// The families: the kernel's number (NFPROTO_*) and nft's name of each.
const FAMILIES: [(u8, &str); 6] =
    [(1, "inet"), (2, "ip"), (3, "arp"), (5, "netdev"), (7, "bridge"), (10, "ip6")];

impl TableFamily {
    /// The family with nft's name `name`: `ip`, `ip6`, `inet`, `arp`, `bridge` or `netdev`.
    pub fn from_name(name: &str) -> Option<Self> {
        FAMILIES.iter().find(|(_, known)| *known == name).map(|(number, _)| TableFamily(*number))
    }

    /// Like [`TableFamily::from_name`], for a name that must be known.
    ///
    /// # Errors
    /// [`Kind::Kernel`] for another name.
    pub fn named(name: &str) -> Result<Self> {
        TableFamily::from_name(name)
            .ok_or_else(|| Error::new(Kind::Kernel, format!("family {name}"), "is not known"))
    }

    /// The address family of `ip` and `ip6`; none for any other family.
    pub fn address_family(self) -> Option<Family> {
        Family::ALL.into_iter().find(|family| TableFamily::from(*family) == self)
    }

    fn header(self) -> Nfgenmsg {
        Nfgenmsg { nfgen_family: self.0, ..Nfgenmsg::new() }
    }
}

impl From<Family> for TableFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => TableFamily(2),
            Family::Ipv6 => TableFamily(10),
        }
    }
}

impl fmt::Display for TableFamily {
    /// nft's name of the family, or its number if the name is not known here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FAMILIES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "family {}", self.0),
        }
    }
}

/// A table in the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelTable {
    /// Its family.
    pub family: TableFamily,
    /// Its name.
    pub name: String,
    /// The kernel's identifier of the table. It is not reused when the table is deleted.
    pub handle: u64,
}

/// A chain in the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelChain {
    /// Its name.
    pub name: String,
    /// The kernel's identifier of the chain. It is not reused when the chain is deleted.
    pub handle: u64,
    /// Whether the chain is attached to a netfilter hook, as iptables' built-in chains are.
    pub base: bool,
    /// How many uses the kernel counts: the chain's rules, plus the rules and map elements that
    /// jump to it.
    pub use_count: u32,
}

/// A rule in the kernel's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelRule {
    /// The kernel's identifier of the rule. It is not reused when the rule is deleted.
    pub handle: u64,
    /// Whether the rule has a part that iptables-nft 1.8.9 never writes. `iptables-nft-save` may
    /// silently omit such a part.
    pub native: bool,
    /// Whether the rule holds for every packet: it has no match but a comment.
    pub unconditional: bool,
}

/// A netlink connection to nf_tables in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netfilter {
    socket: Socket,
}

impl Netfilter {
    /// Opens the connection and sends a first request. Fails with [`Kind::Permission`] without
    /// CAP_NET_ADMIN, and with [`Kind::Kernel`] if this kernel has no nf_tables.
    pub fn open() -> Result<Self> {
        let mut netfilter = Netfilter { socket: Socket::open()? };
        netfilter.generation()?;
        Ok(netfilter)
    }

    /// The current generation. It changes with every commit to any table of this network namespace.
    pub fn generation(&mut self) -> Result<u32> {
        let request = Request::new().op_getgen_do(&Nfgenmsg::new());
        let mut generation = None;
        self.socket.request(&request, "nftables generation", |(_, attributes)| {
            generation = Some(attributes.get_id()?);
            Ok(())
        })?;
        generation.ok_or_else(|| no_answer("nftables generation"))
    }

    /// The current generation, returned only after the commit that made it is complete. Waiting is
    /// necessary because the kernel raises the generation just before the commit's changes become
    /// visible. If [`Self::commit`] then succeeds at this generation, all that was read in between
    /// was the state at one moment, because the kernel refuses the batch after any other write.
    pub fn settled_generation(&mut self) -> Result<u32> {
        let generation = self.generation()?;
        batch::await_commit(&mut self.socket)?;
        Ok(generation)
    }

    /// All tables of this network namespace, of every family.
    pub fn tables(&mut self) -> Result<Vec<KernelTable>> {
        let request = Request::new().op_gettable_dump(&Nfgenmsg::new());
        self.dump("nftables tables", |socket, tables| {
            socket.request(&request, "nftables tables", |(header, table)| {
                tables.push(KernelTable {
                    family: TableFamily(header.nfgen_family),
                    name: text(table.get_name()?),
                    handle: table.get_handle()?,
                });
                Ok(())
            })
        })
    }

    /// The chains of a table, in the kernel's order; empty if the table does not exist.
    pub fn chains(&mut self, family: Family, table: &str) -> Result<Vec<KernelChain>> {
        let object = format!("chains of table {} {table}", family.nft());
        let mut request = Request::new().op_getchain_dump(&TableFamily::from(family).header());
        request.encode().push_table_bytes(checked_name(table)?);
        self.dump(&object, |socket, chains| {
            socket.request(&request, &object, |(_, chain)| {
                // The kernel ignores the table in the request and dumps the chains of the whole
                // family.
                if chain.get_table()?.to_bytes() == table.as_bytes() {
                    chains.push(KernelChain {
                        name: text(chain.get_name()?),
                        handle: chain.get_handle()?,
                        base: chain.get_hook().is_ok(),
                        use_count: chain.get_use()?,
                    });
                }
                Ok(())
            })
        })
    }

    /// The rules of a chain, in the order of evaluation; empty if the chain does not exist.
    pub fn rules(&mut self, family: Family, table: &str, chain: &str) -> Result<Vec<KernelRule>> {
        let object = format!("rules of chain {} {table} {chain}", family.nft());
        let mut request = Request::new().op_getrule_dump(&TableFamily::from(family).header());
        request
            .encode()
            .push_table_bytes(checked_name(table)?)
            .push_chain_bytes(checked_name(chain)?);
        self.dump(&object, |socket, rules| {
            socket.request(&request, &object, |(_, rule)| {
                rules.push(KernelRule {
                    handle: rule.get_handle()?,
                    native: native::is_native(family, rule),
                    unconditional: native::is_unconditional(rule),
                });
                Ok(())
            })
        })
    }

    /// Applies the whole batch, or nothing of it.
    ///
    /// Fails with [`Kind::LostRace`] if `generation` is not the current one, because another
    /// program wrote. Any other refusal of the kernel is a [`Kind::Kernel`] error that names the
    /// first removal that failed. Nothing is sent for an empty batch.
    pub fn commit(&mut self, batch: &Batch<'_>, generation: u32) -> Result<()> {
        batch::commit(&mut self.socket, batch, generation)
    }

    /// Repeats a dump until no write interrupts it.
    fn dump<T>(
        &mut self,
        object: &str,
        mut request: impl FnMut(&mut Socket, &mut Vec<T>) -> Result<socket::Consistent>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            if request(&mut self.socket, &mut found)? == socket::Consistent::Yes {
                return Ok(found);
            }
        }
        Err(Error::new(
            Kind::LostRace,
            object,
            "someone kept changing the rules while they were read",
        )
        .hint("find the writer with `nft monitor`, and try again when it is quiet"))
    }
}

/// The bytes of a name that nf_tables accepts. Others are an error, because a message would
/// truncate them.
fn checked_name(name: &str) -> Result<&[u8]> {
    // The limit of 255 bytes is NFT_NAME_MAXLEN, which counts the final NUL.
    if name.is_empty() || name.len() > 255 || name.contains('\0') {
        return Err(Error::new(Kind::Kernel, name.escape_debug().to_string(), "no nftables name"));
    }
    Ok(name.as_bytes())
}

/// Decodes a name. To the kernel names are bytes, but our tools can only name those in UTF-8.
fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}

fn no_answer(object: &str) -> Error {
    Error::new(Kind::Kernel, object, "the kernel gave no answer")
}

fn malformed(object: &str, cause: &ErrorContext) -> Error {
    Error::new(Kind::Kernel, object, format!("an answer that cannot be read: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_nfts_names() {
        for name in ["ip", "ip6", "inet", "arp", "bridge", "netdev"] {
            assert_eq!(TableFamily::from_name(name).unwrap().to_string(), name);
        }
        assert_eq!(TableFamily::from_name("ipv4"), None);
        for family in Family::ALL {
            assert_eq!(TableFamily::from(family).to_string(), family.nft());
            assert_eq!(TableFamily::from(family).address_family(), Some(family));
        }
        assert_eq!(TableFamily(1).address_family(), None);
        assert_eq!(TableFamily(99).to_string(), "family 99");
    }

    #[test]
    fn names_that_would_be_cut_short_are_refused() {
        assert_eq!(checked_name("KUBE-SERVICES").unwrap(), b"KUBE-SERVICES");
        for name in ["", "KUBE\0SERVICES", &"x".repeat(256)] {
            assert_eq!(checked_name(name).unwrap_err().kind, Kind::Kernel);
        }
    }
}
