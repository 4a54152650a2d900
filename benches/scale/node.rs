//! A generated node, half-migrated from iptables mode to ipvs mode: kube-proxy serves by ipvs, and
//! all chains of iptables mode are leftovers. The rules and ipsets have the form of those in
//! `snapshots/half-migrated-ipvs-1.20`.

use std::fmt::Write;

/// The number of endpoints of each service.
pub const ENDPOINTS: usize = 5;

/// The ipsets and the rules of the node.
pub struct Node {
    /// The input of `ipset restore`.
    pub sets: String,
    /// The input of `iptables-restore`.
    pub rules: String,
    /// The names of the leftover chains in the nat table.
    pub leftovers: Vec<String>,
}

/// Generates a node with `services` services. The same number gives the same node each time.
pub fn generate(services: usize) -> Node {
    let mut names = Names(0);
    let mut sets = String::new();
    for (set, kind) in [
        ("KUBE-CLUSTER-IP", "hash:ip,port"),
        ("KUBE-LOOP-BACK", "hash:ip,port,ip"),
        ("KUBE-NODE-PORT-TCP", "bitmap:port range 0-65535"),
    ] {
        let size = if kind.starts_with("hash") { " maxelem 1048576" } else { "" };
        put(&mut sets, format_args!("create {set} {kind}{size}"));
    }
    let mut leftovers = vec!["KUBE-NODEPORTS".to_owned()];
    let (mut ports, mut rules) = (String::new(), String::new());
    for service in 0..services {
        let address = ip(10, 96, service);
        put(&mut sets, format_args!("add KUBE-CLUSTER-IP {address},tcp:80"));
        let comment = format!("-m comment --comment \"shop/app-{service}:http\"");
        let chain = names.next("KUBE-SVC-");
        // One service in fifty has a node port.
        if service % 50 == 0 {
            let port = 30000 + service / 50;
            put(&mut sets, format_args!("add KUBE-NODE-PORT-TCP {port}"));
            for target in ["KUBE-MARK-MASQ", &chain] {
                let head = format!("-A KUBE-NODEPORTS -p tcp {comment} -m tcp --dport {port}");
                put(&mut ports, format_args!("{head} -j {target}"));
            }
        }
        let mut endpoints = String::new();
        for endpoint in 0..ENDPOINTS {
            let name = names.next("KUBE-SEP-");
            let pod = ip(10, 128, service * ENDPOINTS + endpoint);
            put(&mut sets, format_args!("add KUBE-LOOP-BACK {pod},tcp:80,{pod}"));
            let left = ENDPOINTS - endpoint;
            let share = 1.0 / left as f64;
            let random = format!(" -m statistic --mode random --probability {share:.11}");
            let random = if left > 1 { random.as_str() } else { "" };
            put(&mut rules, format_args!("-A {chain} {comment}{random} -j {name}"));
            let head = format!("-A {name} -s {pod}/32 {comment}");
            put(&mut endpoints, format_args!("{head} -j KUBE-MARK-MASQ"));
            let dnat = format!("-m tcp -j DNAT --to-destination {pod}:80");
            put(&mut endpoints, format_args!("-A {name} -p tcp {comment} {dnat}"));
            leftovers.push(name);
        }
        rules += &endpoints;
        leftovers.push(chain);
    }
    // kube-proxy's chain names are hashes, so sorting them does not put the chains of a service
    // next to those of its endpoints.
    let declared: String = leftovers.iter().map(|name| format!(":{name} - [0:0]\n")).collect();
    let rules = format!("{HEAD}{declared}{IPVS}{ports}{rules}COMMIT\n");
    Node { sets, rules, leftovers }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

fn ip(a: usize, b: usize, n: usize) -> String {
    let n = n + 1;
    format!("{a}.{}.{}.{}", b + (n >> 16), (n >> 8) & 255, n & 255)
}

/// Makes chain suffixes like kube-proxy's: 16 base32 characters, not in sorted order. The field is
/// the state of the generator.
struct Names(u64);

impl Names {
    fn next(&mut self, prefix: &str) -> String {
        const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let mut name = prefix.to_owned();
        for _ in 0..2 {
            // The splitmix64 generator.
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            name.extend((0..8).map(|i| char::from(BASE32[(z >> (5 * i)) as usize & 31])));
        }
        name
    }
}

const HEAD: &str = r#"*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
"#;

const IPVS: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES ! -s 10.128.0.0/9 -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
"#;

/// The links of the node, as input of `ip -batch`. kube-ipvs0 is a bridge, because not every kernel
/// has the `dummy` module.
pub const LINKS: &str = "link set lo up
link add kube-ipvs0 type bridge
link add docker0 type bridge
addr add 172.17.0.1/16 dev docker0
link set docker0 up
link add eth0 type veth peer name far
addr add 10.9.0.1/24 dev eth0
link set eth0 up
link set far up
";
