//! Rules that a program wrote by nftables into the tables of iptables-nft. The program that saves these
//! tables then leaves a table out, or fails: the kernel is asked which chains they are in, and the
//! catalogue whose these are.

use std::collections::BTreeSet;

use super::lossy_save::is_of_native_rules;
use super::nfnetlink::Netfilter;
use super::subsystems::XTABLES;
use crate::error::{Error, Kind, Result};
use crate::owners::catalogue::Catalogue;
use crate::state::{Family, RulesetId};

/// A chain with native rules.
struct NativeChain {
    table: &'static str,
    name: String,
    rules: usize,
}

/// The error of a save that failed or left a table out: with the chains whose rules iptables-nft did
/// not write, if that is why, whose they are, and what their owner can do. Any other error is
/// returned as it is.
pub(super) fn explained(error: Error, id: RulesetId) -> Error {
    if error.kind != Kind::Command && !is_of_native_rules(&error) {
        return error;
    }
    match native_chains(id.family).and_then(|chains| Ok((chains, Catalogue::builtin()?))) {
        Ok((chains, catalogue)) if !chains.is_empty() => {
            explanation(&error, id, &chains, &catalogue)
        }
        _ => error,
    }
}

fn native_chains(family: Family) -> Result<Vec<NativeChain>> {
    let mut netfilter = Netfilter::open()?;
    let mut found = Vec::new();
    for table in XTABLES {
        for chain in netfilter.chains(family, table)? {
            let rules = netfilter.rules(family, table, &chain.name)?;
            let rules = rules.iter().filter(|rule| rule.native).count();
            if rules > 0 {
                found.push(NativeChain { table, name: chain.name, rules });
            }
        }
    }
    Ok(found)
}

fn explanation(
    error: &Error,
    id: RulesetId,
    chains: &[NativeChain],
    catalogue: &Catalogue,
) -> Error {
    let mut remedies = BTreeSet::new();
    let named: Vec<String> = chains
        .iter()
        .map(|NativeChain { table, name, rules }| {
            let owner = catalogue.owner_of_chain(table, name);
            let list = format!(
                "`nft -a list chain {} {table} {name}` shows them: move them into a table of their \
                 own",
                id.family.nft()
            );
            let (whose, remedy) = match owner {
                None => ("of an owner that is not known".to_owned(), list),
                Some(owner) => {
                    let by_iptables = owner.by_iptables.clone().unwrap_or(list);
                    (format!("{}'s", owner.name), format!("{}: {by_iptables}", owner.name))
                }
            };
            remedies.insert(remedy);
            format!("chain {name} of {table} ({whose}, {rules} such rules)")
        })
        .collect();
    let cause = format!(
        "nft wrote rules into tables of iptables-nft, which cannot save them: {} ({})",
        named.join(", "),
        error.cause
    );
    let hint = remedies.into_iter().collect::<Vec<_>>().join("; ");
    Error::new(Kind::LossyCapture, id.file(), cause).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Backend;

    #[test]
    fn chains_are_named_with_their_owner_and_its_remedy() {
        let catalogue = Catalogue::builtin().expect("the catalogue");
        let chain = |table, name: &str| NativeChain { table, name: name.into(), rules: 2 };
        let chains = [chain("filter", "ts-forward"), chain("nat", "MINE")];
        let id = RulesetId { family: Family::Ipv4, backend: Backend::Nft };
        let error = Error::new(Kind::Command, "iptables-nft-save", "exit status: 3");
        let error = explanation(&error, id, &chains, &catalogue);
        assert_eq!(error.kind, Kind::LossyCapture);
        for part in
            ["ts-forward of filter (tailscale's, 2", "MINE of nat (of an owner", "status: 3"]
        {
            assert!(error.cause.contains(part), "{error}");
        }
        let hint = error.hint.expect("a hint");
        for part in ["TS_DEBUG_FIREWALL_MODE=iptables", "nft -a list chain ip nat MINE"] {
            assert!(hint.contains(part), "{hint}");
        }
    }
}
