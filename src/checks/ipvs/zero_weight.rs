//! Real servers at weight 0 to which old connections still lead.

use super::{has_servers, is_kube_proxys, listing, urgency};
use crate::checks::{Check, Facts, Found, Severity, Verdict};

pub(super) const CHECK: Check = Check {
    id: "ipvs.zero-weight",
    title: "real servers at weight 0 that still have connections",
    severity: Severity::Warn,
    when: "there are virtual servers",
    applies: has_servers,
    evaluate,
    reference: "https://github.com/kubernetes/kubernetes/issues/76664",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(listing) = listing(facts) else {
        return Verdict::Unknown("ipvs.list, with the connections, is not in this state".into());
    };
    let mut found: Vec<_> =
        listing.draining().filter(|(service, _)| is_kube_proxys(facts, service)).collect();
    if found.is_empty() {
        return Verdict::Ok("every real server with connections has a weight".into());
    }
    found.sort_by_key(|(service, real)| (urgency(service), **service, real.address));
    let evidence = found.iter().map(|(service, real)| {
        format!(
            "{service} -> {}: weight 0, {} active, {} inactive",
            real.address, real.active, real.inactive
        )
    });
    let udp = found.iter().any(|(service, _)| urgency(service) < 2);
    let dns = found.iter().any(|(service, _)| urgency(service) == 0);
    let mut remedy: Vec<String> = found
        .iter()
        .map(|(service, real)| format!("ipvsadm -d {} -r {}", service.selector(), real.address))
        .collect();
    if udp {
        remedy.push(
            "proxyshift cleanup --owner kube-proxy --black-holes   # the same for UDP, and \
             `proxyshift rollback` undoes it"
                .into(),
        );
        remedy.push("ipvsadm --set 0 0 10   # idle UDP flows end after 10 s; 0 leaves TCP".into());
        let line = "ipvs: {udpTimeout: 10s}";
        let flag = "--ipvs-udp-timeout=10s";
        remedy.push(crate::checks::kube_proxy::setting(facts, line, flag));
    }
    let name = match (dns, udp) {
        (true, _) => "DNS queries",
        (false, true) => "UDP packets",
        (false, false) => "connections",
    };
    Verdict::Found(Found {
        evidence: evidence.collect(),
        effect: format!(
            "{name} of clients from before keep going to an endpoint that is being removed; a flow \
             that never pauses never ends"
        ),
        remedy,
        fix: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    #[test]
    fn the_dns_black_hole_is_found() {
        let Verdict::Found(found) = verdict_of(&CHECK, &node("ipvs-dns-blackhole-1.20")) else {
            panic!("not found")
        };
        assert_eq!(
            found.evidence,
            ["10.96.0.10:53/udp -> 192.168.66.5:53: weight 0, 0 active, 6 inactive"]
        );
        assert_eq!(found.remedy[0], "ipvsadm -d -u 10.96.0.10:53 -r 192.168.66.5:53");
        assert!(found.effect.starts_with("DNS queries of clients"), "{found:?}");
    }

    #[test]
    fn ok_without_any_and_unknown_without_the_listing() {
        let node = Node::captured("half-migrated-ipvs-1.20");
        assert!(matches!(verdict_of(&CHECK, &node.state()), Verdict::Ok(_)));
        let state = node.remove("ipvs.list").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }

    #[test]
    fn someone_elses_draining_is_their_business() {
        let state = Node::captured("ipvs-with-keepalived-1.20")
            .replace(
                "ipvs.list",
                "10.9.0.11:8443               Route   1      0          0 ",
                "10.9.0.11:8443               Route   0      3          0 ",
            )
            .replace(
                "ipvs.list",
                "192.168.66.5:53              Masq    0      0          6 ",
                "192.168.66.5:53              Masq    1      0          6 ",
            )
            .state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Ok(_)));
    }
}
