//! Docker's nftables back end (Docker 29 and later): tables of its own, in which it masquerades and
//! filters, in place of rules of iptables. Source: moby libnetwork/drivers/bridge/internal/nftabler.

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::networks::{BridgeNetwork, DOCKER, option_of};
use crate::checks::Facts;
use crate::state::nft::{NftTable, networks};

/// The rules of docker's own tables.
pub(super) struct NativeRules<'a> {
    tables: Vec<&'a NftTable>,
    configured: Option<String>,
}

impl<'a> NativeRules<'a> {
    /// Docker's own tables, if it has any or is configured to make them.
    pub(super) fn of(facts: &Facts<'a>) -> Option<NativeRules<'a>> {
        let is_its = |table: &&NftTable| {
            let owner = facts.ownership.table(&table.family, &table.name);
            owner.is_some_and(|owner| owner.name == DOCKER)
        };
        let tables: Vec<&NftTable> = facts.now.native_tables().into_iter().filter(is_its).collect();
        let backend = option_of(facts.now, "firewall-backend");
        let configured = backend.filter(|(value, _)| value == "nftables").map(|(_, shown)| shown);
        (!tables.is_empty() || configured.is_some()).then_some(NativeRules { tables, configured })
    }

    /// What shows that docker writes by nftables.
    pub(super) fn evidence(&self) -> String {
        match (&self.configured, self.tables.first()) {
            (Some(configured), _) => configured.clone(),
            (None, Some(table)) => format!("it has the table {} {}", table.family, table.name),
            (None, None) => String::new(),
        }
    }

    /// Whether a rule translates what the containers of the bridge send to other networks.
    pub(super) fn translates(&self, bridge: &BridgeNetwork) -> bool {
        let covers = |net: IpNet| net.contains(&IpNet::V4(bridge.network));
        self.rules().any(|expr| {
            let mut from = false;
            let mut others = false;
            for part in expr {
                let Some(matched) = part.get("match") else { continue };
                let (left, right) = (&matched["left"], &matched["right"]);
                let equal = matched["op"] == "==";
                let own_link = right == bridge.name.as_str();
                match () {
                    () if equal && left["payload"]["field"] == "saddr" => {
                        from = networks(right).into_iter().any(covers);
                    }
                    () if !equal && own_link && is_link(left, "oifname") => {}
                    () if equal && own_link && is_link(left, "iifname") => {}
                    () => others = true,
                }
            }
            from && !others && has(expr, &["masquerade", "snat"])
        })
    }

    /// Whether docker drops what comes to the bridge from elsewhere: that of an internal network.
    pub(super) fn is_internal(&self, bridge: &BridgeNetwork) -> bool {
        self.rules().any(|expr| {
            let mut conditions = expr.iter().filter_map(|part| part.get("match"));
            let elsewhere = conditions.all(|matched| {
                let foreign =
                    ["iifname", "oifname"].iter().any(|key| is_link(&matched["left"], key));
                foreign && matched["op"] == "!=" && matched["right"] == bridge.name.as_str()
            });
            let conditional = expr.iter().any(|part| part.get("match").is_some());
            conditional && elsewhere && has(expr, &["drop"])
        })
    }

    /// The expressions of each rule.
    fn rules(&self) -> impl Iterator<Item = &'a [Value]> {
        let expr = |rule: &'a Map<String, Value>| rule.get("expr")?.as_array().map(Vec::as_slice);
        self.tables.iter().flat_map(move |table| table.of_kind("rule").filter_map(expr))
    }
}

fn has(expr: &[Value], statements: &[&str]) -> bool {
    expr.iter().any(|part| statements.iter().any(|name| part.get(*name).is_some()))
}

fn is_link(left: &Value, key: &str) -> bool {
    left["meta"]["key"] == key
}
