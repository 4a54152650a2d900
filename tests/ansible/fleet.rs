//! One host of a batch loses its network. That host rolls itself back, the other hosts stay
//! confirmed, and no further batch starts.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::in_machine;
use crate::common::node::assert_same;
use crate::hosts::{Fleet, served};
use crate::site::{Played, cached};

/// Tasks of the site that Ansible runs before a change. Here they cut off ssh on one host.
const HOOK: &str = "
- name: Lose ssh in a moment
  ansible.builtin.raw: >-
    setsid -f sh -c 'sleep 2; iptables-nft -w -I INPUT -p tcp --dport 22 -j DROP' </dev/null >/dev/null 2>&1;
    sleep 1
  when: inventory_hostname == 'h4'
  changed_when: true

- name: Let it be lost
  ansible.builtin.pause:
    seconds: 4
";

/// The rule that cuts ssh off. The run did not make this rule, so the rollback keeps it.
const LOST: &str = "-A INPUT -p tcp -m tcp --dport 22 -j DROP\n";

fn one_of_five_is_lost(test: &str, bin: &Path) {
    if served() || !in_machine(test) {
        return;
    }
    let fleet = Fleet::new(test, 7);
    fleet.site.write("hook.yml", HOOK);
    let before: Vec<String> = fleet.hosts.iter().map(|host| host.rules()).collect();
    let hook = format!("proxyshift_hook={}", fleet.site.path("hook.yml").display());
    let options = ["proxyshift_confirm_within=75s", "proxyshift_probe_timeout=5", &hook];
    let options: Vec<&str> = options.iter().flat_map(|option| ["-e", option]).collect();
    let played: Played = fleet.play(bin, "cleanup", &options);
    assert_ne!(played.code, Some(0), "{}", played.output);

    for (host, before) in fleet.hosts.iter().zip(&before) {
        let (name, output) = (host.name.as_str(), &played.output);
        match name {
            "h4" => {
                assert_eq!(played.count(name, "unreachable"), 1, "{output}");
                let until = Instant::now() + Duration::from_secs(120);
                while host.last_run().as_deref() != Some("rolled-back") {
                    assert!(Instant::now() < until, "h4 does not come back: {output}");
                    std::thread::sleep(Duration::from_millis(100));
                }
                let now = host.rules();
                assert!(now.contains(LOST), "someone else's rule went: {now}");
                assert_same(&now.replacen(LOST, "", 1), before, "h4 brought itself back");
            }
            "h7" => {
                assert_eq!(host.last_run(), None, "a batch followed: {output}");
                assert_same(&host.rules(), before, "h7 is untouched");
            }
            _ => {
                assert_eq!(host.last_run().as_deref(), Some("done"), "{name}: {output}");
                assert!(!host.rules().contains("192.168.66.0/24 -j RETURN"), "{name}: {output}");
            }
        }
    }
}

#[test]
fn one_of_five_is_lost_and_no_batch_follows() {
    let test = "fleet::one_of_five_is_lost_and_no_batch_follows";
    one_of_five_is_lost(test, &cached("newest/bin"));
}
