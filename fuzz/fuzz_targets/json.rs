//! JSON that nft, ip and other captures wrote, and what kube-proxy answers.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::{Corpus, fuzz_target};
use proxyshift::node::kube_proxy_api;
use proxyshift::node::secrets::{kept_arguments, masked};
use proxyshift::state::kube_proxy::{Instances, serves};
use proxyshift::state::nft::{NftTables, rebuild};
use proxyshift::state::{links, lookalikes, tools};
use proxyshift::store::manifest::Manifest;
use proxyshift_fuzz::{bounded, parsed, shown, with_texts};

fuzz_target!(|input: &[u8]| -> Corpus {
    with_texts(input, |kind, parts| {
        let [text] = parts else { return None };
        match kind {
            b'n' => nft(text),
            b'a' => addresses(text),
            b'o' => routes(text),
            b'u' => policy_rules(text),
            b'p' => processes(text),
            b'k' => lookalikes_of(text),
            b'm' => metrics(text),
            b'f' => manifest(text),
            b's' => secrets(text),
            _ => return None,
        }
        Some(())
    })
});

fn nft(text: &str) {
    let Some(nft) = parsed(NftTables::parse("f", text), text) else { return };
    assert_eq!(nft.differences(&nft), [""; 0]);
    assert_eq!(nft.native(&BTreeSet::new()).len(), nft.tables.len());
    for table in &nft.tables {
        assert_eq!(nft.get(&table.family, &table.name), Some(table));
        // What rebuilds a table has its objects, and no other.
        let rebuilt = rebuild(&table.objects);
        let commands = rebuilt["nftables"].as_array().expect("a list");
        assert_eq!(commands.len(), table.objects.len());
        let objects = commands.iter().map(|command| command["add"].clone()).collect::<Vec<_>>();
        let document = serde_json::json!({"nftables": objects}).to_string();
        let again = NftTables::parse("f", &document).expect("what was rebuilt");
        let again = again.get(&table.family, &table.name).expect("the table");
        let others = |rebuilt: &[String]| rebuilt.iter().any(|line| !line.contains(" chain "));
        assert!(!others(&table.differences(again)), "{:?}", table.differences(again));
    }
}

fn addresses(text: &str) {
    let Some(found) = parsed(links::parse_links("f", text), text) else { return };
    assert_eq!(links::link_differences(&found, &found), [""; 0]);
    for link in &found {
        assert!(link.networks().iter().all(|net| *net == net.trunc()));
    }
}

fn routes(text: &str) {
    let Some(found) = parsed(links::parse_routes("f", text), text) else { return };
    assert_eq!(links::route_differences(&found, &found), [""; 0]);
    let _ = found.iter().filter_map(|route| route.network()).count();
}

fn policy_rules(text: &str) {
    let Some(found) = parsed(links::parse_rules("f", text), text) else { return };
    assert_eq!(links::rule_differences(&found, &found), [""; 0]);
}

fn processes(text: &str) {
    let Some(found) = parsed(tools::parse_processes("f", text), text) else { return };
    let rendered = tools::render_processes(&found).expect("plain data");
    assert_eq!(tools::parse_processes("f", &rendered).expect("what was rendered"), found);
    let _ = Instances::of(&found).one();
    for process in &found {
        let _ = serves(&process.args);
        let kept = kept_arguments(&process.name, &process.args);
        assert_eq!(kept.len(), process.args.len());
        assert_eq!(kept_arguments(&process.name, &kept), kept);
    }
}

fn lookalikes_of(text: &str) {
    let Some(found) = parsed(lookalikes::parse("f", text), text) else { return };
    let rendered = lookalikes::render(&found).expect("plain data");
    assert_eq!(lookalikes::parse("f", &rendered).expect("what was rendered"), found);
    found.iter().for_each(|lookalike| shown(&lookalike.doubt.to_string()));
}

fn metrics(text: &str) {
    if let Some(version) = kube_proxy_api::version(text) {
        assert!(version.starts_with('v') && version.len() <= 64 && version.is_ascii());
    }
}

fn manifest(text: &str) {
    let Some(manifest) = parsed(Manifest::parse("f", text.as_bytes()), text) else { return };
    let rendered = serde_json::to_vec(&manifest).expect("plain data");
    assert_eq!(Manifest::parse("f", &rendered).expect("what was rendered"), manifest);
    assert!(!manifest.id.contains('/') && manifest.id != "..");
}

fn secrets(text: &str) {
    let once = masked(text);
    bounded(once.len(), text.len());
    assert_eq!(masked(&once), once);
}
