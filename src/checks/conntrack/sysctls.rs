//! Sysctls of connection tracking: whether their values on the node are the right ones.

use crate::checks::kube_proxy::setting;
use crate::checks::sysctls::number;
use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::tools::Version;

const COUNT: &str = "net.netfilter.nf_conntrack_count";
const MAX: &str = "net.netfilter.nf_conntrack_max";

/// The first kube-proxy with the setting conntrack.tcpBeLiberal (kubernetes PR 120412).
const HAS_BE_LIBERAL: Version = Version { major: 1, minor: 29, patch: 0 };

pub(super) const BE_LIBERAL: Check = Check {
    id: "conntrack.be-liberal",
    title: "tcp_be_liberal, as kube-proxy is told and as it is",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate: be_liberal,
    reference: "https://github.com/kubernetes/kubernetes/pull/120412",
};

const LIBERAL: &str = "net.netfilter.nf_conntrack_tcp_be_liberal";

fn be_liberal(facts: &Facts<'_>) -> Verdict {
    let Some(settings) = &facts.settings else {
        return Verdict::Unknown("what kube-proxy is told is not in this state".into());
    };
    let configured = settings.conntrack.tcp_be_liberal;
    let is = match number(facts.now, LIBERAL) {
        Ok(is) => is,
        Err(why) => return Verdict::Unknown(why),
    };
    let shown = format!("conntrack.tcpBeLiberal: {configured}, {LIBERAL} = {is}");
    if !configured || is != 0 {
        return Verdict::Ok(shown);
    }
    let old = facts.running.version.filter(|v| *v < HAS_BE_LIBERAL);
    let why = match old {
        Some(version) => format!("kube-proxy {version} does not know the setting; 1.29 does"),
        None => "kube-proxy sets it when it starts; something has reset it since, or it could not"
            .into(),
    };
    let mut remedy = turn_on(LIBERAL, "90-kube-proxy.conf").to_vec();
    if old.is_none() {
        remedy.push("then restart kube-proxy: it reads it once, when it starts".into());
    }
    Verdict::Found(Found {
        evidence: vec![shown, why],
        effect:
            "packets outside the TCP window are INVALID and dropped, against what was asked for"
                .into(),
        remedy,
        fix: Vec::new(),
    })
}

pub(super) const TABLE_FULL: Check = Check {
    id: "conntrack.table-full",
    title: "the room in the table of connections",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate: table_full,
    reference: "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
};

/// The fill level, in percent, from which the conntrack table counts as nearly full.
const NEARLY: u64 = 80;

/// kube-proxy's default of `conntrack.maxPerCore`.
const PER_CORE: u32 = 32768;

fn table_full(facts: &Facts<'_>) -> Verdict {
    let of = |name| number(facts.now, name);
    let (count, max) = match (of(COUNT), of(MAX)) {
        (Ok(count), Ok(max)) => (count, max),
        (Err(why), _) | (_, Err(why)) => return Verdict::Unknown(why),
    };
    if max == 0 {
        return Verdict::Ok("nf_conntrack_max = 0: the table has no limit".into());
    }
    let percent = count.saturating_mul(100) / max;
    let shown = format!("nf_conntrack_count = {count}, nf_conntrack_max = {max}: {percent} %");
    if percent < NEARLY {
        return Verdict::Ok(shown);
    }
    Verdict::Found(Found {
        evidence: vec![shown],
        effect: "once it is full, the first packet of each new connection is dropped".into(),
        remedy: more_room(facts, max.saturating_mul(2)),
        fix: Vec::new(),
    })
}

/// What gives the table that room, now and for good. As kube-proxy starts, it sets the limit to
/// `maxPerCore` for each core, and to `min` at least; with a `maxPerCore` of 0 it leaves the limit
/// alone and ignores `min` (`getConntrackMax` of cmd/kube-proxy/app/server_linux.go in 1.37.2).
fn more_room(facts: &Facts<'_>, room: u64) -> Vec<String> {
    let mut remedy = vec![format!("sysctl -w {MAX}={room}")];
    let lasting = format!(
        "echo '{MAX} = {room}' > /etc/sysctl.d/90-conntrack-max.conf; echo nf_conntrack > \
         /etc/modules-load.d/conntrack.conf   # loaded before sysctls are set at the boot"
    );
    match facts.settings.as_ref().map(|settings| settings.conntrack.max_per_core) {
        Some(Some(0)) => remedy.extend([
            format!("{lasting}; kube-proxy leaves the limit alone: its maxPerCore is 0"),
            format!(
                "or {}",
                setting(
                    facts,
                    &format!("conntrack: {{maxPerCore: {PER_CORE}, min: {room}}}"),
                    &format!("--conntrack-max-per-core={PER_CORE} --conntrack-min={room}"),
                )
            ),
        ]),
        Some(_) => remedy.push(setting(
            facts,
            &format!("conntrack: {{min: {room}}}"),
            &format!("--conntrack-min={room}"),
        )),
        None => remedy.extend([
            format!("{lasting}; if conntrack.maxPerCore of kube-proxy is 0"),
            format!("or conntrack: {{min: {room}}} in its settings, if maxPerCore is not 0"),
        ]),
    }
    remedy
}

pub(super) const TCP_LOOSE: Check = Check {
    id: "conntrack.tcp-loose",
    title: "tcp_loose, where packets in state INVALID are dropped",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate: tcp_loose,
    reference: "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
};

const LOOSE: &str = "net.netfilter.nf_conntrack_tcp_loose";

fn tcp_loose(facts: &Facts<'_>) -> Verdict {
    let is = match number(facts.now, LOOSE) {
        Ok(is) => is,
        Err(why) => return Verdict::Unknown(why),
    };
    if is != 0 {
        return Verdict::Ok(format!("{LOOSE} = {is}"));
    }
    let Some(rule) = invalid_drop(facts) else {
        return Verdict::Ok(format!("{LOOSE} = 0, but no rule of kube-proxy drops INVALID"));
    };
    let mut evidence = vec![format!("{LOOSE} = 0"), rule];
    if facts.settings.as_ref().is_some_and(|s| s.conntrack.tcp_be_liberal) {
        evidence.push("conntrack.tcpBeLiberal: true does not help: it is for known ones".into());
    }
    Verdict::Found(Found {
        evidence,
        effect: "a TCP connection whose entry was lost, or that comes in by another way than it \
                 goes out, is dropped in its midst"
            .into(),
        remedy: turn_on(LOOSE, "90-tcp-loose.conf").to_vec(),
        fix: Vec::new(),
    })
}

/// kube-proxy's rule that drops INVALID packets, with its file and line.
fn invalid_drop(facts: &Facts<'_>) -> Option<String> {
    facts.now.rulesets.iter().find_map(|(id, ruleset)| {
        let rules = &ruleset.table("filter")?.chain("KUBE-FORWARD")?.rules;
        let rule = rules.iter().find(|rule| {
            let state = ruleset.words(rule).value("--ctstate");
            let invalid =
                state.is_some_and(|(not, s)| !not && s.split(',').any(|s| s == "INVALID"));
            rule.target.as_deref() == Some("DROP") && invalid
        })?;
        Some(format!("{}:{}: {}", id.file(), rule.line, ruleset.rule_text(rule)))
    })
}

/// Commands that set the sysctl `name` to 1, now and at each boot.
fn turn_on(name: &str, file: &str) -> [String; 2] {
    [format!("sysctl -w {name}=1"), format!("echo '{name} = 1' > /etc/sysctl.d/{file}")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};
    use crate::state::NodeState;

    const CONFIG: &str = "files/var/lib/kube-proxy/config.conf";

    fn captured() -> Node {
        Node::captured("docker-iptables-1.30")
    }

    /// A captured node on which a sysctl has `value`, or is absent if `value` is `None`.
    fn with(name: &str, value: Option<&str>) -> NodeState {
        captured().sysctl(name, value).state()
    }

    /// A captured node whose kube-proxy configuration sets `tcpBeLiberal` to `configured`, and on
    /// which the sysctl `LIBERAL` has the value `is`, or is absent if `is` is `None`.
    fn liberal(configured: bool, is: Option<&str>) -> NodeState {
        let config = format!("conntrack: {{tcpBeLiberal: {configured}}}\n");
        captured().put(CONFIG, &config).sysctl(LIBERAL, is).state()
    }

    #[test]
    fn be_liberal_is_found_ok_and_unknown() {
        let Verdict::Found(found) = verdict_of(&BE_LIBERAL, &liberal(true, Some("0"))) else {
            panic!("not found");
        };
        assert!(found.evidence[0].starts_with("conntrack.tcpBeLiberal: true"), "{found:?}");
        for state in [liberal(true, Some("1")), liberal(false, Some("1"))] {
            assert!(matches!(verdict_of(&BE_LIBERAL, &state), Verdict::Ok(_)));
        }
        let without = captured().sysctl(LIBERAL, Some("0")).remove(CONFIG).state();
        for state in [liberal(true, None), without] {
            assert!(matches!(verdict_of(&BE_LIBERAL, &state), Verdict::Unknown(_)));
        }
    }

    #[test]
    fn table_full_is_found_ok_and_unknown() {
        let full = |count| verdict_of(&TABLE_FULL, &with(COUNT, count));
        let Verdict::Found(found) = full(Some("209716")) else { panic!("not found") };
        assert!(found.evidence[0].ends_with("nf_conntrack_max = 262144: 80 %"), "{found:?}");
        assert!(found.remedy[1].contains("nf_conntrack_max = 524288"), "{found:?}");
        assert!(matches!(full(Some("209715")), Verdict::Ok(_)));
        assert!(matches!(full(None), Verdict::Unknown(_)));
        assert!(matches!(verdict_of(&TABLE_FULL, &with(MAX, Some("0"))), Verdict::Ok(_)));
    }

    #[test]
    fn a_limit_that_kube_proxy_leaves_alone_is_set_for_good_by_another() {
        let full = |config: &str| {
            let state = captured().put(CONFIG, config).sysctl(COUNT, Some("209716")).state();
            let Verdict::Found(found) = verdict_of(&TABLE_FULL, &state) else { panic!("found") };
            found.remedy
        };
        let remedy = full("conntrack: {maxPerCore: 0, min: 131072}\n");
        assert!(remedy[1].contains("/etc/sysctl.d/"), "{remedy:?}");
        assert!(remedy[2].contains("maxPerCore: 32768, min: 524288}"), "{remedy:?}");
        let remedy = full("conntrack: {maxPerCore: 1}\n");
        assert!(remedy[1].starts_with("conntrack: {min: 524288}"), "{remedy:?}");
        assert_eq!(remedy.len(), 2);
        let state = captured().remove(CONFIG).sysctl(COUNT, Some("209716")).state();
        let Verdict::Found(found) = verdict_of(&TABLE_FULL, &state) else { panic!("found") };
        assert!(found.remedy[1].contains("/etc/sysctl.d/"), "{found:?}");
    }

    #[test]
    fn tcp_loose_is_found_on_the_node_of_the_incident() {
        let Verdict::Found(found) = verdict_of(&TCP_LOOSE, &node("canal-stale-flannel-1.20"))
        else {
            panic!("not found");
        };
        assert!(
            found.evidence[1].contains("-A KUBE-FORWARD") && found.evidence[1].contains("DROP")
        );
    }

    #[test]
    fn tcp_loose_is_ok_where_it_is_on_or_nothing_drops_and_unknown_without_it() {
        assert!(matches!(verdict_of(&TCP_LOOSE, &with(LOOSE, Some("1"))), Verdict::Ok(_)));
        assert!(matches!(verdict_of(&TCP_LOOSE, &with(LOOSE, None)), Verdict::Unknown(_)));
        let mut state = with(LOOSE, Some("0"));
        assert!(matches!(verdict_of(&TCP_LOOSE, &state), Verdict::Found(_)));
        state.rulesets.clear();
        assert!(matches!(verdict_of(&TCP_LOOSE, &state), Verdict::Ok(_)));
    }
}
