//! Rules of Kubernetes that always have a condition. One that has lost it means the reverse: it drops,
//! accepts or lets through every packet.
//!
//! iptables-nft before 1.8.8 cannot read the mark that a later one tests, and prints the rule without
//! it (<https://github.com/kubernetes/kubernetes/issues/112477>). A program that then writes what it
//! read puts the rule into the kernel like that.

use super::rule::Words;

/// A rule that always has a condition, and what it does to every packet without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConditionalRule {
    /// The rule's chain.
    pub chain: &'static str,
    /// The rule's target.
    pub target: &'static str,
    /// What the rule does without its condition, as a phrase: `drops every packet`.
    pub effect: &'static str,
}

/// The rules that test a mark, of the kubelet and of kube-proxy.
const RULES: [ConditionalRule; 3] = [
    ConditionalRule {
        chain: "KUBE-FIREWALL",
        target: "DROP",
        effect: "drops everything that reaches it",
    },
    ConditionalRule {
        chain: "KUBE-FORWARD",
        target: "ACCEPT",
        effect: "accepts everything that is forwarded, past every firewall rule behind it",
    },
    ConditionalRule {
        chain: "KUBE-POSTROUTING",
        target: "RETURN",
        effect: "lets everything pass without masquerading",
    },
];

/// Options of a rule that are no condition.
const NO_CONDITION: [&str; 5] = ["-m", "--comment", "-j", "-g", "-c"];

impl ConditionalRule {
    /// The chains that have such rules.
    pub fn chains() -> impl Iterator<Item = &'static str> {
        RULES.iter().map(|rule| rule.chain)
    }

    /// The rule that has lost its condition; none if `text`, from `-A` on, is another rule, or has one.
    pub fn lost_by(text: &str) -> Option<ConditionalRule> {
        let chain = text.strip_prefix("-A ")?.split(' ').next()?;
        let rule = RULES.into_iter().find(|rule| rule.chain == chain)?;
        let words = Words::of_rule(text);
        words.target().filter(|(target, _)| *target == rule.target)?;
        let bare = words.terms().iter().all(|term| NO_CONDITION.contains(&term.option));
        bare.then_some(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_without_any_condition_have_lost_theirs() {
        let comment = r#"-m comment --comment "dropping \" --mark -s marked packets""#;
        for text in [
            format!("-A KUBE-FIREWALL {comment} -j DROP"),
            "-A KUBE-FIREWALL -j DROP".into(),
            "-A KUBE-FIREWALL -m mark -j DROP".into(),
            "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -j ACCEPT".into(),
            "-A KUBE-POSTROUTING -j RETURN".into(),
        ] {
            assert!(ConditionalRule::lost_by(&text).is_some(), "{text}");
        }
        for text in [
            "-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP",
            "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
            "-A KUBE-FIREWALL -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            "-A KUBE-FIREWALL -j KUBE-MARK-DROP",
            "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
            "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-A KUBE-POSTROUTING -m comment --comment x -j MASQUERADE",
            "-A OTHER -j DROP",
            r#"-A OTHER -m comment --comment "-A KUBE-FIREWALL -j DROP" -j DROP"#,
            "",
        ] {
            assert_eq!(ConditionalRule::lost_by(text), None, "{text}");
        }
    }
}
