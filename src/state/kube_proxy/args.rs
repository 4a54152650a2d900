//! Parser of kube-proxy's command line.

use super::{KubeProxyConfig, check_bit, parse_mode, parse_word};
use crate::error::{Error, Kind, Result};
use crate::state::lines;

/// The default address of `/healthz` without a configuration file, whatever the address family of
/// `--bind-address`. With a configuration file, the default follows the address family of
/// `bindAddress`.
pub(super) const HEALTHZ_OF_FLAGS: &str = "0.0.0.0:10256";

/// The default address of `/metrics` and `/proxyMode` without a configuration file, whatever the
/// address family of `--bind-address`.
pub(super) const METRICS_OF_FLAGS: &str = "127.0.0.1:10249";

/// kube-proxy's parsed command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The path of the configuration file (`--config`).
    pub config: Option<String>,
    /// Whether kube-proxy only removes its rules and exits (`--cleanup`).
    pub cleanup: bool,
    /// The values of the other flags, in the fields of the configuration file that they correspond
    /// to.
    pub flags: KubeProxyConfig,
}

impl CommandLine {
    /// Parses a command line whose first element is the program. Accepts `--flag=value` and `--flag
    /// value`, and `_` in place of `-`. If a flag is repeated, the last one counts; lists and feature
    /// gates add up, as in kube-proxy. Unknown flags are ignored. Errors name the flag.
    pub fn parse(args: &[impl AsRef<str>]) -> Result<CommandLine> {
        let mut line = CommandLine::default();
        let mut args = args.iter().map(AsRef::as_ref).skip(1);
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--") else { continue };
            if flag.is_empty() {
                break;
            }
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name.replace('_', "-"), Some(value)),
                None => (flag.replace('_', "-"), None),
            };
            let error =
                |cause: String| Error::new(Kind::Parse, format!("kube-proxy's --{name}"), cause);
            if let Some(switch) = line.switch(&name) {
                *switch = boolean(value.unwrap_or("true")).map_err(error)?;
            } else {
                let value = || value.or_else(|| args.next()).ok_or("it has no value".to_owned());
                line.set(&name, value).map_err(error)?;
            }
        }
        let flags = &mut line.flags;
        if flags.is_ipv6() {
            flags.healthz_bind_address.get_or_insert_with(|| HEALTHZ_OF_FLAGS.into());
            flags.metrics_bind_address.get_or_insert_with(|| METRICS_OF_FLAGS.into());
        }
        Ok(line)
    }

    /// The effective settings; `file` is the parsed configuration file that `--config` names. With
    /// a configuration file, kube-proxy ignores all flags but `--hostname-override`. None if the
    /// command line has `--config`, but `file` is `None`.
    pub fn settings(&self, file: Option<&KubeProxyConfig>) -> Option<KubeProxyConfig> {
        match (&self.config, file) {
            (None, _) => Some(self.flags.clone()),
            (Some(_), None) => None,
            (Some(_), Some(file)) => {
                let mut settings = file.clone();
                if self.flags.hostname_override.is_some() {
                    settings.hostname_override.clone_from(&self.flags.hostname_override);
                }
                Some(settings)
            }
        }
    }

    /// The field of a flag that needs no value, and takes one only with `=`; none for other flags.
    fn switch(&mut self, name: &str) -> Option<&mut bool> {
        let flags = &mut self.flags;
        Some(match name {
            "cleanup" => &mut self.cleanup,
            "masquerade-all" => &mut flags.iptables.masquerade_all,
            "ipvs-strict-arp" => &mut flags.ipvs.strict_arp,
            "conntrack-tcp-be-liberal" => &mut flags.conntrack.tcp_be_liberal,
            "iptables-localhost-nodeports" => {
                flags.iptables.localhost_node_ports.get_or_insert_default()
            }
            _ => return None,
        })
    }

    /// Sets the field of a flag that needs a value. An unknown flag does not consume the next
    /// argument as its value.
    fn set<'a>(
        &mut self,
        name: &str,
        value: impl FnOnce() -> Result<&'a str, String>,
    ) -> Result<(), String> {
        let flags = &mut self.flags;
        match name {
            "config" => self.config = parse_word(value()?)?,
            "proxy-mode" => flags.mode = parse_mode(value()?)?,
            "cluster-cidr" => flags.cluster_cidrs = lines::networks(value()?)?,
            "bind-address" => flags.bind_address = parse_word(value()?)?,
            "healthz-bind-address" => flags.healthz_bind_address = parse_word(value()?)?,
            "metrics-bind-address" => flags.metrics_bind_address = parse_word(value()?)?,
            "hostname-override" => flags.hostname_override = parse_word(value()?)?,
            "nodeport-addresses" => {
                flags.node_port_addresses.extend(list(value()?).map(str::to_owned));
            }
            "detect-local-mode" => flags.detect_local_mode = parse_word(value()?)?,
            "feature-gates" => {
                for gate in list(value()?) {
                    let (gate, on) = gate.split_once('=').ok_or(format!("`{gate}` has no `=`"))?;
                    flags.feature_gates.insert(gate.trim().to_owned(), boolean(on.trim())?);
                }
            }
            "iptables-masquerade-bit" => {
                flags.iptables.masquerade_bit = check_bit(parse_word(value()?)?)?;
            }
            "ipvs-scheduler" => flags.ipvs.scheduler = parse_word(value()?)?,
            "ipvs-exclude-cidrs" => flags.ipvs.exclude_cidrs.extend(lines::networks(value()?)?),
            "ipvs-tcp-timeout" => flags.ipvs.tcp_timeout = parse_word(value()?)?,
            "ipvs-tcpfin-timeout" => flags.ipvs.tcp_fin_timeout = parse_word(value()?)?,
            "ipvs-udp-timeout" => flags.ipvs.udp_timeout = parse_word(value()?)?,
            "conntrack-max-per-core" => flags.conntrack.max_per_core = parse_word(value()?)?,
            "conntrack-min" => flags.conntrack.min = parse_word(value()?)?,
            "conntrack-tcp-timeout-established" => {
                flags.conntrack.tcp_established_timeout = parse_word(value()?)?;
            }
            "conntrack-tcp-timeout-close-wait" => {
                flags.conntrack.tcp_close_wait_timeout = parse_word(value()?)?;
            }
            "conntrack-udp-timeout" => flags.conntrack.udp_timeout = parse_word(value()?)?,
            "conntrack-udp-timeout-stream" => {
                flags.conntrack.udp_stream_timeout = parse_word(value()?)?;
            }
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Parses a boolean as Go does.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::kube_proxy::Mode;

    fn parse(line: &str) -> Result<CommandLine> {
        let args: Vec<&str> = line.split(' ').collect();
        CommandLine::parse(&args)
    }

    #[test]
    fn both_forms_of_flags_are_read() {
        let line = parse(
            "/usr/bin/kube-proxy --v=2 --kubeconfig /x --proxy-mode userspace --proxy_mode=ipvs \
             --cluster-cidr 10.244.0.0/16,fd00::/48 --masquerade-all --iptables-masquerade-bit=15 \
             --feature-gates=A=true,B=false --ipvs-strict-arp=false --conntrack-min 0 \
             --ipvs-exclude-cidrs=10.9.0.100/24 --cleanup=F --bind-address :: -- --config=/late",
        )
        .unwrap();
        let flags = &line.flags;
        assert_eq!((line.config.as_deref(), line.cleanup), (None, false));
        assert_eq!(flags.mode, Some(Mode::Ipvs));
        assert_eq!(flags.cluster_cidrs.len(), 2);
        assert!(flags.iptables.masquerade_all && !flags.ipvs.strict_arp);
        assert_eq!(flags.iptables.mark(), 0x8000);
        assert_eq!(flags.feature_gates.get("B"), Some(&false));
        assert_eq!(flags.conntrack.min, Some(0));
        assert_eq!(flags.ipvs.exclude_cidrs, ["10.9.0.0/24".parse().unwrap()]);
        assert_eq!(line.settings(None).as_ref(), Some(flags));
        // `--bind-address ::` does not change the two default addresses, but `bindAddress: ::` in a
        // file does.
        assert_eq!(flags.healthz_address().unwrap().to_string(), "0.0.0.0:10256");
        assert_eq!(flags.metrics_address().unwrap().to_string(), "127.0.0.1:10249");
    }

    #[test]
    fn a_file_overrules_flags() {
        let line = "kube-proxy --config /c --proxy-mode=ipvs --hostname-override=n1 --cleanup";
        let line = parse(line).unwrap();
        assert_eq!((line.config.as_deref(), line.cleanup), (Some("/c"), true));
        assert_eq!(line.settings(None), None);
        let file = KubeProxyConfig { mode: Some(Mode::Nftables), ..KubeProxyConfig::default() };
        let settings = line.settings(Some(&file)).unwrap();
        assert_eq!(settings.mode, Some(Mode::Nftables));
        assert_eq!(settings.hostname_override.as_deref(), Some("n1"));
    }

    #[test]
    fn repeated_lists_add_up_and_repeated_texts_do_not() {
        let line = parse(
            "kube-proxy --ipvs-exclude-cidrs=10.0.0.0/24,10.1.0.0/24 --ipvs-exclude-cidrs 10.2.0.0/24 \
             --nodeport-addresses=10.0.0.0/8 --nodeport-addresses=fd00::/64 --cluster-cidr=10.0.0.0/16 \
             --cluster-cidr=10.3.0.0/16 --feature-gates=A=true --feature-gates=B=true,A=false",
        );
        let flags = line.unwrap().flags;
        let shown =
            |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let excluded = shown(&flags.ipvs.exclude_cidrs);
        assert_eq!(excluded, ["10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24"]);
        assert_eq!(flags.node_port_addresses, ["10.0.0.0/8", "fd00::/64"]);
        assert_eq!(shown(&flags.cluster_cidrs), ["10.3.0.0/16"]);
        assert_eq!(flags.feature_gates, [("A".into(), false), ("B".into(), true)].into());
    }

    #[test]
    fn errors_name_the_flag() {
        for (line, expected) in [
            ("kube-proxy --config", "kube-proxy's --config: it has no value"),
            (
                "kube-proxy --proxy-mode=ipvz",
                "kube-proxy's --proxy-mode: kube-proxy has no mode `ipvz`",
            ),
            (
                "kube-proxy --iptables-masquerade-bit=32",
                "kube-proxy's --iptables-masquerade-bit: a",
            ),
            ("kube-proxy --cleanup=maybe", "kube-proxy's --cleanup: `maybe` is neither"),
            ("kube-proxy --feature-gates A", "kube-proxy's --feature-gates: `A` has no `=`"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
