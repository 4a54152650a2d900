//! kube-proxy serves, and proxyshift looks at it.

use crate::cluster::Cluster;
use crate::common::node::Proxyshift;
use crate::common::run;
use crate::machine::inside;

#[test]
#[ignore = "in the machine"]
fn iptables_mode_is_read_and_left_alone() {
    if inside("cases::serving::iptables_mode_is_read_and_left_alone") {
        read_and_left_alone("iptables");
    }
}

#[test]
#[ignore = "in the machine"]
fn ipvs_mode_is_read_and_left_alone() {
    if inside("cases::serving::ipvs_mode_is_read_and_left_alone") {
        read_and_left_alone("ipvs");
    }
}

fn read_and_left_alone(mode: &str) {
    let mut cluster = Cluster::new("nft");
    cluster.kube_proxy(mode);
    cluster.serves();
    println!("{}", run("ipvsadm -Sn"));
    let proxyshift = Proxyshift::new("store");
    for words in ["snapshot create", "check", "plan", "plan -o json"] {
        let began = std::time::Instant::now();
        let ended = proxyshift.run(words);
        println!(
            "== {words}: {:?} in {:?}\n{}{}",
            ended.code,
            began.elapsed(),
            ended.out,
            ended.err
        );
    }
}
