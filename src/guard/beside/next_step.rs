//! What can be done about a drop that no exception of the guard overrides.

use crate::checks::{LIBERAL, program};
use crate::owners::component::Component;
use crate::owners::content::Reading;
use crate::state::RulesetId;
use crate::state::nft_path::{InvalidPackets, NativeDrop, PacketSide};
use crate::state::rule::Words;

/// What is done about a drop in a native table: by the owner's own setting if it is known, else in the
/// table itself.
pub(super) fn of_native<'a>(
    drop: &NativeDrop,
    owner: Option<&Component>,
    packets: impl Iterator<Item = &'a InvalidPackets>,
) -> String {
    let own = match owner {
        None => in_its_file(drop, packets),
        Some(owner) => {
            let name = &owner.name;
            let setting = match (&owner.accepts_invalid, &owner.by_iptables) {
                (Some(setting), _) => format!("{name}: {setting}"),
                (None, Some(setting)) => format!(
                    "{name}: {setting} (its rules are in filter FORWARD then, and the exception comes \
                     before them)"
                ),
                (None, None) => format!(
                    "{name} writes this table, and no setting of its own is known that lets these \
                     packets pass"
                ),
            };
            let left = format!("; if it is gone: `proxyshift cleanup --owner {name}`");
            setting + if owner.when_gone.is_some() { &left } else { "" }
        }
    };
    format!(
        "{own}; `sysctl -w {LIBERAL}=1` makes TCP packets outside their connection's window valid, and \
         no others"
    )
}

/// The rules that let the packets pass, for the file that makes the table and for now.
fn in_its_file<'a>(drop: &NativeDrop, packets: impl Iterator<Item = &'a InvalidPackets>) -> String {
    let NativeDrop { family, table, chain, .. } = drop;
    let insert = match drop.handle {
        Some(handle) => format!("nft insert rule {family} {table} {chain} position {handle}"),
        None => format!("nft add rule {family} {table} {chain}"),
    };
    let is_early = drop.hook == "prerouting";
    let mut commands: Vec<String> = Vec::new();
    for packets in packets {
        let ip = packets.family.nft();
        let condition = match &packets.side {
            Some(PacketSide::From(network)) => format!("{ip} saddr {network}"),
            Some(PacketSide::To(network)) => format!("{ip} daddr {network}"),
            Some(PacketSide::Enters(name)) => format!("iifname {name}"),
            // In prerouting it is not known yet.
            Some(PacketSide::Leaves(name)) if !is_early => format!("oifname {name}"),
            _ => continue,
        };
        let command = format!("`{insert} {condition} ct state invalid accept`");
        if !commands.contains(&command) {
            commands.push(command);
        }
    }
    format!(
        "whoever loads table {family} {table} accepts them before: in its file, and now by {}",
        commands.join(" and ")
    )
}

/// The rules before one of a table of iptables.
pub(super) fn before_rule(
    id: RulesetId,
    table: &str,
    chain: &str,
    at: usize,
    rules: &[String],
) -> String {
    let number = at + 1;
    // Without the guard's comment, for it does not keep this rule.
    let command = |rule: &String| {
        let body = Reading::of(Words::of_rule(rule)).body;
        format!("`{} -t {table} -I {chain} {number}{body}`", program(id))
    };
    let commands: Vec<String> = rules.iter().map(command).collect();
    format!("accept them before, as by {}", commands.join(" and "))
}
