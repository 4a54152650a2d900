//! What a configuration file should be, and what a snapshot keeps of it: what the parsers use. Every
//! other value is masked, because no name tells whether a value is a secret. A file that is not what
//! it should be is not kept at all.
//!
//! Files of lines keep their number of lines, because checks name lines.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::owners::files::known_signs;
use crate::state::cni::{CniConfig, SubnetEnv, USED_KEYS};
use crate::state::kube_proxy::KubeProxyConfig;
use crate::state::ruleset::Ruleset;
use crate::state::tools::MASK;
use crate::yaml;

/// What a configuration file should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileForm {
    /// A `KubeProxyConfiguration`.
    KubeProxy,
    /// The Corefile of nodelocaldns.
    Corefile,
    /// A CNI configuration.
    Cni,
    /// flannel's lease.
    SubnetEnv,
    /// docker's `daemon.json`.
    Docker,
    /// Rules as iptables-save prints them.
    Rules,
    /// A script of nft.
    Nftables,
    /// Lines of `NAME=value`, of which this name is used.
    Settings(&'static str),
    /// resolv.conf(5).
    Resolver,
    /// Flags of a program that holds several components, as YAML.
    Flags,
}

/// The options of docker that are used.
const DOCKER: &[&str] = &["iptables", "ip-masq"];

/// The first words of the lines of a script of nft that are used, and words that lead to a chain.
const NFT: &[&str] = &["table", "chain", "flush", "delete", "include", "}"];
const NFT_JUMPS: &[&str] = &["jump", "goto"];

/// The keywords of resolv.conf(5).
const RESOLVER: &[&str] = &["nameserver", "search", "domain", "options", "sortlist"];

/// The directives of a Corefile whose words are used.
const COREFILE: &[&str] = &["bind", "forward"];

/// The API group of kube-proxy's configuration.
const API_GROUP: &str = "kubeproxy.config.k8s.io/";

impl FileForm {
    /// What is kept of `text`, the text of the file `path`.
    ///
    /// # Errors
    /// Why nothing of it is kept.
    pub fn kept(self, path: &str, text: &str) -> Result<String, String> {
        match self {
            FileForm::KubeProxy => kube_proxy(path, text),
            FileForm::Corefile => corefile(text),
            FileForm::Cni => {
                CniConfig::parse(path, text).map_err(|e| e.cause)?;
                json(text, USED_KEYS)
            }
            FileForm::SubnetEnv => {
                SubnetEnv::parse(path, text).map_err(|e| e.cause)?;
                Ok(whole_lines(text, |line| line.starts_with("FLANNEL_") && !line.contains('#')))
            }
            FileForm::Docker => json(text, DOCKER),
            FileForm::Rules => {
                Ruleset::parse(path, text.into()).map_err(|e| e.cause)?;
                Ok(whole_lines(text, |line| !line.starts_with('#')))
            }
            FileForm::Nftables => Ok(lines(text, |line| {
                let mut words = line.split([' ', '\t', ';']);
                line.split([' ', '\t', ';']).next().is_some_and(|first| NFT.contains(&first))
                    || words.any(|word| NFT_JUMPS.contains(&word))
            })),
            FileForm::Settings(name) => Ok(lines(text, |line| is_setting(line, name))),
            FileForm::Resolver => Ok(lines(text, |line| {
                line.split_whitespace().next().is_some_and(|first| RESOLVER.contains(&first))
            })),
            FileForm::Flags => flags(path, text),
        }
    }
}

/// The lines that are used, without remarks; every other line that is not empty is masked.
fn lines(text: &str, used: impl Fn(&str) -> bool) -> String {
    masked(text, |line| Some(line.split('#').next()?.trim_end()).filter(|rest| used(rest.trim())))
}

/// As [`lines`], for a format in which a `#` may be part of a value.
fn whole_lines(text: &str, used: impl Fn(&str) -> bool) -> String {
    // `str::lines` takes away one carriage return; another would be taken at the next look.
    masked(text, |line| used(line.trim()).then(|| line.trim_end_matches('\r')))
}

/// The text in which `kept` says what is kept of a line; a line of which nothing is kept is masked,
/// unless it is empty.
fn masked<'a>(text: &'a str, kept: impl Fn(&'a str) -> Option<&'a str>) -> String {
    let line = |line: &'a str| match line.trim() {
        "" => "",
        _ => kept(line).unwrap_or("# <masked>"),
    };
    text.lines().map(|text| format!("{}\n", line(text))).collect()
}

/// Whether a line sets `name` to one short word.
fn is_setting(line: &str, name: &str) -> bool {
    let quoted = |c: char| c == '"' || c == '\'' || c == ';' || c.is_whitespace();
    line.split_once('=').is_some_and(|(key, value)| {
        let value = value.trim_matches(quoted);
        key.trim() == name && value.len() < 10 && value.chars().all(|c| c.is_ascii_alphanumeric())
    })
}

/// A JSON object in which the values of all keys but `used` are masked, at any depth.
fn json(text: &str, used: &[&str]) -> Result<String, String> {
    let mut value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if !value.is_object() {
        return Err("it is no JSON object".into());
    }
    mask(&mut value, used);
    serde_json::to_string(&value).map(|text| text + "\n").map_err(|e| e.to_string())
}

/// Masks what is not true, false or empty below each key that is not `used`.
fn mask(value: &mut Value, used: &[&str]) {
    match value {
        Value::Object(members) => {
            members.retain(|key, _| is_key(key));
            for (key, member) in members.iter_mut() {
                match member {
                    Value::Null | Value::Bool(_) => {}
                    member if used.contains(&key.as_str()) => mask(member, used),
                    member => *member = MASK.into(),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| mask(item, used)),
        _ => {}
    }
}

/// Whether a key looks like one, and not like a value.
fn is_key(key: &str) -> bool {
    key.len() <= 64 && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:/".contains(c))
}

/// A `KubeProxyConfiguration` in which all fields that are not used are masked.
fn kube_proxy(path: &str, text: &str) -> Result<String, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct TypeMeta {
        api_version: String,
        kind: String,
    }
    let meta: TypeMeta = yaml::parse(path, text).map_err(|e| e.cause)?;
    if meta.kind != "KubeProxyConfiguration" || !meta.api_version.starts_with(API_GROUP) {
        return Err("it is no KubeProxyConfiguration".into());
    }
    let (before, unused) =
        yaml::parse_with_unused::<KubeProxyConfig>(path, text).map_err(|e| e.cause)?;
    let mut document: yaml::Value = yaml::parse(path, text).map_err(|e| e.cause)?;
    for path in unused {
        if !matches!(&path[..], [key] if key == "apiVersion" || key == "kind") {
            mask_field(&mut document, &path);
        }
    }
    let kept = yaml::render(path, &document).map_err(|e| e.cause)?;
    // Where a text is wanted, `0x10` is kept as 16, and a tag of YAML is lost. Nobody writes either.
    let after = yaml::parse::<KubeProxyConfig>(path, &kept).map_err(|e| e.cause)?;
    if after != before {
        return Err("it would mean something else if it were written anew".into());
    }
    Ok(kept)
}

/// Masks the field at `path`, unless it is empty, true or false.
fn mask_field(document: &mut yaml::Value, path: &[String]) {
    let Some((key, rest)) = path.split_first() else {
        let harmless = match document {
            yaml::Value::Null | yaml::Value::Bool(_) => true,
            yaml::Value::String(text) => text.is_empty(),
            _ => false,
        };
        if !harmless {
            *document = yaml::Value::String(MASK.into());
        }
        return;
    };
    match document {
        yaml::Value::Mapping(fields) if rest.is_empty() && !is_key(key) => {
            fields.remove(key.as_str());
        }
        yaml::Value::Mapping(fields) => {
            if let Some(field) = fields.get_mut(key.as_str()) {
                mask_field(field, rest);
            }
        }
        // A list, or a value under a key that is no text.
        other => *other = yaml::Value::String(MASK.into()),
    }
}

/// The fields of a YAML document that switch a component off.
fn flags(path: &str, text: &str) -> Result<String, String> {
    let programs = &known_signs().map_err(|e| e.cause)?.programs;
    let fields: BTreeMap<String, yaml::Value> = yaml::parse(path, text).map_err(|e| e.cause)?;
    let is_used = |key: &str| programs.iter().any(|p| p.uses_flag(key.trim_end_matches('+')));
    let is_word = |text: &str| text.len() < 20 && text.bytes().all(|b| b.is_ascii_lowercase());
    let kept = fields.into_iter().filter(|(key, value)| match value {
        yaml::Value::Bool(_) => is_used(key),
        yaml::Value::String(text) => is_used(key) && is_word(text),
        _ => false,
    });
    yaml::render(path, &kept.collect::<BTreeMap<_, _>>()).map_err(|e| e.cause)
}

/// A Corefile in which the words of all directives but those in [`COREFILE`] are masked.
fn corefile(text: &str) -> Result<String, String> {
    let mut depth = 0_usize;
    let mut kept = String::new();
    for line in text.lines() {
        let words: Vec<&str> =
            line.split('#').next().unwrap_or_default().split_whitespace().collect();
        let opens = words.last() == Some(&"{");
        let line = match (&words[..], depth) {
            ([], _) => String::new(),
            (["}"], 0) => return Err("it is no Corefile: a block ends that none began".into()),
            (["}"], _) => {
                depth -= 1;
                format!("{}}}", "    ".repeat(depth))
            }
            (_, 0) if !opens => return Err("it is no Corefile: a line in no block".into()),
            (zones, 0) => zones.join(" "),
            ([name, ..], 1) if COREFILE.contains(name) => format!("    {}", words.join(" ")),
            ([name, ..], 1) if is_plugin(name) => {
                let tail = if opens { " {" } else { "" };
                let more = words.len() > 1 + usize::from(opens);
                format!("    {name}{}{tail}", if more { " <masked>" } else { "" })
            }
            _ if opens => "        <masked> {".to_owned(),
            _ => "        <masked>".to_owned(),
        };
        depth += usize::from(opens);
        kept.push_str(&line);
        kept.push('\n');
    }
    match depth {
        0 if kept.contains('{') => Ok(kept),
        _ => Err("it is no Corefile: its blocks do not end".into()),
    }
}

/// Whether a word can be the name of CoreDNS' plugin: `health`, `template`.
fn is_plugin(word: &str) -> bool {
    word.len() < 20
        && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBE_PROXY: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1 # token: s3cret\n\
        kind: KubeProxyConfiguration\nmode: ipvs\nclusterCIDR: 10.244.0.0/16\n\
        clientConnection: {kubeconfig: /k, token: s3cret}\nauthToken: s3cret\nPSK: 3141\n\
        ipvs: {strictARP: true, apiKey: s3cret, scheduler: \"\"}\nprofiling: true\n\
        s3cret=: 1\n";

    #[test]
    fn only_what_is_used_of_kube_proxys_configuration_is_kept() {
        let kept = FileForm::KubeProxy.kept("c", KUBE_PROXY).unwrap();
        assert!(!kept.contains("s3cret") && !kept.contains("3141"), "{kept}");
        let [before, after] = [KUBE_PROXY, &kept].map(|t| KubeProxyConfig::parse("c", t).unwrap());
        assert_eq!(before, after);
        assert!(kept.contains("profiling: true") && kept.contains("apiKey: <masked>"), "{kept}");
        assert_eq!(
            FileForm::KubeProxy.kept("c", &kept).unwrap(),
            kept,
            "the second look is the same"
        );
    }

    #[test]
    fn another_document_is_not_kept() {
        for text in [
            "root:$6$abc:19000:0:99999:7:::\n",
            "mode: ipvs\n",
            "apiVersion: v1\nkind: Config\nusers: []\n",
            "apiVersion: v1\nkind: KubeProxyConfiguration\n",
            "eyJhbGciOiJSUzI1NiJ9.e30.c2ln",
            "K10abc::server:def\n",
            "",
        ] {
            assert!(FileForm::KubeProxy.kept("c", text).is_err(), "{text}");
            assert!(FileForm::Cni.kept("c", text).is_err(), "{text}");
            assert!(FileForm::Docker.kept("c", text).is_err(), "{text}");
            assert!(FileForm::SubnetEnv.kept("c", text).is_err(), "{text}");
            assert!(FileForm::Corefile.kept("c", text).is_err(), "{text}");
        }
        assert!(FileForm::Rules.kept("c", "root:$6$abc:19000:0:99999:7:::\n").is_err());
    }

    #[test]
    fn values_of_json_are_masked_by_their_keys() {
        let text = r#"{"name": "n", "cniVersion": "0.3.1", "plugins": [
            {"type": "calico", "datastore": "s3cret", "policy": {"type": "k8s", "k8s_auth_token": "s3cret"},
             "mtu": 1440, "log": "postgres://u:s3cret@h/", "s3cret value": 1, "nested": [["s3cret"]]},
            {"type": "portmap", "snat": true, "markMasqBit": 13,
             "ipam": {"ranges": [[{"subnet": "10.0.0.0/24", "gateway": "s3cret"}]]}}]}"#;
        let kept = FileForm::Cni.kept("c", text).unwrap();
        assert!(!kept.contains("s3cret"), "{kept}");
        let config = CniConfig::parse("c", &kept).unwrap();
        let before = CniConfig::parse("c", text).unwrap();
        assert_eq!((&config.name, config.portmap()), (&before.name, before.portmap()));
        assert_eq!(config.subnets(), before.subnets());
        let docker = r#"{"iptables": false, "log-opts": {"splunk-token": "s3cret"}, "PSK": 1}"#;
        let kept = FileForm::Docker.kept("d", docker).unwrap();
        assert!(kept.contains("\"iptables\":false") && !kept.contains("s3cret"), "{kept}");
    }

    #[test]
    fn what_would_not_be_read_again_is_not_kept() {
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    featureGates: !t\n";
        assert!(FileForm::KubeProxy.kept("c", text).is_err());
        let number = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                      hostnameOverride: 0x10\n";
        assert!(FileForm::KubeProxy.kept("f", number).is_err());
        let plain = number.replace("0x10", "16");
        assert!(FileForm::KubeProxy.kept("f", &plain).is_ok());
    }

    #[test]
    fn lines_stay_where_they_are() {
        for (form, text, kept) in [
            (
                FileForm::Settings("ENABLED"),
                "# s3cret\n\nENABLED=yes\nLOG = \"s3cret\"\n ENABLED = s3cret/long\n",
                "# <masked>\n\nENABLED=yes\n# <masked>\n# <masked>\n",
            ),
            (FileForm::Settings("ENABLED"), "ENABLED=yes\r\r\n\r\r\n", "ENABLED=yes\n\n"),
            (
                FileForm::Nftables,
                "#!/usr/sbin/nft -f\nflush ruleset\ntable inet filter {\n chain c { # s\n\
                 \x20 ip saddr 10.0.0.1 drop\n  jump KUBE-X\n }\n}\n",
                "# <masked>\nflush ruleset\ntable inet filter {\n chain c {\n\
                 # <masked>\n  jump KUBE-X\n }\n}\n",
            ),
            (
                FileForm::Resolver,
                "# s\nnameserver 10.96.0.10 # s\nsearch a.b\nroot:x\n",
                "# <masked>\nnameserver 10.96.0.10\nsearch a.b\n# <masked>\n",
            ),
            (
                FileForm::Flags,
                "token: s3cret\nflannel-backend: none # s\ndisable-network-policy: \"true\"\n\
                 node-label+: [a=b]\nconfig: K10s3cret::server\ndisable: traefik\n",
                "disable-network-policy: 'true'\nflannel-backend: none\n",
            ),
            (FileForm::Flags, "token: s\n", "{}\n"),
            (
                FileForm::SubnetEnv,
                "FLANNEL_NETWORK=10.244.0.0/16\nSECRET=s\nFLANNEL_SUBNET=10.244.1.1/24\n\
                 FLANNEL_LATER#=s\n",
                "FLANNEL_NETWORK=10.244.0.0/16\n# <masked>\nFLANNEL_SUBNET=10.244.1.1/24\n\
                 # <masked>\n",
            ),
            (
                FileForm::Rules,
                "# s\n*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n",
                "# <masked>\n*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j ACCEPT\nCOMMIT\n",
            ),
            (
                FileForm::Corefile,
                ".:53 {\n    bind 10.0.0.1 # s\n    tls s3cret {\n        key s3cret\n\t} # s\r\r\n\
                 \x20   forward . /etc/resolv.conf\n}\r\n",
                ".:53 {\n    bind 10.0.0.1\n    tls <masked> {\n        <masked>\n    }\n\
                 \x20   forward . /etc/resolv.conf\n}\n",
            ),
        ] {
            assert_eq!(form.kept("f", text).as_deref(), Ok(kept), "{form:?}");
            assert_eq!(form.kept("f", kept).as_deref(), Ok(kept), "{form:?} again");
        }
    }

    #[test]
    fn the_files_of_every_captured_node_are_what_they_should_be() {
        fn check(directory: &std::path::Path, count: &mut usize) {
            for entry in std::fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    check(&path, count);
                    continue;
                }
                let name = path.to_str().unwrap();
                let Some((_, file)) = name.split_once("/files/") else { continue };
                let form = match file {
                    "run/flannel/subnet.env" => FileForm::SubnetEnv,
                    "etc/docker/daemon.json" => FileForm::Docker,
                    "etc/resolv.conf" => FileForm::Resolver,
                    f if f.starts_with("etc/cni/net.d/") => FileForm::Cni,
                    f if f.ends_with("config.conf") => FileForm::KubeProxy,
                    _ => continue,
                };
                let kept = form.kept(name, &std::fs::read_to_string(&path).unwrap());
                assert!(kept.is_ok(), "{name}: {kept:?}");
                *count += 1;
            }
        }
        let mut count = 0;
        check(std::path::Path::new("snapshots"), &mut count);
        assert!(count > 10, "{count}");
    }
}
