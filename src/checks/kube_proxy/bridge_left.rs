//! A bridge that a run of proxyshift's loaded, and that nobody deleted: the run's store is lost, or its
//! undo has left it because kube-proxy did not serve.

use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::plan::change::{Change, Direction, Edit, Target, native_table};
use crate::state::Family;
use crate::state::bridge_table::TABLE;

pub(super) const CHECK: Check = Check {
    id: "kube-proxy.bridge-left",
    title: "a bridge that serves in kube-proxy's place",
    severity: Severity::Warn,
    when: "always",
    applies: |_| true,
    evaluate,
    reference: "docs/moves.md",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let is_there = |family: &Family| facts.now.nft.get(family.nft(), TABLE).is_some();
    let left: Vec<&str> =
        Family::ALL.into_iter().filter(is_there).map(|family| family.nft()).collect();
    if left.is_empty() {
        return Verdict::Ok("none is loaded".into());
    }
    let tables = left.iter().map(|family| native_table(family, TABLE, facts.now));
    let edits = tables
        .flatten()
        .map(|table| Edit { direction: Direction::Remove, target: Target::NativeTable(table) });
    Verdict::Found(Found {
        evidence: left.iter().map(|family| format!("nft table {family} {TABLE}")).collect(),
        effect: "what kube-proxy does not serve goes to the endpoints of the time when the bridge \
                 was loaded, until it is deleted"
            .into(),
        remedy: ["proxyshift status   # the run that it belongs to, if that is pending".to_owned()]
            .into_iter()
            .chain(left.iter().map(|family| format!("nft delete table {family} {TABLE}")))
            .collect(),
        fix: edits.map(Change::Objects).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::given;
    use crate::state::NodeState;
    use crate::state::nft::NftTables;

    #[test]
    fn a_bridge_is_found_in_each_family() {
        let mut state = NodeState::default();
        assert!(matches!(given(&state).verdict(&CHECK), Verdict::Ok(_)));
        let text =
            format!(r#"{{"nftables": [{{"table": {{"family": "ip6", "name": "{TABLE}"}}}}]}}"#);
        state.nft = NftTables::parse("nft.json", &text).unwrap();
        let Verdict::Found(found) = given(&state).verdict(&CHECK) else { panic!("nothing") };
        assert_eq!(found.evidence, [format!("nft table ip6 {TABLE}")]);
        assert_eq!(found.remedy.len(), 2);
    }
}
