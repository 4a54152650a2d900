//! Parses a kubeconfig: which API server, whom it trusts, and by what it knows the caller.
//!
//! No error has a word of the file but the names of its keys, because the file holds secrets.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::error::{Error, Kind, Result};
use crate::yaml;

/// A certificate, a key or a token: in the kubeconfig itself, or in a file of its own.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    /// Its text.
    Inline(String),
    /// The path of the file that has it, which may be relative to the kubeconfig's folder.
    File(PathBuf),
}

/// One context of a kubeconfig.
#[derive(Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    /// The address of the API server: `https://10.20.0.1:6443`.
    pub server: String,
    /// The certificates of the authorities that may sign the server's.
    pub authorities: Material,
    /// The client's certificate and its key, if it has one.
    pub client: Option<(Material, Material)>,
    /// The client's token, if it has one.
    pub token: Option<Material>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Document {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: ContextOfUser,
}

#[derive(Deserialize)]
struct ContextOfUser {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    #[serde(default, rename = "extensions")]
    _extensions: IgnoredAny,
    #[serde(default, rename = "disable-compression")]
    _disable_compression: IgnoredAny,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    #[serde(default, rename = "extensions")]
    _extensions: IgnoredAny,
    #[serde(flatten)]
    others: BTreeMap<String, IgnoredAny>,
}

impl Kubeconfig {
    /// Parses the kubeconfig of the file `name`: its context `context`, or its current one.
    ///
    /// # Errors
    /// [`Kind::Parse`] for what is no kubeconfig, and for one that asks for what is not supported: a
    /// program that gives the credentials, no verification of the server, a proxy.
    pub fn parse(name: &str, text: &str, context: Option<&str>) -> Result<Kubeconfig> {
        let refused = |cause: String| Error::new(Kind::Parse, name, cause);
        let document: Document =
            yaml::parse(name, text).map_err(|_| refused("it is no kubeconfig".into()))?;
        let wanted = context.unwrap_or(&document.current_context);
        let found = document.contexts.into_iter().find(|c| c.name == *wanted);
        let none = || match context {
            Some(_) => refused("it has no context of that name".into()),
            None => refused("it has no context of its `current-context`".into()),
        };
        let context = found.ok_or_else(none)?.context;
        let cluster = document.clusters.into_iter().find(|c| c.name == context.cluster);
        let cluster = cluster.ok_or_else(|| refused("its context has no cluster".into()))?.cluster;
        let user = document.users.into_iter().find(|user| user.name == context.user);
        let user = user.ok_or_else(|| refused("its context has no user".into()))?.user;
        let unsupported = |key: &str| refused(format!("`{key}` is not supported"));
        if let Some(key) = cluster.others.keys().chain(user.others.keys()).next() {
            return Err(unsupported(key));
        }
        if cluster.insecure_skip_tls_verify {
            return Err(unsupported("insecure-skip-tls-verify"));
        }
        if !cluster.server.starts_with("https://") {
            return Err(refused("its server has no address that begins with https://".into()));
        }
        let of = |key: &str, data: Option<String>, file: Option<PathBuf>| match (data, file) {
            (Some(data), _) if !data.is_empty() => {
                let text = STANDARD.decode(data.trim()).ok();
                let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
                let text = text.ok_or_else(|| refused(format!("its `{key}-data` is no text")))?;
                Ok(Some(Material::Inline(text)))
            }
            (_, file) => Ok(file.filter(|path| !path.as_os_str().is_empty()).map(Material::File)),
        };
        let authorities = of(
            "certificate-authority",
            cluster.certificate_authority_data,
            cluster.certificate_authority,
        )?
        .ok_or_else(|| refused("it names no certificate-authority".into()))?;
        let certificate =
            of("client-certificate", user.client_certificate_data, user.client_certificate)?;
        let key = of("client-key", user.client_key_data, user.client_key)?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(refused("it has a client's certificate or its key alone".into())),
        };
        // Of both, the file counts (client-go).
        let file = user.token_file.filter(|path| !path.as_os_str().is_empty());
        let inline = || user.token.filter(|token| !token.is_empty()).map(Material::Inline);
        let token = file.map(Material::File).or_else(inline);
        Ok(Kubeconfig { server: cluster.server, authorities, client, token })
    }

    /// The files that have what the kubeconfig has not.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let client = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
        let all = [&self.authorities].into_iter().chain(client).chain(&self.token);
        all.filter_map(|material| match material {
            Material::File(path) => Some(path),
            Material::Inline(_) => None,
        })
    }
}

/// The address of the API server in the current context of a kubeconfig: `https://10.20.0.1:6443`, without
/// what may follow it or stand before it. None for what is no kubeconfig. The rest may be what
/// [`Kubeconfig::parse`] does not support.
pub fn server_of(text: &str) -> Option<String> {
    let document: Document = yaml::parse("kubeconfig", text).ok()?;
    let current = document.current_context;
    let context = document.contexts.into_iter().find(|context| context.name == current)?.context;
    let cluster = document.clusters.into_iter().find(|cluster| cluster.name == context.cluster)?;
    let (scheme, rest) = cluster.cluster.server.split_once("://")?;
    let place = rest.split(['/', '?', '#']).next()?;
    let host = place.rsplit_once('@').map_or(place, |(_, host)| host);
    let is_plain =
        |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_[]".contains(&b));
    let is_one = ["http", "https"].contains(&scheme) && (1..=LONGEST_HOST).contains(&host.len());
    (is_one && is_plain(host)).then(|| format!("{scheme}://{host}"))
}

/// The longest name of a host with a port.
const LONGEST_HOST: usize = 260;

#[cfg(test)]
mod tests {
    use super::*;

    /// A kubeconfig with these lines of its cluster and of its user.
    fn with(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: one\npreferences: {{}}\n\
             clusters:\n- name: other\n  cluster: {{server: 'http://x', proxy-url: y}}\n\
             - name: here\n  cluster: {{{cluster}}}\n\
             contexts:\n- name: one\n  context: {{cluster: here, user: me, namespace: x}}\n\
             users:\n- name: me\n  user: {{{user}}}\n"
        )
    }

    fn parse(cluster: &str, user: &str) -> Result<Kubeconfig> {
        Kubeconfig::parse("kubeconfig.conf", &with(cluster, user), None)
    }

    const SERVER: &str = "server: 'https://10.20.0.1:6443'";

    #[test]
    fn credentials_are_inline_or_in_files() {
        let data = STANDARD.encode("-----BEGIN");
        let cluster = format!("{SERVER}, certificate-authority-data: {data}, extensions: []");
        let found = parse(&cluster, "client-certificate: /a.crt, client-key: b.key").unwrap();
        assert_eq!(found.server, "https://10.20.0.1:6443");
        assert!(found.authorities == Material::Inline("-----BEGIN".into()));
        let files: Vec<String> = found.files().map(|path| path.display().to_string()).collect();
        assert_eq!(files, ["/a.crt", "b.key"]);
        let cluster = format!("{SERVER}, certificate-authority: /ca.crt");
        let both = parse(&cluster, "token: abc, tokenFile: /token").unwrap();
        assert!(both.token == Some(Material::File("/token".into())) && both.client.is_none());
        let inline = parse(&cluster, "token: abc").unwrap();
        assert!(inline.token == Some(Material::Inline("abc".into())));
    }

    #[test]
    fn another_context_than_the_current_one_is_chosen_by_name() {
        let cluster = format!("{SERVER}, certificate-authority: /ca.crt");
        let text = with(&cluster, "token: abc").replace(
            "contexts:\n",
            "contexts:\n- name: two\n  context: {cluster: here, user: nobody}\n",
        );
        let of = |context| Kubeconfig::parse("k", &text, context).map_err(|e| e.to_string());
        assert!(of(None).is_ok() && of(Some("one")).is_ok());
        assert!(of(Some("two")).is_err_and(|e| e.contains("no user")));
        assert!(of(Some("three")).is_err_and(|e| e.contains("no context of that name")));
    }

    #[test]
    fn nothing_but_the_address_of_a_server_is_kept() {
        for (server, user, address) in [
            (SERVER, "exec: {command: x}", Some("https://10.20.0.1:6443")),
            (
                "server: 'https://a:s3cret@[fd00::1]:6443/k8s?s3cret'",
                "",
                Some("https://[fd00::1]:6443"),
            ),
            ("server: 'http://api.example'", "token: x", Some("http://api.example")),
            ("server: 's3cret'", "", None),
            ("server: 'https://a b'", "", None),
        ] {
            assert_eq!(server_of(&with(server, user)).as_deref(), address, "{server}");
        }
        assert_eq!(server_of("s3cret"), None);
    }

    #[test]
    fn what_is_not_supported_is_named_and_no_secret_is() {
        let (secret, server) = ("s3cret", format!("{SERVER}, certificate-authority: /ca"));
        for (cluster, user, cause) in [
            (server.as_str(), "exec: {command: s3cret}", "`exec`"),
            (&server, "auth-provider: {name: s3cret}", "`auth-provider`"),
            (&server, "username: a, password: s3cret", "`password`"),
            (&server, "client-certificate: /a", "alone"),
            (&server, "client-key-data: s3cret, client-certificate: /a", "`client-key-data`"),
            (&server, "token: [s3cret]", "no kubeconfig"),
            (&format!("{server}, proxy-url: 's3cret'"), "token: a", "`proxy-url`"),
            (&format!("{server}, tls-server-name: s3cret"), "token: a", "`tls-server-name`"),
            (
                &format!("{server}, insecure-skip-tls-verify: true"),
                "",
                "`insecure-skip-tls-verify`",
            ),
            (SERVER, "token: s3cret", "certificate-authority"),
            ("server: 'http://s3cret', certificate-authority: /ca", "token: a", "https://"),
            ("server: [s3cret]", "", "no kubeconfig"),
        ] {
            let Err(error) = parse(cluster, user) else { panic!("{cluster} {user}") };
            let text = error.to_string();
            assert!(text.contains(cause) && !text.contains(secret), "{text}");
        }
        for text in ["", "s3cret", "current-context: x\n", "current-context: ''\n"] {
            let Err(error) = Kubeconfig::parse("k", text, None) else { panic!("{text}") };
            assert!(!error.to_string().contains(secret), "{error}");
        }
    }
}
