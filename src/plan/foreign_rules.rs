//! What is not kube-proxy's: whether all of it is still there, in the same order.

use std::collections::BTreeSet;
use std::fmt;

use similar::{Algorithm, DiffOp, capture_diff_slices};

use crate::owners::catalogue::Catalogue;
use crate::owners::matcher::{Ownership, UNKNOWN};
use crate::state::equivalence::canonical;
use crate::state::ruleset::{Chain, Ruleset};
use crate::state::{NodeState, RulesetId};

/// The component that a migration concerns: what it has comes and goes.
const KUBE_PROXY: &str = "kube-proxy";

/// A rule of somebody else that is gone, or has lost its place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingRule {
    /// `iptables-nft nat`.
    pub place: String,
    /// The rule, from `-A` on.
    pub text: String,
    /// Whose it is.
    pub owner: String,
    /// How soon its owner puts it back by itself, as the catalogue says: `5s`, `never`.
    pub heals: String,
}

impl MissingRule {
    /// Whether nobody puts it back.
    pub fn is_permanent(&self) -> bool {
        self.heals == "never" || self.heals.is_empty()
    }
}

impl fmt::Display for MissingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} (of {})", self.place, self.text, self.owner)
    }
}

/// The rules of others that `before` has and `after` has not, or has in another order.
pub fn missing_foreign(
    catalogue: &Catalogue,
    before: &NodeState,
    after: &NodeState,
) -> Vec<MissingRule> {
    let (then, now) = (Ownership::of(catalogue, before), Ownership::of(catalogue, after));
    let mut lost = Vec::new();
    for (id, ruleset) in &before.rulesets {
        for table in &ruleset.tables {
            for chain in &table.chains {
                let at = Place { id: *id, table: &table.name, chain: &chain.name };
                let theirs = at.foreign(&then, ruleset, chain);
                let left = after
                    .rulesets
                    .get(id)
                    .and_then(|r| Some((r, r.table(&table.name)?.chain(&chain.name)?)));
                let left = left.map_or_else(Vec::new, |(r, c)| at.foreign(&now, r, c));
                lost.extend(at.missing(catalogue, theirs, &left));
            }
        }
    }
    let heals = |owner: &str| heals(catalogue, owner);
    for set in &before.ipsets.sets {
        let owner = then.set(&set.name).map_or(UNKNOWN, |o| o.name);
        if owner != KUBE_PROXY && after.ipsets.get(&set.name).is_none() {
            lost.push(MissingRule {
                place: "ipset".into(),
                text: set.name.clone(),
                owner: owner.into(),
                heals: heals(owner),
            });
        }
    }
    for (place, server) in before.ipvs.servers.iter().enumerate() {
        let owner = then.virtual_server(place).map_or(UNKNOWN, |o| o.name);
        if owner != KUBE_PROXY && after.ipvs.get(&server.service) != Some(server) {
            lost.push(MissingRule {
                place: "ipvs".into(),
                text: server.service.selector(),
                owner: owner.into(),
                heals: heals(owner),
            });
        }
    }
    lost.sort();
    lost
}

fn heals(catalogue: &Catalogue, owner: &str) -> String {
    catalogue.component(owner).map_or_else(String::new, |c| c.heals.clone())
}

/// A rule of somebody else.
struct Theirs<'a> {
    text: &'a str,
    key: String,
    owner: String,
}

struct Place<'a> {
    id: RulesetId,
    table: &'a str,
    chain: &'a str,
}

impl Place<'_> {
    fn foreign<'a>(
        &self,
        owners: &Ownership<'_>,
        ruleset: &'a Ruleset,
        chain: &'a Chain,
    ) -> Vec<Theirs<'a>> {
        let rules = chain.rules.iter().enumerate();
        rules
            .filter_map(|(position, rule)| {
                let owner = owners.rule_attribution(self.id, self.table, self.chain, position);
                let (owner, text) = (owners.name(owner), ruleset.rule_text(rule));
                (owner != KUBE_PROXY).then(|| Theirs {
                    text,
                    key: canonical(text),
                    owner: owner.to_owned(),
                })
            })
            .collect()
    }

    fn missing(
        &self,
        catalogue: &Catalogue,
        before: Vec<Theirs<'_>>,
        after: &[Theirs<'_>],
    ) -> Vec<MissingRule> {
        let old: Vec<&str> = before.iter().map(|t| t.key.as_str()).collect();
        let new: Vec<&str> = after.iter().map(|t| t.key.as_str()).collect();
        let mut kept = BTreeSet::new();
        for op in capture_diff_slices(Algorithm::Myers, &old, &new) {
            if let DiffOp::Equal { old_index, len, .. } = op {
                kept.extend(old_index..old_index + len);
            }
        }
        let gone = before.iter().enumerate().filter(|(i, _)| !kept.contains(i));
        gone.map(|(_, theirs)| MissingRule {
            place: format!("{} {}", self.id, self.table),
            text: theirs.text.to_owned(),
            owner: theirs.owner.clone(),
            heals: heals(catalogue, &theirs.owner),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::state::Files;

    fn node(rules: &[&str], servers: &str) -> NodeState {
        let nat = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{}\nCOMMIT\n", rules.join("\n"));
        let files = [("iptables-nft.save", nat), ("ipvs.save", servers.to_owned())];
        let files: Files = files.into_iter().map(|(n, t)| (n.to_owned(), t.into())).collect();
        NodeState::parse(files).unwrap()
    }

    const DOCKER: &str = "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    const OPERATOR: &str = "-A POSTROUTING -s 10.9.0.0/16 -j SNAT --to-source 192.0.2.1";
    const NEW: &str = "-A POSTROUTING -s 172.18.0.0/16 ! -o br-1 -j MASQUERADE";

    #[test]
    fn a_rule_that_is_gone_or_has_changed_places_is_lost_and_a_new_one_is_not() {
        let catalogue = Catalogue::builtin().unwrap();
        let before = node(&[DOCKER, OPERATOR], "");
        let texts = |rules: &[&str]| -> Vec<String> {
            missing_foreign(&catalogue, &before, &node(rules, ""))
                .into_iter()
                .map(|l| l.text)
                .collect()
        };
        assert!(texts(&[NEW, DOCKER, OPERATOR]).is_empty());
        assert_eq!(texts(&[OPERATOR]), [DOCKER]);
        assert_eq!(texts(&[OPERATOR, DOCKER]).len(), 1);
        let gone = missing_foreign(&catalogue, &before, &node(&[OPERATOR], ""));
        assert!(gone[0].owner == "docker" && gone[0].is_permanent(), "{gone:?}");
    }

    #[test]
    fn a_virtual_server_of_somebody_else_stays_to_the_weight() {
        let catalogue = Catalogue::builtin().unwrap();
        let servers = |weight| {
            format!(
                "-A -t 10.9.0.100:8443 -s wlc\n-a -t 10.9.0.100:8443 -r 10.9.0.1:8443 -g -w {weight}\n"
            )
        };
        let before = node(&[], &servers(3));
        assert!(missing_foreign(&catalogue, &before, &node(&[], &servers(3))).is_empty());
        assert_eq!(missing_foreign(&catalogue, &before, &node(&[], &servers(1))).len(), 1);
        assert_eq!(missing_foreign(&catalogue, &before, &node(&[], "")).len(), 1);
    }
}
