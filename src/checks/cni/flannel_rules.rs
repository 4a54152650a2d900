//! Rules of flannel for a lease or network that flannel no longer has, and second copies of
//! flannel's rules.

use super::{program, shown};
use crate::checks::{Check, Facts, Found, Severity, Verdict};
use crate::owners::liveness::{self, Liveness};
use crate::plan::reason::{FlannelReason, Reason};
use crate::plan::{Action, Object};
use crate::state::object::{ObjectId, ObjectKind};

pub(super) const CHECK: Check = Check {
    id: "cni.flannel-rules",
    title: "rules of flannel's that it no longer uses",
    severity: Severity::Warn,
    when: "flannel runs, or something of it is there",
    applies: concerns_flannel,
    evaluate,
    reference: "https://github.com/flannel-io/flannel/issues/986",
};

const NAME: &str = "flannel";

/// True if flannel's lease file was captured, or the clean-up plan has objects of flannel's.
pub(super) fn concerns_flannel(facts: &Facts<'_>) -> bool {
    facts.now.flannel.is_some() || facts.leftovers().objects.iter().any(|o| &*o.owner == NAME)
}

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let component = facts.catalogue.component(NAME);
    let life = component.map(|c| liveness::liveness(c, facts.now));
    if matches!(life, Some(Liveness::SeemsGone(_) | Liveness::Gone(_))) {
        return Verdict::Ok("flannel does not run: cni.leftovers judges what it left".into());
    }
    let rows = facts.leftovers().objects.iter();
    let rows: Vec<&Object> =
        rows.filter(|o| &*o.owner == NAME && o.kind() == ObjectKind::Rule).collect();
    let (removed, kept): (Vec<&Object>, Vec<&Object>) =
        rows.into_iter().partition(|o| o.action == Action::Remove);
    let suspected: Vec<&Object> =
        kept.iter().filter(|o| o.action == Action::Suspect).copied().collect();
    if removed.is_empty() && suspected.is_empty() {
        let unknown =
            |o: &&&Object| matches!(*o.reason, Reason::Flannel(FlannelReason::LeaseUnknown(_)));
        return match kept.iter().find(unknown) {
            Some(doubt) => Verdict::Unknown(doubt.sentence()),
            None => Verdict::Ok(format!("{} rules, all of its network and lease", kept.len())),
        };
    }
    let state = facts.now;
    let mut remedy = Vec::new();
    for object in &removed {
        if let (ObjectId::Rule { table, text, .. }, false) = (&object.id, is_second_copy(object)) {
            let rule = text.trim_start_matches("-A ");
            remedy.push(format!("{} -t {} -D {rule}", program(table.ruleset), table.name));
        }
    }
    if !removed.is_empty() {
        remedy.push("or: proxyshift cleanup --owner flannel".into());
    }
    if !suspected.is_empty() {
        remedy.push("a suspected rule: ask who wrote it, then delete it by its text".into());
    }
    let fix = facts.removal(|o| &*o.owner == NAME && o.kind() == ObjectKind::Rule);
    Verdict::Found(Found {
        evidence: removed.iter().chain(&suspected).map(|o| shown(state, o)).collect(),
        effect: effect(&removed, &suspected),
        remedy,
        fix,
    })
}

/// True if the object is the second copy of a rule. To delete this rule by its text would delete
/// the first copy instead.
fn is_second_copy(object: &Object) -> bool {
    *object.reason == Reason::Flannel(FlannelReason::SecondCopy)
}

fn effect(removed: &[&Object], suspected: &[&Object]) -> String {
    let returns = |o: &&&Object| o.text().ends_with("-j RETURN") && !is_second_copy(o);
    match removed.iter().chain(suspected).find(returns) {
        Some(_) => "what this node sends to that network (its own clients of services among it) \
                    leaves without the node's own pod address: the answer takes another way, and \
                    the connection times out"
            .into(),
        None => "none while the others stand before them; they change which address packets get \
                 when those are written anew behind them"
            .into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::plan::change::{Change, Direction};

    const CANAL: &str = "canal-stale-flannel-1.20";
    const SAVE: &str = "iptables-nft.save";
    const STALE: &str = "[0:0] -A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN\n";

    #[test]
    fn the_stale_return_of_the_incident() {
        let Verdict::Found(found) = verdict_of(&CHECK, &node(CANAL)) else { panic!("not found") };
        assert_eq!(found.evidence.len(), 1, "{:?}", found.evidence);
        let stale = "-A POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 -j RETURN";
        assert!(found.evidence[0].starts_with(&format!("{SAVE}:206: {stale}: left of its lease ")));
        let delete = "iptables-nft -t nat -D POSTROUTING ! -s 192.168.64.0/20 -d 192.168.66.0/24 \
                      -j RETURN";
        assert_eq!(found.remedy[0], delete);
        let [Change::Objects(fix)] = &found.fix[..] else { panic!("{:?}", found.fix) };
        assert_eq!((fix.direction, fix.objects()), (Direction::Remove, 1));
    }

    #[test]
    fn a_second_copy_is_found() {
        let inside = "[0:0] -A POSTROUTING -s 192.168.64.0/20 -d 192.168.64.0/20 -j RETURN\n";
        let state = Node::captured(CANAL).replace(SAVE, STALE, inside).state();
        let Verdict::Found(found) = verdict_of(&CHECK, &state) else { panic!("not found") };
        assert!(found.evidence[0].ends_with("a second copy of a rule of flannel's"));
        assert!(found.effect.starts_with("none while"), "{}", found.effect);
        assert_eq!(found.remedy, ["or: proxyshift cleanup --owner flannel"]);
    }

    #[test]
    fn ok_without_it_and_unknown_without_the_lease_or_the_rules() {
        let state = Node::captured(CANAL).replace(SAVE, STALE, "").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
        let state = Node::captured(CANAL).remove("files/run/flannel/subnet.env").state();
        let Verdict::Unknown(missing) = verdict_of(&CHECK, &state) else { panic!("known") };
        assert!(missing.contains("subnet.env"), "{missing}");
        let state = Node::captured(CANAL).remove(SAVE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        given(&node("docker-iptables-1.30")).facts(|f| assert!(!(CHECK.applies)(f)));
    }
}
