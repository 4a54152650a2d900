//! What it takes to reach an API server: its address, and the credentials, as text.

use ureq::tls::{Certificate, PemItem, PrivateKey, parse_pem};

/// Where an API server is, whom it trusts, and the caller's credentials. Has no `Debug`, so that no
/// log gets a key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiAccess {
    /// Whose credentials these are, as an error names it: "kube-proxy's kubeconfig".
    pub whose: String,
    /// The address of the API server: `https://10.20.0.1:6443`.
    pub server: String,
    /// The certificates of the authorities that may sign the server's, as PEM.
    pub authorities: String,
    /// The client's certificate and key, as PEM.
    pub client: Option<(String, String)>,
    /// The client's token.
    pub token: Option<String>,
}

/// The certificates in a text.
pub(super) fn certificates(text: &str) -> Vec<Certificate<'static>> {
    let items = parse_pem(text.as_bytes()).flatten();
    let certificates = items.filter_map(|item| match item {
        PemItem::Certificate(certificate) => Some(certificate),
        _ => None,
    });
    certificates.collect()
}

/// The first private key in a text.
pub(super) fn private_key(text: &str) -> Option<PrivateKey<'static>> {
    parse_pem(text.as_bytes()).flatten().find_map(|item| match item {
        PemItem::PrivateKey(key) => Some(key),
        _ => None,
    })
}
