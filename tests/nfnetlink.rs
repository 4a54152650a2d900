//! nf_tables over netlink, on this kernel and with this machine's iptables-nft and nft.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{in_namespace, in_user_namespace, run, run_with};
use proxyshift::error::Kind;
use proxyshift::node::nfnetlink::{Batch, Commit, Listener, Netfilter, TableFamily};
use proxyshift::state::Family;

const V4: Family = Family::Ipv4;

/// For each rule of a chain, in the kernel's order, whether the rule is native.
fn native(netfilter: &mut Netfilter, family: Family, table: &str, chain: &str) -> Vec<bool> {
    netfilter.rules(family, table, chain).unwrap().iter().map(|rule| rule.native).collect()
}

fn chain_names(netfilter: &mut Netfilter, table: &str) -> Vec<String> {
    netfilter.chains(V4, table).unwrap().into_iter().map(|chain| chain.name).collect()
}

#[test]
fn any_write_moves_the_generation() {
    if !in_namespace("any_write_moves_the_generation") {
        return;
    }
    let mut netfilter = Netfilter::open().unwrap();
    let before = netfilter.generation().unwrap();
    assert_eq!(netfilter.generation().unwrap(), before);
    // Waiting for a commit writes nothing, so the generation stays the same.
    assert_eq!(netfilter.settled_generation().unwrap(), before);
    assert_eq!(netfilter.generation().unwrap(), before);
    run("iptables-nft -t nat -N KUBE-SERVICES");
    let after = netfilter.generation().unwrap();
    assert!(after > before, "{before} → {after}");
    run("iptables-nft -t nat -A KUBE-SERVICES -j RETURN");
    assert!(netfilter.generation().unwrap() > after);
}

#[test]
fn tables_and_chains_are_listed() {
    if !in_namespace("tables_and_chains_are_listed") {
        return;
    }
    let mut netfilter = Netfilter::open().unwrap();
    assert_eq!(netfilter.tables().unwrap(), []);
    assert_eq!(netfilter.chains(V4, "nat").unwrap(), []);
    assert_eq!(netfilter.rules(V4, "nat", "KUBE-SERVICES").unwrap(), []);

    run("iptables-nft -t nat -N KUBE-SERVICES");
    run("iptables-nft -t nat -A PREROUTING -j KUBE-SERVICES");
    run("iptables-nft -t nat -A KUBE-SERVICES -j RETURN");
    run("iptables-nft -N KUBE-SERVICES");
    run("nft add table inet firewalld");
    run("nft add table ip6 kube-proxy");

    let mut tables: Vec<String> = (netfilter.tables().unwrap().iter())
        .map(|table| format!("{} {} {:?}", table.family, table.name, table.family.address_family()))
        .collect();
    tables.sort();
    let expected = [
        "inet firewalld None",
        "ip filter Some(Ipv4)",
        "ip nat Some(Ipv4)",
        "ip6 kube-proxy Some(Ipv6)",
    ];
    assert_eq!(tables, expected);

    let chains = netfilter.chains(V4, "nat").unwrap();
    let shown: BTreeMap<&str, (bool, u32)> =
        chains.iter().map(|chain| (chain.name.as_str(), (chain.base, chain.use_count))).collect();
    // KUBE-SERVICES is used twice: by a jump to the chain, and by a rule in it.
    assert_eq!(
        shown,
        BTreeMap::from([("KUBE-SERVICES", (false, 2)), ("PREROUTING", (true, 1))]),
        "of the table asked for, not of filter"
    );
}

/// Adds to the batch the removal of every rule that the chain in nat has now.
fn empty<'a>(netfilter: &mut Netfilter, batch: &mut Batch<'a>, chain: &'a str) {
    for rule in netfilter.rules(V4, "nat", chain).unwrap() {
        batch.delete_rule(V4, "nat", chain, rule.handle);
    }
}

#[test]
fn a_stale_generation_is_refused_and_loses_nothing() {
    if !in_namespace("a_stale_generation_is_refused_and_loses_nothing") {
        return;
    }
    run("iptables-nft -t nat -N KUBE-SVC-A");
    run("iptables-nft -t nat -A KUBE-SVC-A -j RETURN");
    let mut netfilter = Netfilter::open().unwrap();
    let planned_on = netfilter.generation().unwrap();
    let mut batch = Batch::new();
    empty(&mut netfilter, &mut batch, "KUBE-SVC-A");
    batch.delete_chain(V4, "nat", "KUBE-SVC-A");

    run("iptables-nft -t nat -A KUBE-SVC-A -s 192.0.2.7 -j ACCEPT");
    let before = run("iptables-nft-save -t nat");
    let moved_to = netfilter.generation().unwrap();

    let error = netfilter.commit(&batch, planned_on).unwrap_err();
    assert_eq!(error.kind, Kind::LostRace, "{error}");
    assert!(error.cause.contains(&planned_on.to_string()), "{error}");
    assert_eq!(rules_of(&run("iptables-nft-save -t nat")), rules_of(&before));
    assert_eq!(netfilter.generation().unwrap(), moved_to);

    // The commit fails even at the generation that has the new rule, because the batch does not
    // remove that rule.
    let error = netfilter.commit(&batch, moved_to).unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::LostRace, "chain ip nat KUBE-SVC-A"));
    assert_eq!(rules_of(&run("iptables-nft-save -t nat")), rules_of(&before));

    let mut batch = Batch::new();
    empty(&mut netfilter, &mut batch, "KUBE-SVC-A");
    batch.delete_chain(V4, "nat", "KUBE-SVC-A");
    netfilter.commit(&batch, moved_to).unwrap();
    assert_eq!(netfilter.generation().unwrap(), moved_to + 1);
    assert_eq!(chain_names(&mut netfilter, "nat"), [] as [&str; 0]);
}

#[test]
fn a_chain_in_use_fails_the_whole_batch_and_is_named() {
    if !in_namespace("a_chain_in_use_fails_the_whole_batch_and_is_named") {
        return;
    }
    for chain in ["KUBE-SVC-A", "KUBE-SVC-B", "KUBE-SVC-C"] {
        run(&format!("iptables-nft -t nat -N {chain}"));
        run(&format!("iptables-nft -t nat -A {chain} -j RETURN"));
    }
    run("iptables-nft -t nat -A PREROUTING -j KUBE-SVC-B");
    let before = run("iptables-nft-save -t nat");
    let mut netfilter = Netfilter::open().unwrap();
    let generation = netfilter.generation().unwrap();
    let mut batch = Batch::new();
    for chain in ["KUBE-SVC-A", "KUBE-SVC-B", "KUBE-SVC-C"] {
        empty(&mut netfilter, &mut batch, chain);
        batch.delete_chain(V4, "nat", chain);
    }
    assert_eq!(batch.len(), 6);

    let error = netfilter.commit(&batch, generation).unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::LostRace, "chain ip nat KUBE-SVC-B"));
    assert_eq!(rules_of(&run("iptables-nft-save -t nat")), rules_of(&before));
    assert_eq!(netfilter.generation().unwrap(), generation);

    // The socket still works after a failed commit.
    run("iptables-nft -t nat -F PREROUTING");
    let generation = netfilter.generation().unwrap();
    netfilter.commit(&batch, generation).unwrap();
    assert_eq!(chain_names(&mut netfilter, "nat"), ["PREROUTING"]);
}

#[test]
fn a_chain_with_rules_is_not_deleted_with_them() {
    if !in_namespace("a_chain_with_rules_is_not_deleted_with_them") {
        return;
    }
    run("iptables-nft -t nat -N KUBE-SVC-A");
    run("iptables-nft -t nat -A KUBE-SVC-A -j RETURN");
    let mut netfilter = Netfilter::open().unwrap();
    let mut batch = Batch::new();
    batch.delete_chain(V4, "nat", "KUBE-SVC-A");
    let generation = netfilter.generation().unwrap();
    let error = netfilter.commit(&batch, generation).unwrap_err();
    assert_eq!((error.kind, error.object.as_str()), (Kind::LostRace, "chain ip nat KUBE-SVC-A"));
    assert_eq!(native(&mut netfilter, V4, "nat", "KUBE-SVC-A"), [false]);
}

#[test]
fn single_rules_and_tables_are_deleted() {
    if !in_namespace("single_rules_and_tables_are_deleted") {
        return;
    }
    for port in [1, 2, 3, 2] {
        run(&format!("iptables-nft -A FORWARD -p tcp --dport {port} -j ACCEPT"));
    }
    run("nft add table ip6 kube-proxy");
    run("nft add chain ip6 kube-proxy services");
    run("nft add rule ip6 kube-proxy services accept");
    let mut netfilter = Netfilter::open().unwrap();
    let rules = netfilter.rules(V4, "filter", "FORWARD").unwrap();
    let mut batch = Batch::new();
    batch.delete_rule(V4, "filter", "FORWARD", rules[3].handle);
    batch.delete_rule(V4, "filter", "FORWARD", rules[0].handle);
    batch.delete_table("ip6", "kube-proxy");
    let generation = netfilter.generation().unwrap();
    netfilter.commit(&batch, generation).unwrap();
    assert_eq!(
        rules_of(&run("iptables-nft-save -t filter")),
        [
            "-A FORWARD -p tcp -m tcp --dport 2 -j ACCEPT",
            "-A FORWARD -p tcp -m tcp --dport 3 -j ACCEPT"
        ]
    );
    assert_eq!(netfilter.rules(V4, "filter", "FORWARD").unwrap(), rules[1..3]);
    let families: Vec<TableFamily> =
        netfilter.tables().unwrap().iter().map(|table| table.family).collect();
    assert_eq!(families, [TableFamily::from(V4)]);

    // Removing the same again fails, and the error names the object.
    let generation = netfilter.generation().unwrap();
    let error = netfilter.commit(&batch, generation).unwrap_err();
    let object = format!("rule with handle {} of chain ip filter FORWARD", rules[3].handle);
    assert_eq!((error.kind, error.object), (Kind::LostRace, object));
}

#[test]
fn what_cannot_be_committed_is_refused() {
    if !in_namespace("what_cannot_be_committed_is_refused") {
        return;
    }
    run("iptables-nft -t nat -N KUBE-SVC-A");
    let mut netfilter = Netfilter::open().unwrap();
    let generation = netfilter.generation().unwrap();
    netfilter.commit(&Batch::new(), generation).unwrap();
    assert_eq!(netfilter.generation().unwrap(), generation);

    let mut batch = Batch::new();
    batch.delete_chain(V4, "nat", "KUBE-SVC-A");
    // A generation of 0 is refused, because the kernel takes it as "do not compare".
    assert_eq!(netfilter.commit(&batch, 0).unwrap_err().kind, Kind::Unexpected);
    batch.delete_table("ipv4", "nat");
    assert_eq!(netfilter.commit(&batch, generation).unwrap_err().object, "table ipv4 nat");
    let mut batch = Batch::new();
    batch.delete_chain(V4, "nat", "KUBE\0");
    assert_eq!(netfilter.commit(&batch, generation).unwrap_err().kind, Kind::Kernel);
    assert_eq!(chain_names(&mut netfilter, "nat"), ["KUBE-SVC-A"]);
}

#[test]
fn without_the_right_the_error_names_it() {
    if !in_namespace("without_the_right_the_error_names_it") {
        return;
    }
    // This test is run again as a copy without any capability.
    const POWERLESS: &str = "PROXYSHIFT_TEST_POWERLESS";
    if std::env::var_os(POWERLESS).is_some() {
        assert_eq!(Netfilter::open().unwrap_err().kind, Kind::Permission);
        return;
    }
    let status = Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "without_the_right_the_error_names_it", "--nocapture"])
        .env(POWERLESS, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// As many chains as the largest clusters have. Like kube-proxy's, each chain has a
/// mark-for-masquerade rule and a jump to the next chain.
const MANY: usize = 30_000;

fn many_chains(netfilter: &mut Netfilter) {
    run("iptables-nft -t nat -N KUBE-MARK-MASQ");
    let name = |index: usize| format!("KUBE-SVC-{index:016}");
    // The chains are loaded in pieces, because in a user namespace iptables-nft-restore can send at
    // most wmem_default bytes at once.
    const PIECE: usize = 250;
    for chains in (0..MANY).collect::<Vec<_>>().chunks(PIECE) {
        let mut text = String::from("*nat\n");
        chains.iter().for_each(|index| writeln!(text, ":{} - [0:0]", name(*index)).unwrap());
        for index in chains {
            let next =
                if index % PIECE == PIECE - 1 { "RETURN".to_owned() } else { name(index + 1) };
            writeln!(text, "-A {} ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ", name(*index)).unwrap();
            writeln!(text, "-A {} -j {next}", name(*index)).unwrap();
        }
        text.push_str("COMMIT\n");
        run_with(&text, &["iptables-nft-restore", "--noflush"]);
    }
    assert_eq!(chain_names(netfilter, "nat").len(), MANY + 1);
}

fn delete_many_chains() {
    let mut netfilter = Netfilter::open().unwrap();
    many_chains(&mut netfilter);

    let start = Instant::now();
    let generation = netfilter.generation().unwrap();
    let chains = netfilter.chains(V4, "nat").unwrap();
    let listed = start.elapsed();
    let chains: Vec<&str> = chains
        .iter()
        .map(|chain| chain.name.as_str())
        .filter(|name| name.starts_with("KUBE-SVC-"))
        .collect();
    let mut batch = Batch::new();
    for chain in &chains {
        empty(&mut netfilter, &mut batch, chain);
    }
    let dumped = start.elapsed() - listed;
    assert_eq!(batch.len(), 2 * MANY);
    chains.iter().for_each(|chain| batch.delete_chain(V4, "nat", chain));

    // Both of these commits fail: one has a stale generation, the other deletes chains that are in
    // use.
    assert_eq!(netfilter.commit(&batch, generation - 1).unwrap_err().kind, Kind::LostRace);
    let mut too_early = Batch::new();
    chains.iter().for_each(|chain| too_early.delete_chain(V4, "nat", chain));
    let error = netfilter.commit(&too_early, generation).unwrap_err();
    assert_eq!(error.object, format!("chain ip nat {}", chains[0]), "the first of {MANY}");

    let start = Instant::now();
    netfilter.commit(&batch, generation).unwrap();
    let committed = start.elapsed();
    println!("{MANY} chains: listed {listed:?}, rules {dumped:?}, committed {committed:?}");
    assert_eq!(chain_names(&mut netfilter, "nat"), ["KUBE-MARK-MASQ"]);
    assert!(committed < Duration::from_secs(30), "{committed:?}");
}

#[test]
fn thirty_thousand_chains_go_in_one_batch() {
    if in_namespace("thirty_thousand_chains_go_in_one_batch") {
        delete_many_chains();
    }
}

#[test]
fn thirty_thousand_chains_go_in_one_batch_without_root_on_the_host() {
    if in_user_namespace("thirty_thousand_chains_go_in_one_batch_without_root_on_the_host") {
        delete_many_chains();
    }
}

#[test]
fn a_batch_beyond_the_send_buffer_names_the_limit() {
    if !in_user_namespace("a_batch_beyond_the_send_buffer_names_the_limit") {
        return;
    }
    let limit = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    let mut netfilter = Netfilter::open().unwrap();
    let mut batch = Batch::new();
    // These are more removals than fit, because each takes over 40 bytes, and the kernel allows
    // twice the limit.
    for _ in 0..limit / 20 + 1000 {
        batch.delete_chain(V4, "nat", "KUBE-SVC-A");
    }
    let generation = netfilter.generation().unwrap();
    let error = netfilter.commit(&batch, generation).unwrap_err();
    assert_eq!(error.kind, Kind::Kernel);
    assert!(error.hint.unwrap().contains("net.core.wmem_max"));
}

#[test]
fn a_long_chain_is_whole_and_in_order() {
    if !in_namespace("a_long_chain_is_whole_and_in_order") {
        return;
    }
    const RULES: usize = 6000;
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    for index in 0..RULES {
        let (high, low) = (index / 250, index % 250);
        writeln!(
            text,
            "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m comment --comment \"ns/svc:{index}\" \
             -m tcp --dport 80 -j ACCEPT"
        )
        .unwrap();
    }
    text.push_str("COMMIT\n");
    run_with(&text, &["iptables-nft-restore"]);
    let mut netfilter = Netfilter::open().unwrap();
    let start = Instant::now();
    let rules = netfilter.rules(V4, "nat", "KUBE-SERVICES").unwrap();
    println!("{RULES} rules of one chain: {:?}", start.elapsed());
    assert_eq!(rules.len(), RULES);
    assert!(rules.iter().all(|rule| !rule.native));
    assert!(rules.is_sorted_by_key(|rule| rule.handle), "appended one after the other");
}

/// A dump takes several reads of the socket. If somebody writes between two of them, the dump mixes
/// two moments, and the kernel marks that dump. Then the result must be a new, complete dump, or an
/// error.
#[test]
fn a_dump_shows_one_moment() {
    if !in_namespace("a_dump_shows_one_moment") {
        return;
    }
    const RULES: usize = 3000;
    run("iptables-nft -N A");
    let mut rewrite = String::from("flush chain ip filter A\n");
    (0..RULES).for_each(|port| writeln!(rewrite, "add rule ip filter A tcp dport {port}").unwrap());
    let rewrite = || run_with(&rewrite, &["nft", "-f", "-"]);
    rewrite();
    let deadline = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < deadline {
                rewrite();
            }
        });
        let mut netfilter = Netfilter::open().unwrap();
        let (mut whole, mut torn, mut missing) = (0, 0, 0);
        while Instant::now() < deadline {
            // The kernel marks a dump only at the boundary of its messages, and it advances the
            // generation just before the rules. So the test waits until the commit is complete.
            let generation = netfilter.settled_generation().unwrap();
            let dump = netfilter.rules(V4, "filter", "A");
            if netfilter.generation().unwrap() != generation {
                missing += 1;
                continue;
            }
            match dump {
                Ok(rules) => {
                    // The rules of one commit have consecutive handles.
                    let one_commit =
                        rules.windows(2).all(|pair| pair[0].handle + 1 == pair[1].handle);
                    let kind =
                        if one_commit && rules.len() == RULES { &mut whole } else { &mut torn };
                    *kind += 1;
                }
                Err(error) if error.kind == Kind::LostRace => missing += 1,
                Err(error) => panic!("{error}"),
            }
        }
        println!("beside a writer: {whole} dumps whole, {torn} torn, {missing} given up");
        assert_eq!(torn, 0);
        assert!(whole > 0);
    });
}

/// The lines of the rules in an iptables-save text, without counters.
fn rules_of(save: &str) -> Vec<&str> {
    save.lines().filter(|line| line.starts_with("-A ")).collect()
}

/// The captured nodes with the backend nft: the family, and the path of the save.
fn captured_nodes() -> Vec<(Family, PathBuf)> {
    let mut nodes = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots")).unwrap()
    {
        let directory = entry.unwrap().path();
        for family in Family::ALL {
            let save = directory.join(format!("{}-nft.save", family.tool()));
            if save.exists() {
                nodes.push((family, save));
            }
        }
    }
    nodes.sort();
    nodes
}

#[test]
fn captured_nodes_have_no_native_rules_and_keep_their_order() {
    if !in_namespace("captured_nodes_have_no_native_rules_and_keep_their_order") {
        return;
    }
    let nodes = captured_nodes();
    assert!(nodes.len() >= 7, "snapshots/ lacks the captured nodes: {nodes:?}");
    for (family, file) in nodes {
        let sets = file.with_file_name("ipset.save");
        if sets.exists() {
            run_with(&std::fs::read_to_string(sets).unwrap(), &["ipset", "restore", "-exist"]);
        }
        let tool = family.tool();
        let save = std::fs::read_to_string(&file).unwrap();
        // The host's kernel may lack xt_ipvs, which kube-proxy from 1.29 on matches with in ipvs mode.
        let save: String =
            save.lines().filter(|l| !l.contains(" -m ipvs ")).map(|l| format!("{l}\n")).collect();
        let words: Vec<&str> = save.split_whitespace().collect();
        let named: BTreeSet<&str> =
            words.windows(2).filter(|w| w[0] == "--nfacct-name").map(|w| w[1]).collect();
        for name in &named {
            run(&format!("nfacct add {name}"));
        }
        run_with(&save, &[&format!("{tool}-nft-restore")]);
        let chains_checked = same_as_save(family, &run(&format!("{tool}-nft-save")));
        assert!(chains_checked >= 3, "{}: {chains_checked} chains", file.display());
        println!("{}: {chains_checked} chains", file.display());
        run("nft flush ruleset");
        run("ipset destroy");
        named.iter().for_each(|name| drop(run(&format!("nfacct delete {name}"))));
    }
}

#[test]
fn rules_from_the_wild_are_not_native() {
    let Some(dumps) = std::env::var_os("PROXYSHIFT_DUMPS") else {
        assert!(std::env::var_os("CI").is_none(), "CI sets PROXYSHIFT_DUMPS");
        println!("not run: set PROXYSHIFT_DUMPS to the folder with the dumps");
        return;
    };
    if !in_namespace("rules_from_the_wild_are_not_native") {
        return;
    }
    let (mut loaded, mut refused) = (0, Vec::new());
    for entry in std::fs::read_dir(Path::new(&dumps).join("whole")).unwrap() {
        let file = entry.unwrap().path();
        let loads = |family: &Family| {
            let input = std::fs::File::open(&file).unwrap();
            let tool = format!("{}-nft-restore", family.tool());
            let output = Command::new(tool).stdin(input).output().unwrap();
            output.status.success()
        };
        match Family::ALL.iter().find(|family| loads(family)) {
            Some(family) => {
                let save = run(&format!("{}-nft-save", family.tool()));
                assert!(same_as_save(*family, &save) > 0, "{}", file.display());
                loaded += 1;
            }
            // The save could not be loaded, because it needs ipsets, or an extension that this
            // kernel lacks.
            None => refused.push(file),
        }
        run("nft flush ruleset");
    }
    println!("{loaded} dumps loaded, {} not: {refused:#?}", refused.len());
    assert!(loaded >= 20, "only {loaded} dumps loaded");
}

/// Verifies that every chain in the save has as many rules as in the kernel, in the same order, and
/// that none of them is native.
fn same_as_save(family: Family, save: &str) -> usize {
    let mut netfilter = Netfilter::open().unwrap();
    let mut table = "";
    let mut expected: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for line in save.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            expected.entry((table, chain.split(' ').next().unwrap())).or_default();
        } else if let Some(rule) = line.strip_prefix("-A ") {
            expected.get_mut(&(table, rule.split(' ').next().unwrap())).unwrap().push(line);
        }
    }
    for ((table, chain), lines) in &expected {
        let rules = netfilter.rules(family, table, chain).unwrap();
        assert_eq!(rules.len(), lines.len(), "{table} {chain}");
        for (rule, line) in rules.iter().zip(lines) {
            assert!(!rule.native, "{table}: {line}");
        }
        // nft prints the handle of each rule, which shows that the order is the kernel's.
        if !rules.is_empty() {
            let listed = run(&format!("nft -a list chain {} {table} {chain}", family.nft()));
            let handles: Vec<u64> = listed
                .lines()
                .filter(|line| line.starts_with("\t\t") && !line.contains("hook"))
                .map(|line| line.rsplit_once("# handle ").unwrap().1.parse().unwrap())
                .collect();
            assert_eq!(rules.iter().map(|rule| rule.handle).collect::<Vec<_>>(), handles);
        }
    }
    expected.len()
}

/// Loads rules of every form that iptables-nft writes without an xtables match.
#[test]
fn what_iptables_nft_writes_is_not_native() {
    if !in_namespace("what_iptables_nft_writes_is_not_native") {
        return;
    }
    let forward = [
        "",
        "-s 1.2.3.4",
        "! -s 1.2.3.0/24 -d 10.0.0.0/8 -i eth0 -o docker+ -j ACCEPT",
        "-s 1.2.3.4/255.0.255.0 ! -i eth+ ! -o lo -j DROP",
        "-s 10.0.0.0/7 -d 10.0.0.0/17",
        "-i + -o + -j DROP",
        "-f -j ACCEPT",
        "! -f -g X",
        "-p tcp --dport 80 --sport 1:1023 -j RETURN",
        "-p tcp ! --dport 80 ! --sport 1:1023",
        "-p tcp --dport 1024: --sport :99",
        "-p udp ! --dport 1024: ! --sport :99",
        "-p udp --dport :",
        "-p tcp --syn",
        "-p tcp ! --syn",
        "-p tcp --tcp-flags ALL NONE",
        "-p tcp --tcp-option 3",
        "-p sctp --dport 80",
        "-p udplite -m multiport --dports 1,2",
        "! -p icmp",
        "-p icmp --icmp-type 8",
        "-p 47",
        "-m mark --mark 0x4000/0x4000",
        "-m mark ! --mark 5",
        "-m mark --mark 1 -m mark --mark 2/3 -m comment --comment twice",
        "-m mark --mark 0/0",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m limit --limit 5/min --limit-burst 3",
        "-m limit --limit 3000/sec",
        "-m limit --limit 9999/sec",
        "-m limit --limit 120/min",
        "-m limit --limit 77/hour",
        "-m limit --limit 7/day -j LOG",
        "-m pkttype --pkt-type broadcast",
        "-m ttl --ttl-eq 5",
        "-m addrtype --dst-type LOCAL",
        "-m iprange --src-range 1.1.1.1-1.1.1.9",
        "-m mac --mac-source 00:11:22:33:44:55",
        "-j NFLOG --nflog-group 3 --nflog-prefix x",
        "-j NFLOG --nflog-group 3 --nflog-size 20 --nflog-threshold 2",
        "-j REJECT",
        "-p tcp -j REJECT --reject-with tcp-reset",
        "-j MARK --set-mark 1",
        "-j X",
    ];
    run("iptables-nft -N X");
    for rule in forward {
        run(&format!("iptables-nft -A FORWARD {rule}"));
    }
    let elsewhere = [
        "-t nat -A POSTROUTING -j MASQUERADE",
        "-t nat -A POSTROUTING -p tcp -j MASQUERADE --to-ports 1-2 --random",
        "-t nat -A POSTROUTING -j SNAT --to-source 1.2.3.4",
        "-t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 1",
        "-t nat -A PREROUTING -p tcp -j DNAT --to-destination 1.1.1.1:80",
        "-t raw -A PREROUTING -i eth0 -j TRACE",
        "-t raw -A PREROUTING -j NOTRACK",
    ];
    for rule in elsewhere {
        run(&format!("iptables-nft {rule}"));
    }
    assert_eq!(same_as_save(V4, &run("iptables-nft-save")), 3 + 1 + 4 + 2);

    let ipv6 = [
        "-s fe80::/64 ! -d 2001:db8::1 -i eth0 -p tcp --dport 1 -j ACCEPT",
        "-s fe80::1/ffff::ffff -p icmpv6 --icmpv6-type 128",
        "-d fe80::/10 -m mark --mark 1/3 -j DROP",
        "-m frag --fragid 1",
    ];
    for rule in ipv6 {
        run(&format!("ip6tables-nft -A FORWARD {rule}"));
    }
    assert_eq!(same_as_save(Family::Ipv6, &run("ip6tables-nft-save")), 3);
}

/// Loads rules, written by nft, that iptables-nft-save prints as another rule, or not at all.
#[test]
fn what_only_nft_writes_is_native() {
    if !in_namespace("what_only_nft_writes_is_native") {
        return;
    }
    run("iptables-nft -t nat -A POSTROUTING -j MASQUERADE");
    run("nft add chain ip nat other");
    run_with("add set ip nat s { type ipv4_addr; elements = { 1.2.3.4 }; }", &["nft", "-f", "-"]);
    run("nft add counter ip nat c");
    let rules = [
        "ip saddr 1.2.3.4 tcp dport {80,443} accept",
        "ip saddr @s accept",
        "ip saddr vmap { 1.2.3.4 : accept }",
        "ip saddr . ip daddr { 1.1.1.1 . 2.2.2.2 } accept",
        "meta l4proto { tcp, udp } accept",
        "iifname { \"a\", \"b\" } accept",
        "sctp dport 80 accept",
        "th dport 80 accept",
        "udp length 8 accept",
        "ip saddr 1.2.3.1-1.2.3.9 accept",
        "ip saddr 1.2.3.4 ip saddr != 1.2.3.5 accept",
        "tcp sport 1 tcp sport 2 accept",
        "iifname >= \"eth0\" accept",
        "ip dscp 10 accept",
        "ip frag-off & 0x1fff == 5 accept",
        "ip frag-off & 0x2000 != 0 accept",
        "meta mark > 5 accept",
        "meta length 100 accept",
        "ct state new accept",
        "fib daddr type local accept",
        "limit rate over 5/second drop",
        "limit rate 5 kbytes/second drop",
        "limit rate 5/week accept",
        "limit rate 3001/second accept",
        "limit rate 20000/second accept",
        "log prefix \"x\"",
        "log group 3 accept",
        "mark set 5",
        "ip daddr set 1.2.3.4",
        "add @s { ip saddr }",
        "counter name c",
        "reject",
        "numgen random mod 2 eq 1 accept",
        "ether saddr 00:11:22:33:44:55 accept",
    ];
    for rule in rules {
        run_with(&format!("add rule ip nat other {rule}\n"), &["nft", "-f", "-"]);
    }
    let mut netfilter = Netfilter::open().unwrap();
    let found = native(&mut netfilter, V4, "nat", "other");
    assert_eq!(found.len(), rules.len());
    for (rule, native) in rules.iter().zip(found) {
        assert!(native, "{rule}");
    }
    assert_eq!(native(&mut netfilter, V4, "nat", "POSTROUTING"), [false]);

    // iptables-nft-save prints these rules correctly, although nft wrote them.
    run("iptables-nft -N plain");
    for rule in ["ip saddr 1.2.3.4 tcp dport 80 accept", "ip protocol tcp drop", "counter return"] {
        run_with(&format!("add rule ip filter plain {rule}\n"), &["nft", "-f", "-"]);
    }
    assert_eq!(native(&mut netfilter, V4, "filter", "plain"), [false; 3]);

    // For this rule, iptables-nft-save prints a rule that is wider than the real one.
    run("nft flush chain ip nat other");
    run("nft add rule ip nat POSTROUTING ip saddr 1.2.3.4 tcp dport {80,443} accept");
    assert!(
        run("iptables-nft-save -t nat").contains("-A POSTROUTING -s 1.2.3.4/32 -p tcp -j ACCEPT\n")
    );
    assert_eq!(native(&mut netfilter, V4, "nat", "POSTROUTING"), [false, true]);

    run("ip6tables-nft -N plain");
    run_with("add rule ip6 filter plain ip6 nexthdr tcp accept\n", &["nft", "-f", "-"]);
    assert_eq!(
        native(&mut netfilter, Family::Ipv6, "filter", "plain"),
        [true],
        "read as a hop limit"
    );
}

#[test]
fn a_listener_hears_who_made_each_commit() {
    if !in_namespace("a_listener_hears_who_made_each_commit") {
        return;
    }
    let mut netfilter = Netfilter::open().unwrap();
    run("iptables-nft -t nat -N KUBE-SVC-A");
    let mut listener = Listener::open().unwrap();
    assert_eq!(listener.drain().commits, [], "what was before is not told");

    let by = |words: &str| {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap());
        let mut child = command.args(words).spawn().unwrap();
        assert!(child.wait().unwrap().success());
        child.id()
    };
    let first = by("iptables-nft -t nat -A KUBE-SVC-A -j RETURN");
    let second = by("nft add table inet firewalld");
    let generation = netfilter.generation().unwrap();
    let mut batch = Batch::new();
    empty(&mut netfilter, &mut batch, "KUBE-SVC-A");
    netfilter.commit(&batch, generation).unwrap();

    let received = listener.drain();
    assert!(!received.missed);
    let me = (std::process::id(), std::fs::read_to_string("/proc/thread-self/comm").unwrap());
    let wanted = [
        (generation - 1, first, "iptables-nft"),
        (generation, second, "nft"),
        (generation + 1, me.0, me.1.trim_end()),
    ];
    let writer = |(generation, pid, name): (u32, u32, &str)| Commit {
        generation,
        pid,
        name: name.to_owned(),
    };
    // The commit is made by a thread of this test, and the message has the id of that thread in
    // place of our PID.
    let own_thread =
        |w: Commit| if w.name == me.1.trim_end() { Commit { pid: me.0, ..w } } else { w };
    let writers: Vec<Commit> = received.commits.into_iter().map(own_thread).collect();
    assert_eq!(writers, wanted.map(writer));
    assert_eq!(listener.drain().commits, [], "nothing is told twice");
}

#[test]
fn a_listener_without_room_reports_missed_commits() {
    if !in_namespace("a_listener_without_room_reports_missed_commits") {
        return;
    }
    let mut listener = Listener::open().unwrap();
    let rule = "-A X -s 192.0.2.1/32 -j RETURN\n";
    run_with(
        &format!("*nat\n:X - [0:0]\n{}COMMIT\n", rule.repeat(100_000)),
        &["iptables-nft-restore"],
    );
    assert!(listener.drain().missed);
    run("iptables-nft -t nat -F X");
    run("nft add table inet firewalld");
    let received = listener.drain();
    assert!(received.commits.last().is_none_or(|w| w.name == "nft"), "{received:?}");
}
