//! Whether all foreign objects still exist, with rules in the same order.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use similar::{Algorithm, DiffOp, capture_diff_slices};

use crate::owners::catalogue::Catalogue;
use crate::owners::component::KUBE_PROXY;
use crate::owners::matcher::{Ownership, UNKNOWN};
use crate::state::NodeState;
use crate::state::equivalence::canonical;
use crate::state::object::{ObjectId, TableId};
use crate::state::ruleset::{Chain, Ruleset};

/// A foreign object that is gone or changed, or a foreign rule that has another place in the order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingRule {
    /// The object that is gone or was moved.
    pub id: ObjectId,
    /// The component that owns the object.
    pub owner: String,
    /// How soon the owner writes the object again, from the catalogue: `5s`, `never`.
    pub heals: String,
}

impl MissingRule {
    fn new(catalogue: &Catalogue, id: ObjectId, owner: &str) -> MissingRule {
        let heals = catalogue.component(owner).map_or_else(String::new, |c| c.heals.clone());
        MissingRule { id, owner: owner.to_owned(), heals }
    }

    /// Whether the object's owner never writes it again.
    pub fn is_permanent(&self) -> bool {
        self.heals == "never" || self.heals.is_empty()
    }
}

impl fmt::Display for MissingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (of {})", self.id, self.owner)
    }
}

/// The foreign rules, ipsets and virtual servers of `before` that `after` lacks, and foreign rules
/// that `after` has in another order. Foreign means: not kube-proxy's, whose objects come and go in
/// a migration.
pub fn missing_foreign(
    catalogue: &Catalogue,
    before: &NodeState,
    after: &NodeState,
) -> Vec<MissingRule> {
    let (then, now) = (Ownership::of(catalogue, before), Ownership::of(catalogue, after));
    let mut missing = Vec::new();
    for (id, ruleset) in &before.rulesets {
        for table in &ruleset.tables {
            let of = Arc::new(TableId { ruleset: *id, name: table.name.clone() });
            for chain in &table.chains {
                let old = foreign(&then, &of, ruleset, chain);
                let left = after
                    .rulesets
                    .get(id)
                    .and_then(|r| Some((r, r.table(&table.name)?.chain(&chain.name)?)));
                let new = left.map_or_else(Vec::new, |(r, c)| foreign(&now, &of, r, c));
                let gone = not_in(old, &new).into_iter();
                missing.extend(gone.map(|r| MissingRule::new(catalogue, r.id, &r.owner)));
            }
        }
    }
    for set in &before.ipsets.sets {
        let owner = then.set(&set.name).map_or(UNKNOWN, |o| o.name);
        let id = ObjectId::Set { family: set.family, name: set.name.as_str().into() };
        if owner != KUBE_PROXY && !id.present_in(after) {
            missing.push(MissingRule::new(catalogue, id, owner));
        }
    }
    for server in &before.ipvs.servers {
        let owner = then.virtual_server(&server.service).map_or(UNKNOWN, |o| o.name);
        if owner != KUBE_PROXY && after.ipvs.get(&server.service) != Some(server) {
            let id = ObjectId::VirtualServer(server.service);
            missing.push(MissingRule::new(catalogue, id, owner));
        }
    }
    missing.sort();
    missing
}

/// A rule that a component other than kube-proxy owns, with its owner and its normalised text.
struct ForeignRule {
    id: ObjectId,
    canonical: String,
    owner: String,
}

fn foreign(
    owners: &Ownership<'_>,
    table: &Arc<TableId>,
    ruleset: &Ruleset,
    chain: &Chain,
) -> Vec<ForeignRule> {
    let attributions = owners.rule_attributions(table.ruleset, &table.name, &chain.name);
    let rules = (0..).zip(chain.rules.iter().zip(attributions));
    rules
        .filter_map(|(position, (rule, attribution))| {
            let owner = owners.name(*attribution);
            (owner != KUBE_PROXY).then(|| ForeignRule {
                id: ObjectId::Rule {
                    table: Arc::clone(table),
                    chain: chain.name.clone(),
                    position,
                    text: ruleset.shared_text(rule),
                },
                canonical: canonical(ruleset.rule_text(rule)),
                owner: owner.to_owned(),
            })
        })
        .collect()
}

/// The rules of `before` that `after` lacks or has in another order.
fn not_in(before: Vec<ForeignRule>, after: &[ForeignRule]) -> Vec<ForeignRule> {
    let texts = |rules: &[ForeignRule]| -> Vec<String> {
        rules.iter().map(|rule| rule.canonical.clone()).collect()
    };
    let mut kept = BTreeSet::new();
    for op in capture_diff_slices(Algorithm::Myers, &texts(&before), &texts(after)) {
        if let DiffOp::Equal { old_index, len, .. } = op {
            kept.extend(old_index..old_index + len);
        }
    }
    let numbered = before.into_iter().enumerate();
    numbered.filter(|(i, _)| !kept.contains(i)).map(|(_, rule)| rule).collect()
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
    fn text(id: ObjectId) -> String {
        match id {
            ObjectId::Rule { text, .. } => text.to_string(),
            other => other.to_string(),
        }
    }

    const NEW: &str = "-A POSTROUTING -s 172.18.0.0/16 ! -o br-1 -j MASQUERADE";

    #[test]
    fn a_removed_or_moved_rule_is_missing_and_a_new_one_is_not() {
        let catalogue = Catalogue::builtin().unwrap();
        let before = node(&[DOCKER, OPERATOR], "");
        let texts = |rules: &[&str]| -> Vec<String> {
            missing_foreign(&catalogue, &before, &node(rules, ""))
                .into_iter()
                .map(|l| text(l.id))
                .collect()
        };
        assert!(texts(&[NEW, DOCKER, OPERATOR]).is_empty());
        assert_eq!(texts(&[OPERATOR]), [DOCKER]);
        assert_eq!(texts(&[OPERATOR, DOCKER]).len(), 1);
        let gone = missing_foreign(&catalogue, &before, &node(&[OPERATOR], ""));
        assert!(gone[0].owner == "docker" && gone[0].is_permanent(), "{gone:?}");
    }

    #[test]
    fn a_foreign_virtual_server_is_compared_to_the_weight() {
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
