//! TCP streams through ipvs end with their virtual servers, and proxyshift reports that.

use std::net::TcpStream;
use std::time::Duration;

use super::Case;
use crate::common::clients::echo;
use crate::machine::inside;
use crate::network::stream;

fn opened(count: usize, service: &str) -> Vec<TcpStream> {
    (0..count).map(|_| stream("pod", service).expect("a stream").1).collect()
}

#[test]
#[ignore = "in the machine"]
fn soak_streams_through_ipvs_are_counted_and_named() {
    if !inside("cases::migrate::streams::soak_streams_through_ipvs_are_counted_and_named") {
        return;
    }
    let case = Case::new("nft", "iptables");
    case.playbook("iptables", "ipvs", |text| text);
    assert_eq!(case.migrate("ipvs", "").code, Some(0));
    // The unconfirmed migration is rolled back, which ends the streams.
    let mut streams = opened(3, "10.96.1.1:80");
    streams.iter_mut().for_each(|s| echo(s).expect("it flows"));
    let ended = case.proxyshift.expect(0, "rollback");
    println!("{}", ended.err);
    ended.reports(&[
        "3 connections through ipvs end with its virtual servers: 10.96.1.1:80/tcp (3)",
    ]);
    assert!(echo(&mut streams[0]).is_err(), "it is cut, as was said");
    drop(streams);
    case.is_in("iptables");

    // Migrates to ipvs mode and confirms, then migrates back to iptables mode. Now proxyshift waits
    // for streams that end in time.
    assert_eq!(case.migrate("ipvs", "").code, Some(0));
    case.proxyshift.expect(0, "confirm");
    let (waited_for, cut) = (opened(2, "10.96.1.2:80"), opened(1, "10.96.1.2:80"));
    case.playbook("ipvs", "iptables", |text| text.replace("drain: 30s", "drain: 5s"));
    drop(waited_for);
    std::thread::sleep(Duration::from_secs(1));
    let ended = case.migrate("iptables", "");
    assert_eq!(ended.code, Some(0));
    ended.reports(&["end with its virtual servers: ", "10.96.1.2:80/tcp (1)"]);
    drop(cut);
    case.proxyshift.expect(0, "confirm");
    case.is_in("iptables");
}
