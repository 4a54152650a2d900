//! Foreign changes while a migration is in its stage `clean`.

use std::time::Duration;

use super::{Case, START, STOP};
use crate::common::{run, run_with};
use crate::machine::inside;

/// The rules of a docker network that is created while the migration removes leftovers.
const NETWORK: [&str; 2] = [
    "-t nat -A POSTROUTING -s 172.18.0.0/16 ! -o br-0123456789ab -j MASQUERADE",
    "-t filter -A FORWARD -i br-0123456789ab -j ACCEPT",
];

#[test]
#[ignore = "in the machine"]
fn soak_what_others_do_during_clean_survives() {
    if !inside("cases::migrate::meanwhile::soak_what_others_do_during_clean_survives") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    let nat = case.cluster.save("nat");
    let chain = nat.lines().find_map(|l| l.strip_prefix(":KUBE-SVC-")).expect("a service's chain");
    let chain = format!("KUBE-SVC-{}", chain.split(' ').next().expect("a name"));
    let foreign = format!("-A {chain} -s 203.0.113.7/32 -j RETURN");
    let ended = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            // At this moment the plan exists, and the rehearsal of it takes some time.
            case.wait_until_cleaning();
            for rule in NETWORK {
                run(&format!("iptables-nft {rule}"));
            }
            run(&format!("iptables-nft -t nat {foreign}"));
            run_with("", &[STOP]);
            std::thread::sleep(Duration::from_secs(1));
            run_with("", &[START]);
        });
        let ended = case.migrate("ipvs", "");
        others.join().expect("others did their part");
        ended
    });
    assert_eq!(ended.code, Some(0));
    let (nat, filter) = (case.cluster.save("nat"), case.cluster.save("filter"));
    for (save, rule) in [(&nat, NETWORK[0]), (&filter, NETWORK[1])] {
        let rule = rule.splitn(3, ' ').nth(2).expect("a rule");
        assert!(save.lines().any(|l| l == rule), "{rule} is lost: {save}");
    }
    assert!(nat.lines().any(|l| l == foreign), "{foreign} is lost: {nat}");
    // The chain that a foreign rule uses is kept. All other chains for services are removed.
    let left: Vec<&str> = nat.lines().filter(|l| l.starts_with(":KUBE-SVC-")).collect();
    assert!(matches!(left[..], [one] if one.contains(&chain)), "{left:?}");
    case.proxyshift.expect(0, "confirm");
    case.cluster.serves();
}
