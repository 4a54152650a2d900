//! What it takes to reach an API server: its address, and the credentials, as text.

use ureq::tls::{Certificate, PemItem, PrivateKey, parse_pem};

/// Where an API server is, whom it trusts, and the caller's credentials. Has no `Debug`, so that no
/// log gets a key.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiAccess {
    /// Whose credentials these are, as an error names it: the path of the kubeconfig.
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

/// The rest of the user's name in a client's certificate that begins with `prefix`. A server takes the
/// common name of the certificate's subject for the user's name.
pub fn client_name(certificate: &str, prefix: &str) -> Option<String> {
    let own = certificates(certificate).into_iter().next()?;
    let mut rest = own.der();
    // Not parsed: the issuer's name comes first, and does not begin so.
    while let Some(at) = rest.windows(COMMON_NAME.len()).position(|bytes| bytes == COMMON_NAME) {
        rest = &rest[at + COMMON_NAME.len()..];
        let [_, length @ 0..128, value @ ..] = rest else { continue };
        let value = value.get(..usize::from(*length)).and_then(|v| std::str::from_utf8(v).ok());
        if let Some(name) = value.and_then(|value| value.strip_prefix(prefix)) {
            return Some(name.to_owned());
        }
    }
    None
}

/// The object identifier of a common name (2.5.4.3), as DER has it.
const COMMON_NAME: [u8; 5] = [6, 3, 0x55, 4, 3];

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate that openssl made: issuer `CN=kubernetes`, subject `O=system:nodes,
    /// CN=system:node:worker-1.example`.
    const OF_A_NODE: &str = "-----BEGIN CERTIFICATE-----\n\
        MIIBTTCB9AIUXLOW9yY93XMJ+lPn/IzVMn3PKqMwCgYIKoZIzj0EAwIwFTETMBEG\n\
        A1UEAwwKa3ViZXJuZXRlczAeFw0yNjEyMDEwNjM4NTlaFw0zNjExMjgwNjM4NTla\n\
        MD4xFTATBgNVBAoMDHN5c3RlbTpub2RlczElMCMGA1UEAwwcc3lzdGVtOm5vZGU6\n\
        d29ya2VyLTEuZXhhbXBsZTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCQ+t43S\n\
        6d2jBramu7e7RRpW3Ya+6VQ1AL6i3EKVOGvIlP5kU71opn7M9FAGwccPVZ/27zJv\n\
        7oSkNLCXfIKfvU0wCgYIKoZIzj0EAwIDSAAwRQIhANmcbcbsv1CLKU70g0gKZ7rR\n\
        Ha+9ZQqFgHP1nk8mwq2wAiBKHfx9dx2LmcBypCHIvYVhPugSYw2KqfMtMni87zEp\n\
        jQ==\n\
        -----END CERTIFICATE-----";

    #[test]
    fn a_node_is_named_by_its_certificate() {
        let name = |prefix| client_name(OF_A_NODE, prefix);
        assert_eq!(name("system:node:").as_deref(), Some("worker-1.example"));
        assert_eq!(name("kubernetes").as_deref(), Some(""));
        assert_eq!(name("system:nodes"), None, "that is the organisation");
        assert_eq!(client_name("", "system:node:"), None);
        assert_eq!(client_name(&OF_A_NODE[..100], "system:node:"), None);
    }
}
