//! Turns kube-proxy's command line into an equivalent configuration file.
//!
//! Refuses arguments that have no equivalent, because a file that means almost the same as the
//! command line would be worse than no file.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::args::{HEALTHZ_OF_FLAGS, METRICS_OF_FLAGS, boolean, list};
use super::flags::{RetiredFlag, heeded_beside_config, is_of_the_log, retired_flag};
use super::{KubeProxyConfig, Mode, parse_mode};
use crate::error::{Error, Kind, Result};
use crate::yaml;

/// A generated configuration file, and the flags that cannot be expressed in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedConfig {
    /// The text of the configuration file.
    pub text: String,
    /// Flags without a field in the configuration file, which remain arguments beside `--config`.
    pub remaining_flags: Vec<String>,
}

/// The form that a flag's value takes in the configuration file.
#[derive(Clone, Copy, PartialEq)]
enum Form {
    Text,
    Number,
    Switch,
    List,
    Gates,
    /// An address, to which this port is added if the flag's value has no port.
    Address(u16),
}
use Form::{Address, Gates, List, Number, Switch, Text};

/// Each flag, its field in the configuration file, and the form of its value there.
const FLAGS: &[(&str, &str, Form)] = &[
    ("proxy-mode", "mode", Text),
    ("cluster-cidr", "clusterCIDR", Text),
    ("bind-address", "bindAddress", Text),
    ("bind-address-hard-fail", "bindAddressHardFail", Switch),
    ("healthz-bind-address", "healthzBindAddress", Address(10256)),
    ("metrics-bind-address", "metricsBindAddress", Address(10249)),
    ("hostname-override", "hostnameOverride", Text),
    ("nodeport-addresses", "nodePortAddresses", List),
    ("detect-local-mode", "detectLocalMode", Text),
    ("pod-bridge-interface", "detectLocal.bridgeInterface", Text),
    ("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", Text),
    ("feature-gates", "featureGates", Gates),
    ("config-sync-period", "configSyncPeriod", Text),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("profiling", "enableProfiling", Switch),
    ("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", Text),
    ("kubeconfig", "clientConnection.kubeconfig", Text),
    ("kube-api-content-type", "clientConnection.contentType", Text),
    ("kube-api-qps", "clientConnection.qps", Number),
    ("kube-api-burst", "clientConnection.burst", Number),
    ("masquerade-all", "iptables.masqueradeAll", Switch),
    ("iptables-masquerade-bit", "iptables.masqueradeBit", Number),
    ("iptables-sync-period", "iptables.syncPeriod", Text),
    ("iptables-min-sync-period", "iptables.minSyncPeriod", Text),
    ("iptables-localhost-nodeports", "iptables.localhostNodePorts", Switch),
    ("ipvs-scheduler", "ipvs.scheduler", Text),
    ("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", List),
    ("ipvs-strict-arp", "ipvs.strictARP", Switch),
    ("ipvs-sync-period", "ipvs.syncPeriod", Text),
    ("ipvs-min-sync-period", "ipvs.minSyncPeriod", Text),
    ("ipvs-tcp-timeout", "ipvs.tcpTimeout", Text),
    ("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", Text),
    ("ipvs-udp-timeout", "ipvs.udpTimeout", Text),
    ("conntrack-max-per-core", "conntrack.maxPerCore", Number),
    ("conntrack-min", "conntrack.min", Number),
    ("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", Switch),
    ("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", Text),
    ("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", Text),
    ("conntrack-udp-timeout", "conntrack.udpTimeout", Text),
    ("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", Text),
];

/// The flags of one value that are empty by default: an empty value says what no flag and no field says.
/// Source: `AddFlags` of cmd/kube-proxy/app/options.go in 1.20.2 and 1.37.2.
const EMPTY_BY_DEFAULT: &[&str] = &[
    "proxy-mode",
    "cluster-cidr",
    "hostname-override",
    "detect-local-mode",
    "pod-bridge-interface",
    "pod-interface-name-prefix",
    "feature-gates",
    "show-hidden-metrics-for-version",
    "kubeconfig",
    "ipvs-scheduler",
];

/// Whether the flag makes kube-proxy do something and end, or not at all.
fn is_action(name: &str) -> bool {
    ["cleanup", "init-only", "version", "help", "windows-service"].contains(&name)
}

/// Whether kube-proxy has a flag `name` whose value is used here. None of these values is a secret.
/// With the flags of [`retired_flag`], these are all flags of the newest known kube-proxy.
pub fn is_flag(name: &str) -> bool {
    heeded_beside_config(name) || FLAGS.iter().any(|(flag, ..)| *flag == name)
}

/// Turns a command line whose first element is the program into a `KubeProxyConfiguration`.
///
/// # Errors
/// [`Kind::Usage`] with the argument that is unknown, has no equivalent in a file, or makes the
/// command line meaningless.
pub fn flags_to_config(args: &[String]) -> Result<GeneratedConfig> {
    let gone = args.iter().filter_map(|arg| Some((arg.as_str(), gone_flag(arg)?)));
    let gone: Vec<(&str, &RetiredFlag)> = gone.collect();
    if !gone.is_empty() {
        return Err(gone_flags(&gone));
    }
    let mut conversion = Conversion::default();
    let mut rest = args.iter().skip(1);
    while let Some(arg) = rest.next() {
        conversion.argument(arg, &mut rest)?;
    }
    let userspace = conversion.fields.get("mode").is_some_and(|m| m == "userspace");
    let nftables = conversion.fields.get("mode").is_some_and(|m| m == "nftables");
    if userspace {
        return Err(refused(
            "--proxy-mode=userspace",
            "kube-proxy has had no such mode since 1.26",
        ));
    }
    if nftables && conversion.fields.contains_key("iptables") {
        // kube-proxy versions differ in whether the flags of iptables mode count in nftables mode.
        return Err(refused("--proxy-mode=nftables", "flags of iptables mode beside it")
            .hint("take --masquerade-all and --iptables-… out, or write the nftables section"));
    }
    conversion.addresses_of_flags();
    let mut document = Map::new();
    document.insert("apiVersion".into(), json!("kubeproxy.config.k8s.io/v1alpha1"));
    document.insert("kind".into(), json!("KubeProxyConfiguration"));
    document.append(&mut conversion.fields);
    let text = yaml::render("KubeProxyConfiguration", &document)?;
    // A text that this parser refuses would be refused by kube-proxy too.
    KubeProxyConfig::parse("the configuration", &text)?;
    Ok(GeneratedConfig { text, remaining_flags: conversion.remaining_flags })
}

/// What a capture has in place of a value that may be a secret.
const MASKED: &str = "<masked>";

#[derive(Default)]
struct Conversion {
    fields: Map<String, Value>,
    remaining_flags: Vec<String>,
    lists: BTreeSet<String>,
}

/// The next argument, which is the value of `flag`. kube-proxy takes one that looks like a flag as well;
/// but then a value was forgotten, and the next reader takes that flag for what it looks like.
fn value_of<'a>(flag: &str, rest: &mut impl Iterator<Item = &'a String>) -> Result<String> {
    match rest.next() {
        Some(value) if !value.starts_with("--") => Ok(value.clone()),
        Some(value) => Err(refused(flag, &format!("it has no value but `{value}`"))),
        None => Err(refused(flag, "it has no value")),
    }
}

impl Conversion {
    fn argument<'a>(
        &mut self,
        arg: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<()> {
        let masked = || refused(arg, "its value was masked when the node was captured");
        if arg == "-v" {
            let value = value_of(arg, rest)?;
            self.remaining_flags.push(format!("--v={value}"));
            return Ok(());
        }
        if let Some(level) = arg.strip_prefix("-v=") {
            self.remaining_flags.push(format!("--v={level}"));
            return Ok(());
        }
        let Some(flag) = arg.strip_prefix("--").filter(|f| !f.is_empty()) else {
            let unknown = || refused(arg, "not a flag that is known here");
            return Err(if arg.contains(MASKED) { masked() } else { unknown() });
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.replace('_', "-"), Some(value.to_owned())),
            None => (flag.replace('_', "-"), None),
        };
        if arg.contains(MASKED) {
            return Err(masked());
        }
        if is_of_the_log(&name) || name == "master" {
            return self.keep(&name, value, rest);
        }
        match name.as_str() {
            // Off is what they are without a word. The first cleaned up as it started in old
            // versions unless it was switched off: kube-proxy obeys it beside a file too.
            "cleanup-ipvs" if value.as_deref().is_some_and(|v| boolean(v) == Ok(false)) => {
                return self.keep(&name, value, rest);
            }
            _ if is_action(&name) && value.as_deref().is_some_and(|v| boolean(v) == Ok(false)) => {
                return Ok(());
            }
            "config" | "write-config-to" if value.as_deref() == Some("") => return Ok(()),
            "config" => return Err(refused(arg, "it has a configuration file already")),
            "cleanup" | "cleanup-ipvs" => {
                return Err(refused(
                    arg,
                    "it cleans up, or did in old versions: no file says that",
                ));
            }
            "healthz-port" | "metrics-port" => {
                let instead = name.replace("port", "bind-address");
                return Err(refused(arg, "deprecated; what it means depends on the version")
                    .hint(format!("give --{instead}=ADDRESS:PORT in its place")));
            }
            _ => {}
        }
        let known = FLAGS.iter().find(|(flag, ..)| *flag == name);
        let Some((_, path, form)) = known else {
            return Err(refused(arg, "not a flag that is known here")
                .hint("`kube-proxy --write-config-to FILE` with the same flags knows its own"));
        };
        let value = match (value, form) {
            (Some(value), _) => value,
            (None, Switch) => "true".into(),
            (None, _) => value_of(&format!("--{name}"), rest)?,
        };
        if matches!(form, List | Gates) && !self.lists.insert(name.clone()) {
            return Err(refused(&format!("--{name}"), "given twice: give it once, with commas"));
        }
        if value.is_empty() && EMPTY_BY_DEFAULT.contains(&name.as_str()) {
            self.take(path);
            return Ok(());
        }
        let value = config_value(&name, &value, *form)
            .map_err(|cause| refused(&format!("--{name}={value}"), &cause))?;
        self.put(path, value);
        Ok(())
    }

    /// Keeps a flag that has no field in the configuration file as an argument.
    fn keep<'a>(
        &mut self,
        name: &str,
        value: Option<String>,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<()> {
        const SWITCHES: [&str; 6] = [
            "logtostderr",
            "alsologtostderr",
            "skip-headers",
            "skip-log-headers",
            "add-dir-header",
            "one-output",
        ];
        let value = match value {
            Some(value) => value,
            None if SWITCHES.contains(&name) => "true".into(),
            None => value_of(&format!("--{name}"), rest)?,
        };
        self.remaining_flags.push(format!("--{name}={value}"));
        Ok(())
    }

    /// Writes the flags' default addresses into the file if `bindAddress` is an IPv6 address,
    /// because the file's own defaults would then be IPv6 addresses.
    fn addresses_of_flags(&mut self) {
        let address = self.fields.get("bindAddress").and_then(Value::as_str);
        if address.is_some_and(|a| a.parse().is_ok_and(|ip: IpAddr| ip.is_ipv6())) {
            for (field, address) in
                [("healthzBindAddress", HEALTHZ_OF_FLAGS), ("metricsBindAddress", METRICS_OF_FLAGS)]
            {
                self.fields.entry(field).or_insert_with(|| json!(address));
            }
        }
    }

    /// Removes a field that an earlier flag of the same name has set.
    fn take(&mut self, path: &str) {
        match path.split_once('.') {
            None => {
                self.fields.shift_remove(path);
            }
            Some((section, field)) => {
                if let Some(Value::Object(fields)) = self.fields.get_mut(section) {
                    fields.shift_remove(field);
                }
            }
        }
    }

    /// Sets a field of the file; `path` is `section.field` or `field`.
    fn put(&mut self, path: &str, value: Value) {
        match path.split_once('.') {
            None => {
                self.fields.insert(path.into(), value);
            }
            Some((section, field)) => {
                let section = self.fields.entry(section).or_insert_with(|| json!({}));
                section[field] = value;
            }
        }
    }
}

/// A flag's value in the form of the configuration file, or the reason why the file cannot hold it.
fn config_value(name: &str, value: &str, form: Form) -> Result<Value, String> {
    if name == "proxy-mode" {
        parse_mode(value)?.map(Mode::name);
    }
    Ok(match form {
        // In a file an empty text means the default, but as a flag it disables a feature.
        Text | Address(_) if value.is_empty() => {
            return Err("an empty value, which a file cannot say".into());
        }
        Text => json!(value),
        Number => match value.parse::<i64>() {
            Ok(number) => json!(number),
            Err(_) => json!(value.parse::<f64>().map_err(|_| "not a number")?),
        },
        Switch => json!(boolean(value)?),
        List => json!(list(value).collect::<Vec<_>>()),
        Gates => {
            let mut gates = Map::new();
            for gate in list(value) {
                let (gate, on) = gate.split_once('=').ok_or(format!("`{gate}` has no `=`"))?;
                gates.insert(gate.trim().into(), json!(boolean(on.trim())?));
            }
            Value::Object(gates)
        }
        Address(port) => json!(
            super::address(Some(value), [0u8; 4].into(), port)
                .ok_or("not an address, with or without a port")?
                .to_string()
        ),
    })
}

/// The flag of an argument, if no kube-proxy of today has it and no file a field for it.
fn gone_flag(arg: &str) -> Option<&'static RetiredFlag> {
    let flag = arg.strip_prefix("--")?;
    let name = flag.split_once('=').map_or(flag, |(name, _)| name).replace('_', "-");
    retired_flag(&name).filter(|flag| flag.gone.is_some() && !is_flag(&name))
}

/// The error for arguments whose flags kube-proxy no longer has.
fn gone_flags(gone: &[(&str, &RetiredFlag)]) -> Error {
    let args: Vec<&str> = gone.iter().map(|(arg, _)| *arg).collect();
    let versions: BTreeSet<u32> = gone.iter().filter_map(|(_, flag)| flag.gone).collect();
    let versions: Vec<String> = versions.iter().map(|minor| format!("1.{minor}")).collect();
    let which = if gone.len() == 1 { "no such flag" } else { "no such flags" };
    let cause = format!(
        "kube-proxy from {} on has {which}, and a file no such field",
        versions.join(" and ")
    );
    let out = gone.iter().map(|(_, RetiredFlag { name, instead, .. })| match *instead {
        "" => format!("leave --{name} out"),
        instead => format!("leave --{name} out, or give {instead}"),
    });
    refused(&args.join(" "), &cause).hint(out.collect::<Vec<_>>().join("; "))
}

fn refused(argument: &str, cause: &str) -> Error {
    Error::new(Kind::Usage, format!("kube-proxy's {argument}"), cause)
}

#[cfg(test)]
mod tests;
