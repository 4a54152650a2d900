//! Tries the expressions of nftables mode's rules on this kernel, with `nft -c` in a network namespace
//! of their own.
//!
//! `nft -c` is not harmless everywhere: for an expression whose module is not loaded the kernel loads
//! it, although the batch is not committed, and from any network namespace (tried with Linux 6.1: one
//! `nft -c` of `fib` loaded nf_tables, nft_fib and nft_fib_ipv4, and a chain of type nat nf_nat and
//! nf_conntrack). So an expression is tried only if all of its modules are loaded or built in.

use std::time::Duration;

use crate::node::tools::{Tool, Tools};
use crate::state::Family;
use crate::state::live_facts::ExpressionAnswer::{self, Accepted, Refused, Untried};
use crate::state::live_facts::{Availability, ExpressionProbe, Modules};

/// The deadline of one trial.
const DEADLINE: Duration = Duration::from_secs(5);

/// How much of nft's answer is kept, in characters.
const ANSWER: usize = 200;

/// An expression: what it is called, the modules that it needs, and the commands of nft that have it.
/// `F` stands for the family, `A` for its type of address, `X` for an address, `D` for an address
/// with a port. A module whose name ends with `_ip` has one for each family.
struct NftExpression {
    name: &'static str,
    modules: &'static [&'static str],
    commands: &'static str,
}

/// The expressions that kube-proxy 1.29 to 1.37 writes.
const EXPRESSIONS: [NftExpression; 11] = [
    NftExpression {
        name: "ct state new",
        modules: &["nft_ct"],
        commands: "add rule F p c ct state new accept\nadd rule F p c ct status dnat accept\n",
    },
    NftExpression {
        name: "fib daddr type local",
        modules: &["nft_fib", "nft_fib_ip"],
        commands: "add rule F p c fib daddr type local accept\n\
                   add rule F p c fib saddr type local accept\n",
    },
    NftExpression {
        name: "numgen random mod 2 vmap",
        modules: &["nft_numgen"],
        commands: "add rule F p c numgen random mod 2 vmap { 0 : goto a, 1 : goto a }\n",
    },
    NftExpression {
        name: "type nat hook prerouting, output",
        modules: &["nft_chain_nat"],
        commands: "add chain F p n { type nat hook prerouting priority -100 ; }\n\
                   add chain F p o { type nat hook output priority -100 ; }\n",
    },
    NftExpression {
        name: "masquerade fully-random",
        modules: &["nft_chain_nat", "nft_masq"],
        commands: "add chain F p n { type nat hook postrouting priority 100 ; }\n\
                   add rule F p n masquerade fully-random\n",
    },
    NftExpression {
        name: "dnat to ADDRESS:PORT",
        modules: &["nft_chain_nat", "nft_nat"],
        commands: "add chain F p n { type nat hook prerouting priority -100 ; }\n\
                   add rule F p n meta l4proto tcp dnat to D\n",
    },
    NftExpression {
        name: "dnat to numgen random mod 2 map",
        modules: &["nft_chain_nat", "nft_nat", "nft_numgen"],
        commands: "add chain F p n { type nat hook prerouting priority -100 ; }\n\
                   add rule F p n meta l4proto tcp dnat F to numgen random mod 2 \
                   map { 0 : X . 80, 1 : X . 81 }\n",
    },
    NftExpression {
        name: "reject in input, forward and output",
        modules: &["nft_reject", "nft_reject_ip"],
        commands: "add chain F p i { type filter hook input priority 0 ; }\n\
                   add chain F p f { type filter hook forward priority 0 ; }\n\
                   add chain F p o { type filter hook output priority 0 ; }\n\
                   add rule F p a reject\nadd rule F p i jump a\nadd rule F p f jump a\n\
                   add rule F p o jump a\n",
    },
    NftExpression {
        name: "update @set of clients with a timeout",
        modules: &[],
        commands: "add set F p s { type A ; flags dynamic,timeout ; timeout 10800s ; }\n\
                   add rule F p c update @s { F saddr }\nadd rule F p c F saddr @s accept\n",
    },
    NftExpression {
        name: "vmap of address . protocol . port",
        modules: &[],
        commands: "add map F p m { type A . inet_proto . inet_service : verdict ; }\n\
                   add set F p h { type A . A . inet_proto . inet_service ; }\n\
                   add rule F p c F daddr . meta l4proto . th dport vmap @m\n\
                   add rule F p c F saddr . F daddr . meta l4proto . th dport @h accept\n",
    },
    NftExpression {
        name: "meta mark set mark or 0x4000",
        modules: &[],
        commands: "add rule F p c meta mark set meta mark or 0x4000\n\
                   add rule F p c meta mark set meta mark xor 0x4000\n",
    },
];

/// Tries each expression in both families by the host's nft; none if the host has no nft, or if no
/// network namespace can be made.
pub(super) fn probe(tools: &Tools, modules: &Modules) -> Option<Vec<ExpressionProbe>> {
    let nft = tools.tool(Tool::Nft).ok()?;
    let try_out = |script: String| {
        let command = tools.command(Tool::Unshare).ok()?.args(["--net", "--"]).args([nft]);
        let command = command.args(["-c", "-f", "-"]).stdin(script).deadline(DEADLINE);
        Some(command.run().map_err(|error| error.cause))
    };
    let present = |module: &str| {
        matches!(modules.availability(module), Availability::Loaded | Availability::BuiltIn)
    };
    if !present("nf_tables") {
        // nft loads it whatever it is given, even nothing.
        let left_out = |family| EXPRESSIONS.iter().map(move |e| e.answered(family, Untried));
        return Some(Family::ALL.into_iter().flat_map(left_out).collect());
    }
    // That no namespace can be made is no refusal.
    try_out(String::new())?.ok()?;
    let mut found = Vec::new();
    for family in Family::ALL {
        let attempted: Vec<&NftExpression> = EXPRESSIONS
            .iter()
            .filter(|e| e.modules_in(family).iter().all(|module| present(module)))
            .collect();
        // All in one, which nearly every kernel takes; alone only if it does not.
        let all =
            attempted.iter().enumerate().map(|(number, e)| e.script(family, number)).collect();
        let all_accepted = matches!(try_out(all), Some(Ok(_)));
        for expression in &EXPRESSIONS {
            let is_attempted = attempted.iter().any(|attempted| attempted.name == expression.name);
            let answer = if !is_attempted {
                Untried
            } else if all_accepted {
                Accepted
            } else {
                match try_out(expression.script(family, 0)) {
                    Some(Ok(_)) => Accepted,
                    Some(Err(cause)) => Refused(cause.chars().take(ANSWER).collect()),
                    None => Untried,
                }
            };
            found.push(expression.answered(family, answer));
        }
    }
    Some(found)
}

impl NftExpression {
    fn answered(&self, family: Family, answer: ExpressionAnswer) -> ExpressionProbe {
        ExpressionProbe { expression: self.name, family, answer }
    }

    fn modules_in(&self, family: Family) -> Vec<String> {
        let number = match family {
            Family::Ipv4 => "4",
            Family::Ipv6 => "6",
        };
        let name = |module: &&str| match module.strip_suffix("_ip") {
            Some(stem) => format!("{stem}_ipv{number}"),
            None => (*module).to_owned(),
        };
        self.modules.iter().map(name).collect()
    }

    /// The commands in the table number `number`, which has two chains.
    fn script(&self, family: Family, number: usize) -> String {
        let (kind, address, target) = match family {
            Family::Ipv4 => ("ipv4_addr", "192.0.2.9", "192.0.2.9:80"),
            Family::Ipv6 => ("ipv6_addr", "2001:db8::9", "[2001:db8::9]:80"),
        };
        let table = format!("p{number}");
        let mut script = String::new();
        let start = "add table F p\nadd chain F p a\nadd chain F p c\n";
        for line in start.lines().chain(self.commands.lines()) {
            for word in line.split(' ') {
                script.push_str(match word {
                    "F" => family.nft(),
                    "p" => &table,
                    "A" => kind,
                    "X" => address,
                    "D" => target,
                    other => other,
                });
                script.push(' ');
            }
            script.push('\n');
        }
        script
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn modules(loaded: &[&str]) -> Modules {
        let loaded: BTreeSet<String> = loaded.iter().map(|name| (*name).to_owned()).collect();
        Modules { loaded, complete: true, ..Modules::default() }
    }

    #[test]
    fn scripts_are_of_their_family() {
        let dnat = EXPRESSIONS.iter().find(|e| e.name.starts_with("dnat to ADD")).unwrap();
        assert!(dnat.script(Family::Ipv6, 3).ends_with(
            "add chain ip6 p3 n { type nat hook prerouting priority -100 ; } \n\
             add rule ip6 p3 n meta l4proto tcp dnat to [2001:db8::9]:80 \n"
        ));
        let reject = EXPRESSIONS.iter().find(|e| e.name.starts_with("reject")).unwrap();
        assert_eq!(reject.modules_in(Family::Ipv6), ["nft_reject", "nft_reject_ipv6"]);
    }

    #[test]
    fn nothing_is_attempted_that_would_load_a_module() {
        let Some(found) = probe(&Tools::find(), &modules(&[])) else { return };
        assert!(found.iter().all(|probe| probe.answer == Untried));
        assert_eq!(found.len(), 2 * EXPRESSIONS.len());
    }
}
