//! A full table drops every new connection.

use super::super::{Check, Facts, Found, Severity, Verdict, always};
use super::value;

pub(in crate::checks) const CHECK: Check = Check {
    id: "conntrack.table-full",
    title: "the room in the table of connections",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    judge,
    reference: "https://docs.kernel.org/networking/nf_conntrack-sysctl.html",
};

/// Percent from which on the table is nearly full.
const NEARLY: u64 = 80;

fn judge(facts: &Facts<'_>) -> Verdict {
    let of = |name| value(facts.now, name);
    let (count, max) = match (of("nf_conntrack_count"), of("nf_conntrack_max")) {
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
    let double = max.saturating_mul(2);
    Verdict::Found(Found {
        evidence: vec![shown],
        effect: "once it is full, the first packet of each new connection is dropped".into(),
        remedy: vec![
            format!("sysctl -w net.netfilter.nf_conntrack_max={double}"),
            // It sets the limit itself when it starts, to at least this.
            format!("kube-proxy's configuration: conntrack: {{min: {double}}}"),
        ],
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::judged;
    use super::super::testing::with;
    use super::*;

    #[test]
    fn found_ok_and_unknown() {
        let verdict = |count| judged(&CHECK, &with("nf_conntrack_count", count));
        let Verdict::Found(found) = verdict(Some("209716")) else { panic!("not found") };
        assert!(found.evidence[0].ends_with("nf_conntrack_max = 262144: 80 %"), "{found:?}");
        assert_eq!(found.remedy[1], "kube-proxy's configuration: conntrack: {min: 524288}");
        assert!(matches!(verdict(Some("209715")), Verdict::Ok(_)));
        assert!(matches!(verdict(None), Verdict::Unknown(_)));
        assert!(matches!(judged(&CHECK, &with("nf_conntrack_max", Some("0"))), Verdict::Ok(_)));
    }
}
