//! Timeout policies of connection tracking (nfct(8)): how long the kernel remembers a connection in
//! each of its states. A rule of the target CT gives one to the connections that it sees.
//!
//! In a node state they are a line each, as the words after `nfct add timeout`. States and protocols
//! without a name in nfct(8) are their numbers.
//!
//! ```text
//! idle inet tcp syn_sent 120 syn_recv 60 established 7200 …
//! ```

use super::{Family, lines};
use crate::error::Result;

/// A timeout policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeoutPolicy {
    /// The policy's name, which has no blank: iptables-save could not print it.
    pub name: String,
    /// The address family of the connections.
    pub family: Family,
    /// The number of the connections' protocol (IPPROTO_*); 255 for any without a tracker.
    pub protocol: u8,
    /// For each state, by its number in linux/netfilter/nfnetlink_cttimeout.h, the seconds.
    pub timeouts: Vec<(u16, u32)>,
}

/// The number, the name and the states of each protocol, as nfct(8) names them. States are numbered
/// from 1.
const PROTOCOLS: [(u8, &str, &[&str]); 9] = [
    (
        6,
        "tcp",
        &[
            "syn_sent",
            "syn_recv",
            "established",
            "fin_wait",
            "close_wait",
            "last_ack",
            "time_wait",
            "close",
            "syn_sent2",
            "retrans",
            "unacknowledged",
        ],
    ),
    (17, "udp", &["unreplied", "replied"]),
    (1, "icmp", &["timeout"]),
    (58, "icmpv6", &["timeout"]),
    (
        132,
        "sctp",
        &[
            "closed",
            "cookie_wait",
            "cookie_echoed",
            "established",
            "shutdown_sent",
            "shutdown_recd",
            "shutdown_ack_sent",
        ],
    ),
    (136, "udplite", &["unreplied", "replied"]),
    (47, "gre", &["unreplied", "replied"]),
    (33, "dccp", &["request", "respond", "partopen", "open", "closereq", "closing", "timewait"]),
    (255, "generic", &["timeout"]),
];

fn states(protocol: u8) -> &'static [&'static str] {
    PROTOCOLS.iter().find(|(number, ..)| *number == protocol).map_or(&[], |(.., states)| states)
}

impl TimeoutPolicy {
    /// Parses the policies of a node state. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<Vec<TimeoutPolicy>> {
        let policy = |(number, line)| {
            TimeoutPolicy::of_line(line)
                .filter(|policy| policy.line() == line)
                .ok_or_else(|| lines::error(file, number, format!("`{line}` is no such policy")))
        };
        lines::numbered(file, text)?.into_iter().map(policy).collect()
    }

    fn of_line(line: &str) -> Option<TimeoutPolicy> {
        let mut words = line.split(' ');
        let name = words.next().filter(|name| !name.is_empty())?.to_owned();
        let family = match words.next()? {
            "inet" => Family::Ipv4,
            "inet6" => Family::Ipv6,
            _ => return None,
        };
        let word = words.next()?;
        let known = PROTOCOLS.iter().find(|(_, name, _)| *name == word);
        let protocol = known.map_or_else(|| word.parse().ok(), |(number, ..)| Some(*number))?;
        let mut timeouts = Vec::new();
        while let Some(state) = words.next() {
            let at = states(protocol).iter().position(|known| *known == state);
            let state = at.map_or_else(|| state.parse().ok(), |at| u16::try_from(at + 1).ok())?;
            timeouts.push((state, words.next()?.parse().ok()?));
        }
        Some(TimeoutPolicy { name, family, protocol, timeouts })
    }

    /// The lines of `policies`.
    pub fn render(policies: &[TimeoutPolicy]) -> String {
        policies.iter().map(|policy| policy.line() + "\n").collect()
    }

    fn line(&self) -> String {
        format!("{} {}", self.name, self.words())
    }

    /// The words after the policy's name: family, protocol, states with their seconds.
    fn words(&self) -> String {
        let family = match self.family {
            Family::Ipv4 => "inet",
            Family::Ipv6 => "inet6",
        };
        let known = PROTOCOLS.iter().find(|(number, ..)| *number == self.protocol);
        let protocol = known.map_or_else(|| self.protocol.to_string(), |(_, n, _)| (*n).to_owned());
        let mut words = format!("{family} {protocol}");
        for (state, seconds) in &self.timeouts {
            let at = usize::from(*state).checked_sub(1);
            let name = at.and_then(|at| states(self.protocol).get(at));
            let name = name.map_or_else(|| state.to_string(), |name| (*name).to_owned());
            words.push_str(&format!(" {name} {seconds}"));
        }
        words
    }

    /// What the policies are, as comparable lines.
    pub(super) fn facts(policies: &[TimeoutPolicy]) -> Vec<String> {
        policies
            .iter()
            .map(|policy| format!("cttimeout {} {}", policy.name, policy.words()))
            .collect()
    }

    /// The policies that are in both lists and are different. One that is in one list alone is no
    /// difference: a node state has the policies that its rules name, so the rule is. Neither is a
    /// state that only one of them has: each kernel has its own list of states.
    pub fn differences(before: &[TimeoutPolicy], after: &[TimeoutPolicy]) -> Vec<String> {
        let changed = |policy: &TimeoutPolicy| {
            let now = after.iter().find(|other| other.name == policy.name)?;
            (!policy.is_same(now))
                .then(|| format!("~ {}: {} → {}", policy.name, policy.words(), now.words()))
        };
        before.iter().filter_map(changed).collect()
    }

    fn is_same(&self, other: &TimeoutPolicy) -> bool {
        let seconds = |state: u16| other.timeouts.iter().find(|(known, _)| *known == state);
        (self.family, self.protocol) == (other.family, other.protocol)
            && self.timeouts.iter().all(|(state, s)| seconds(*state).is_none_or(|(_, t)| s == t))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pol inet tcp syn_sent 120 established 7200 unacknowledged 300\n\
                        -x inet6 icmpv6 timeout 30\nu inet udp unreplied 5 replied 120 3 7\n\
                        s inet sctp closed 10 8 30\no inet 99 1 5\ng inet generic timeout 600\n";

    #[test]
    fn names_states_and_seconds_survive() {
        let policies = TimeoutPolicy::parse("cttimeout.save", TEXT).unwrap();
        assert_eq!(TimeoutPolicy::render(&policies), TEXT);
        assert_eq!((policies[0].protocol, &policies[0].timeouts[1]), (6, &(3, 7200)));
        assert_eq!((policies[1].family, policies[1].protocol), (Family::Ipv6, 58));
        assert_eq!(policies[3].timeouts, [(1, 10), (8, 30)]);
        assert_eq!(policies[4].protocol, 99);
    }

    #[test]
    fn a_policy_that_changed_is_a_difference() {
        let parse = |text: &str| TimeoutPolicy::parse("f", text).unwrap();
        let before = parse(TEXT);
        assert_eq!(TimeoutPolicy::differences(&before, &before), Vec::<String>::new());
        assert_eq!(TimeoutPolicy::differences(&before, &[]), Vec::<String>::new());
        let more = parse(&TEXT.replace("syn_sent 120 ", "syn_sent 120 syn_recv 60 "));
        assert_eq!(TimeoutPolicy::differences(&before, &more), Vec::<String>::new());
        let after = parse(&TEXT.replace("icmpv6 timeout 30", "icmpv6 timeout 31"));
        let expected = ["~ -x: inet6 icmpv6 timeout 30 → inet6 icmpv6 timeout 31"];
        assert_eq!(TimeoutPolicy::differences(&before, &after), expected);
    }

    #[test]
    fn errors_name_file_line_and_text() {
        for bad in [
            "p",
            "p inet",
            "p ipv4 tcp",
            "p inet tcq",
            "p inet tcp syn_sent",
            "p inet tcp nope 5",
            "p inet tcp close -5",
            " inet tcp",
            "p inet 256",
            "p inet 6 close 5",
            "p inet tcp close 05",
            "p inet tcp 8 5",
            "",
        ] {
            let error = TimeoutPolicy::parse("f", &format!("{TEXT}{bad}\n")).unwrap_err();
            assert_eq!(error.object, "f:7", "{bad}: {error}");
        }
    }
}
