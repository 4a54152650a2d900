//! Dropped INVALID packets, by rule and by owner of the rule, with each owner's remedy.

use super::rules::{Dropping, LIBERAL, by_owner, dropping, first_gate, program};
use crate::checks::kube_proxy::setting;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::owners::component::KUBE_PROXY;
use crate::owners::liveness;
use crate::state::NodeState;
use crate::state::tools::Version;

pub(super) const CHECK: Check = Check {
    id: "invalid.drops",
    title: "packets dropped because conntrack calls them INVALID",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/94861",
};

/// The first kube-proxy that omits its drop rule when conntrack is liberal (kubernetes PR 120412).
pub(super) const TCP_BE_LIBERAL: Version = Version { major: 1, minor: 29, patch: 0 };

/// How many drop rules the evidence shows at most.
const TOP: usize = 10;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.now.rulesets.is_empty() {
        return Verdict::Unknown("the rules are not in this state".into());
    }
    let rules = dropping(facts);
    if !rules.is_empty() && rules.iter().all(|r| r.packets.is_none()) {
        return Verdict::Unknown("the rules were saved without counters (iptables-save -c)".into());
    }
    let counting: Vec<Dropping> =
        rules.iter().filter(|r| r.packets.unwrap_or(0) > 0).cloned().collect();
    if counting.is_empty() {
        return Verdict::Ok(match rules.len() {
            0 => "no rule drops INVALID packets".into(),
            n => format!("none by the {n} rules that would"),
        });
    }
    let mut evidence: Vec<String> = by_owner(&counting, |r| r.packets)
        .into_iter()
        .map(|(owner, packets, n)| format!("{owner}: {packets} packets in {}", rules_of(n)))
        .collect();
    evidence.extend(counting.iter().take(TOP).map(|r| line(facts, r)));
    if counting.len() > TOP {
        evidence.push(format!("and {} with fewer packets", rules_of(counting.len() - TOP)));
    }
    Verdict::Found(Found {
        evidence,
        effect: "packets that come late, by another way than the connection's first ones, or \
                 outside its window are dropped without a word: streams stall until they time out"
            .into(),
        remedy: remedy(facts, &counting),
        fix: Vec::new(),
    })
}

fn rules_of(n: usize) -> String {
    format!("{n} rule{}", if n == 1 { "" } else { "s" })
}

fn line(facts: &Facts<'_>, rule: &Dropping) -> String {
    let packets = rule.packets.unwrap_or(0);
    let rate = match (rule.rise, facts.interval) {
        (Some(rise), Some(time)) => format!(" (+{rise} in {:.0} s)", time.as_secs_f64()),
        (Some(rise), None) => format!(" (+{rise} since the earlier look)"),
        (None, _) => String::new(),
    };
    format!("{packets} packets{rate}, {}", rule.shown())
}

fn remedy(facts: &Facts<'_>, rules: &[Dropping]) -> Vec<String> {
    let owned = |name: &str| rules.iter().any(|r| r.owner == name);
    let mut remedy = Vec::new();
    if owned(KUBE_PROXY) {
        remedy.extend(of_kube_proxy(facts));
    }
    if owned("calico") {
        remedy.extend(of_calico(facts));
    }
    remedy.extend(exception(facts, rules));
    remedy
}

/// The remedy for kube-proxy's drop rule. kube-proxy reads the sysctl `LIBERAL` only once, when
/// kube-proxy starts.
pub(super) fn of_kube_proxy(facts: &Facts<'_>) -> Vec<String> {
    let liberal = facts.now.sysctls().and_then(|s| s.get(LIBERAL).map(|v| v != "0"));
    let set = || {
        format!(
            "sysctl -w {LIBERAL}=1; echo '{LIBERAL} = 1' > /etc/sysctl.d/90-conntrack.conf   \
             # packets outside the window are no longer INVALID"
        )
    };
    let line = "conntrack: {tcpBeLiberal: true}";
    let set_there = setting(facts, line, "--conntrack-tcp-be-liberal");
    let configured = format!("{set_there}; with it kube-proxy leaves its rule out");
    match (facts.running.version, liberal) {
        (Some(v), Some(true)) if v >= TCP_BE_LIBERAL => {
            vec![format!("restart kube-proxy: {LIBERAL} is 1, which it reads at its start")]
        }
        (Some(v), _) if v >= TCP_BE_LIBERAL => vec![configured],
        (Some(v), Some(true)) => {
            vec![format!(
                "kube-proxy {v} writes its rule always; from 1.29 on, not with {LIBERAL}=1"
            )]
        }
        (Some(_), _) => vec![set()],
        (None, _) => vec![format!("from kube-proxy 1.29 on: {configured}"), set()],
    }
}

fn of_calico(facts: &Facts<'_>) -> Vec<String> {
    let setting = felix_setting(facts.now);
    vec![format!("{setting}   # Calico's rules go, in every pod's chains")]
}

/// The command that stops Calico from dropping INVALID packets.
pub(crate) fn felix_setting(state: &NodeState) -> String {
    let canal = state.file("/etc/cni/net.d/10-canal.conflist").is_some();
    let set = if canal { "canal" } else { "calico-node" };
    format!(
        "kubectl -n kube-system set env daemonset/{set} FELIX_DISABLECONNTRACKINVALIDCHECK=true"
    )
}

/// Commands that insert an exception before the first rule of FORWARD that leads to a drop. If that
/// rule is Calico's jump and Calico would move the jump to the top again, the text says so and
/// gives no command.
fn exception(facts: &Facts<'_>, rules: &[Dropping]) -> Vec<String> {
    let calico = facts.catalogue.component("calico");
    let felix = calico.is_some_and(|c| !liveness::liveness(c, facts.now).is_gone());
    let mut remedy = Vec::new();
    for (id, ruleset) in &facts.now.rulesets {
        if !rules.iter().any(|r| r.id == *id && r.table == "filter") {
            continue;
        }
        let Some((position, gate)) = first_gate(ruleset) else { continue };
        let first = gate.target.as_deref().unwrap_or("DROP");
        let number = position + 1;
        if first == "cali-FORWARD" && felix {
            remedy.push(format!(
                "an exception would have to stand before {first} ({id} FORWARD, rule {number}): \
                 there it bypasses every network policy, and felix, which inserts {first} at the \
                 top (ChainInsertMode), moves before it again; so use Calico's own setting"
            ));
            continue;
        }
        remedy.push(format!(
            "{} -I FORWARD {number} -s NETWORK -m conntrack --ctstate INVALID -j ACCEPT   # a \
             narrow exception, for one network, before {first}; `proxyshift guard` keeps it there",
            program(*id)
        ));
    }
    remedy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};

    const CANAL: &str = "canal-stale-flannel-1.20";
    const SAVE: &str = "iptables-nft.save";

    fn found(state: &crate::state::NodeState) -> Found {
        let Verdict::Found(found) = verdict_of(&CHECK, state) else { panic!("not found") };
        found
    }

    #[test]
    fn by_owner_then_by_rule_most_packets_first() {
        let found = found(&node(CANAL));
        let start = |i: usize, text: &str| {
            assert!(found.evidence[i].starts_with(text), "{:?}", found.evidence);
        };
        start(0, "kube-proxy: 773 packets in 1 rule");
        start(1, "calico: 575 packets in 2 rules");
        start(2, "773 packets, iptables-nft.save:55 (kube-proxy): -A KUBE-FORWARD ");
        start(3, "385 packets, iptables-nft.save:67 (calico): -A cali-tw-cali02fca994756 ");
        start(4, "190 packets, ");
        assert_eq!(found.evidence.len(), 5);
    }

    #[test]
    fn the_remedies_are_those_of_the_owners_and_their_versions() {
        let remedy = found(&node(CANAL)).remedy.join("\n");
        // If kube-proxy's version is not known, the remedies for both versions are named.
        assert!(remedy.contains("from kube-proxy 1.29 on: ") && remedy.contains("sysctl -w"));
        assert!(remedy.contains("daemonset/canal FELIX_DISABLECONNTRACKINVALIDCHECK=true"));
        assert!(remedy.contains("before cali-FORWARD (iptables-nft FORWARD, rule 1)"), "{remedy}");
        let version = |v: &str| {
            let state = Node::captured(CANAL).kube_proxy_version(&format!("v{v}")).state();
            found(&state).remedy.join("\n")
        };
        assert!(!version("1.20.2").contains("tcpBeLiberal"));
        assert!(
            version("1.30.5").contains("tcpBeLiberal") && !version("1.30.5").contains("sysctl")
        );
    }

    #[test]
    fn without_calico_an_exception_precedes_kube_proxys_rule() {
        let state = Node::captured("docker-iptables-1.30")
            .replace(
                SAVE,
                "[0:0] -A KUBE-FORWARD -m conntrack",
                "[9:99] -A KUBE-FORWARD -m conntrack",
            )
            .state();
        let remedy = found(&state).remedy.join("\n");
        assert!(remedy.contains("iptables-nft -I FORWARD 2 -s NETWORK"), "{remedy}");
    }

    #[test]
    fn ok_with_nothing_dropped_and_unknown_without_rules_or_counters() {
        let Verdict::Ok(shown) = verdict_of(&CHECK, &node("docker-iptables-1.30")) else {
            panic!("nothing was dropped")
        };
        assert_eq!(shown, "none by the 2 rules that would");
        let ipvs = verdict_of(&CHECK, &node("half-migrated-ipvs-1.20"));
        assert_eq!(ipvs, Verdict::Ok("no rule drops INVALID packets".into()));
        let state = Node::captured(CANAL).remove(SAVE).state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
        let state = Node::captured(CANAL)
            .replace(SAVE, "[773:30920] ", "")
            .replace(SAVE, "[190:7600] ", "")
            .replace(SAVE, "[385:15400] ", "")
            .state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }

    #[test]
    fn the_top_ten_of_many() {
        let more: String =
            (1..=12).map(|n| format!("[{n}:1] -A FORWARD -s 10.0.0.{n}/32 -m conntrack --ctstate INVALID,UNTRACKED -j DROP\n")).collect();
        let first = "[1348:53920] -A FORWARD ";
        let state = Node::captured(CANAL).replace(SAVE, first, &format!("{more}{first}")).state();
        let evidence = found(&state).evidence;
        assert_eq!(evidence.last().expect("evidence"), "and 5 rules with fewer packets");
        assert_eq!(evidence.len(), 3 + TOP + 1);
    }

    #[test]
    fn an_earlier_capture_gives_the_rate() {
        let earlier =
            Node::captured(CANAL).replace(SAVE, "[773:30920] -A KUBE", "[760:1] -A KUBE").state();
        let verdict = given(&node(CANAL)).earlier(&earlier).after(10).verdict(&CHECK);
        let Verdict::Found(found) = verdict else { panic!("not found") };
        assert!(found.evidence[2].starts_with("773 packets (+13 in 10 s), "), "{found:?}");
    }
}
