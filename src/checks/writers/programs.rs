//! Programs that write the rules of the whole host: one check for each program. Each time such a
//! program starts, its rules replace all others.

use super::{RulesWriter, active};
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::kube_proxy::Mode;

const WHEN: &str = "always";

const NFTABLES_FLUSH: (&str, &str) = ("/etc/nftables.conf", "flush ruleset");
const NFTABLES_SERVICE: RulesWriter = RulesWriter {
    name: "nftables.service",
    process: None,
    owner: None,
    files: &[NFTABLES_FLUSH],
    units: &["nftables.service"],
    unit_decides: true,
};

pub(super) const FERM: Check = Check {
    id: "writers.ferm",
    title: "ferm, which writes whole tables",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    evaluate: |facts| {
        evaluate(
            facts,
            &RulesWriter {
                name: "ferm",
                process: None,
                owner: None,
                files: &[("/etc/ferm/ferm.conf", "")],
                units: &["ferm.service"],
                unit_decides: false,
            },
            "each run of ferm writes its tables anew: chains of kube-proxy, docker and the CNI \
             that it is not told to preserve are gone",
            &[
                "in /etc/ferm/ferm.conf, for each chain that is not ferm's own, with the names of \
                 the new mode as well: chain (KUBE-SERVICES DOCKER …) @preserve;",
                "until the migration is confirmed: systemctl stop ferm; do not run ferm",
            ],
        )
    },
    reference: "https://github.com/MaxKellermann/ferm/blob/master/doc/ferm.pod",
};

pub(super) const NETFILTER_PERSISTENT: Check = Check {
    id: "writers.netfilter-persistent",
    title: "netfilter-persistent or iptables-services, which load saved rules",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    evaluate: |facts| {
        evaluate(
            facts,
            &RulesWriter {
                name: "netfilter-persistent",
                process: None,
                owner: None,
                files: &[
                    ("/etc/iptables/rules.v4", ""),
                    ("/etc/iptables/rules.v6", ""),
                    ("/etc/sysconfig/iptables", ""),
                    ("/etc/sysconfig/ip6tables", ""),
                ],
                units: &["netfilter-persistent.service", "iptables.service", "ip6tables.service"],
                unit_decides: true,
            },
            "its start, at boot or by hand, replaces every table with the saved one: what docker \
             and the CNI have put in since is gone, and what it saved of old is back",
            &[
                "see writers.boot-files for what it would bring back",
                "do not run `netfilter-persistent save` or `reload` until the migration is confirmed",
            ],
        )
    },
    reference: "https://github.com/k3s-io/k3s/issues/7261",
};

pub(super) const NFTABLES: Check = Check {
    id: "writers.nftables",
    title: "nftables.service, which flushes every table of nf_tables",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    evaluate: |facts| {
        let (path, flush) = NFTABLES_FLUSH;
        let known = facts.live.is_some_and(|a| a.enabled_units.is_some());
        match active(facts, path, flush) {
            // Debian installs /etc/nftables.conf on every node but enables nftables.service, which
            // loads this file, on none. Therefore the file alone proves nothing.
            Some(line) if !known => {
                return Verdict::Unknown(format!("{line}; whether its unit starts is not known"));
            }
            None if NFTABLES_SERVICE.missing(facts).is_none() => {
                return Verdict::Ok(format!("{path} has no `{flush}`"));
            }
            _ => {}
        }
        let effect = if facts.concerns(Mode::Nftables) {
            "each start, reload and stop of it removes every table, also those of iptables-nft and \
             kube-proxy: in nftables mode services stay away until one of them changes, or for up \
             to an hour; what docker put there does not come back by itself"
        } else {
            "each start, reload and stop of it removes every table, also those of iptables-nft and \
             kube-proxy: what docker put there does not come back by itself"
        };
        evaluate(
            facts,
            &NFTABLES_SERVICE,
            effect,
            &[
                "in /etc/nftables.conf: `table inet filter` and `delete table inet filter`, with the \
                 names of its own tables, in place of `flush ruleset`",
                "or, if nothing needs it: systemctl disable nftables",
            ],
        )
    },
    reference: "https://wiki.nftables.org/wiki-nftables/index.php/Scripting",
};

pub(super) const PUPPET: Check = Check {
    id: "writers.puppet",
    title: "puppet, which may purge rules that it does not know",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    evaluate: |facts| {
        evaluate(
            facts,
            &RulesWriter {
                name: "puppet",
                process: Some("puppet"),
                owner: Some("puppet"),
                files: &[],
                units: &["puppet.service"],
                unit_decides: false,
            },
            "with purge, each run of its agent (every 30 minutes) deletes rules that its manifests \
             do not name: those of kube-proxy, docker and the CNI among them",
            &[
                "puppet agent --disable 'kube-proxy migration'   # and --enable afterwards",
                "firewallchain { 'FORWARD:filter:IPv4': purge => true, ignore => ['KUBE-', 'CNI-', \
                 'cali-', 'FLANNEL', 'DOCKER', 'docker0'] }   # so for each chain that is purged",
            ],
        )
    },
    reference: "https://forge.puppet.com/modules/puppetlabs/firewall",
};

pub(super) const SHOREWALL: Check = Check {
    id: "writers.shorewall",
    title: "shorewall, which writes whole tables",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    evaluate: |facts| {
        evaluate(
            facts,
            &RulesWriter {
                name: "shorewall",
                process: None,
                owner: Some("firewall-files"),
                files: &[("/etc/shorewall/shorewall.conf", "STARTUP_ENABLED=Yes")],
                units: &["shorewall.service", "shorewall6.service"],
                unit_decides: false,
            },
            "each `shorewall reload` or `restart` writes its tables anew: chains of kube-proxy and \
             the CNI are gone until their owners notice, docker's for good",
            &[
                "in /etc/shorewall/shorewall.conf: DOCKER=Yes   # keeps docker's chains",
                "do not run `shorewall reload` until the migration is confirmed",
            ],
        )
    },
    reference: "https://shorewall.org/Docker.html",
};

pub(super) const UFW: Check = Check {
    id: "writers.ufw",
    title: "ufw, which sets the policies of the built-in chains",
    severity: Severity::Warn,
    when: WHEN,
    applies: always,
    evaluate: |facts| {
        evaluate(
            facts,
            &RulesWriter {
                name: "ufw",
                process: None,
                owner: Some("ufw"),
                files: &[("/etc/ufw/ufw.conf", "ENABLED=yes")],
                units: &[],
                unit_decides: false,
            },
            "`ufw reload`, `enable` and its start at boot set INPUT and FORWARD to its own \
             policies, DROP by default: traffic of pods and of service addresses is dropped",
            &[
                "in /etc/default/ufw: DEFAULT_FORWARD_POLICY=\"ACCEPT\"",
                "do not run `ufw reload` or `ufw reset` until the migration is confirmed",
            ],
        )
    },
    reference: "https://manpages.ubuntu.com/manpages/noble/en/man8/ufw.8.html",
};

fn evaluate(facts: &Facts<'_>, writer: &RulesWriter, effect: &str, remedy: &[&str]) -> Verdict {
    let traces = writer.traces(facts);
    if traces.is_empty() {
        return match writer.missing(facts) {
            Some(why) => Verdict::Unknown(why),
            None => Verdict::Ok(format!("nothing shows {}", writer.name)),
        };
    }
    Verdict::Found(Found {
        evidence: traces,
        effect: effect.into(),
        remedy: remedy.iter().map(|r| (*r).to_owned()).collect(),
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::checks::testing::{Node, given, node, verdict_of};
    use crate::state::NodeState;
    use crate::state::live_facts::LiveFacts;

    const ALL: [&Check; 6] = [&FERM, &NETFILTER_PERSISTENT, &NFTABLES, &PUPPET, &SHOREWALL, &UFW];

    fn with_file(path: &str, text: &str) -> NodeState {
        Node::captured("docker-iptables-1.30").put_file(path, text).state()
    }

    fn with_unit(check: &Check, state: &NodeState, unit: &str) -> Verdict {
        let units = BTreeSet::from([unit.to_owned()]);
        let live = LiveFacts { enabled_units: Some(units), ..LiveFacts::default() };
        given(state).live(&live).verdict(check)
    }

    #[test]
    fn each_is_ok_on_a_node_without_it_and_unknown_without_a_state() {
        for check in ALL {
            let verdict = verdict_of(check, &node("docker-iptables-1.30"));
            assert!(matches!(verdict, Verdict::Ok(_)), "{}: {verdict:?}", check.id);
            let verdict = verdict_of(check, &NodeState::default());
            assert!(matches!(verdict, Verdict::Unknown(_)), "{}: {verdict:?}", check.id);
        }
    }

    #[test]
    fn each_is_found_by_its_file() {
        for (check, path, text, evidence) in [
            (&FERM, "/etc/ferm/ferm.conf", "table filter {}\n", "ferm.conf is there"),
            (
                &NETFILTER_PERSISTENT,
                "/etc/iptables/rules.v4",
                "*nat\nCOMMIT\n",
                "rules.v4 is there",
            ),
            (
                &SHOREWALL,
                "/etc/shorewall/shorewall.conf",
                "A=1\nSTARTUP_ENABLED=yes\n",
                "/etc/shorewall/shorewall.conf:2: STARTUP_ENABLED=yes",
            ),
            (&UFW, "/etc/ufw/ufw.conf", "# x\nENABLED=yes\n", "/etc/ufw/ufw.conf:2: ENABLED=yes"),
        ] {
            let Verdict::Found(found) = verdict_of(check, &with_file(path, text)) else {
                panic!("{} is not found", check.id);
            };
            assert!(found.evidence[0].contains(evidence), "{found:?}");
        }
        let off = with_file("/etc/ufw/ufw.conf", "ENABLED=no\n");
        assert!(matches!(verdict_of(&UFW, &off), Verdict::Ok(_)));
    }

    #[test]
    fn a_flush_counts_where_its_unit_starts() {
        let state = with_file("/etc/nftables.conf", "#!/usr/sbin/nft -f\n\nflush ruleset\n");
        assert!(matches!(verdict_of(&NFTABLES, &state), Verdict::Unknown(_)));
        assert!(matches!(with_unit(&NFTABLES, &state, "ssh.service"), Verdict::Ok(_)));
        let verdict = with_unit(&NFTABLES, &state, "nftables.service");
        let Verdict::Found(found) = verdict else { panic!("not found") };
        assert_eq!(found.evidence[1], "/etc/nftables.conf:3: flush ruleset");
    }

    #[test]
    fn puppet_is_found_by_its_rules() {
        let text = "*filter\n:INPUT ACCEPT [0:0]\n\
            -A INPUT -p tcp -m comment --comment \"100 allow ssh\" -j ACCEPT\nCOMMIT\n";
        let state =
            Node::captured("docker-iptables-1.30").put("iptables-legacy.save", text).state();
        let Verdict::Found(found) = verdict_of(&PUPPET, &state) else { panic!("not found") };
        assert_eq!(found.evidence, ["its own chains: 0, rules: 1, tables: 0"]);
    }

    #[test]
    fn saved_rules_that_no_unit_loads_do_nothing() {
        let state = with_file("/etc/iptables/rules.v4", "*nat\nCOMMIT\n");
        let check = &NETFILTER_PERSISTENT;
        assert!(matches!(with_unit(check, &state, "ssh.service"), Verdict::Ok(_)));
        let verdict = with_unit(check, &state, "netfilter-persistent.service");
        let Verdict::Found(found) = verdict else { panic!("not found") };
        assert_eq!(found.evidence.len(), 2, "{found:?}");
    }
}
