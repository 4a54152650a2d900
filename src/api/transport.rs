//! Requests to an API server, by HTTPS, with deadlines.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, pki_types};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::access::{ApiAccess, certificates, private_key};

/// How long a connection may take until TLS is set up.
const CONNECT: Duration = Duration::from_secs(3);

/// Why a request has no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiFailure {
    /// The credentials cannot be had, or cannot be used.
    Credentials(String),
    /// The server does not answer in time.
    Timeout,
    /// The server cannot be reached, or is not the one that the authorities vouch for.
    Unreachable(String),
    /// The server answers with this status in place of 200.
    Status(u16),
    /// The version from which changes are asked for is forgotten: all is to be listed anew.
    Expired,
    /// The answer is none of an API server.
    Malformed(String),
    /// The answer has more bytes, or more objects, than is read.
    TooLarge,
}

/// As it reads after "because": `the API server answers 403 (is the credential allowed to list?)`.
impl fmt::Display for ApiFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiFailure::Credentials(cause) => f.write_str(cause),
            ApiFailure::Timeout => f.write_str("the API server does not answer in time"),
            ApiFailure::Unreachable(cause) => write!(f, "the API server is not reached: {cause}"),
            ApiFailure::Status(status @ 401) => {
                write!(f, "the API server answers {status}: kube-proxy's credentials do not count")
            }
            ApiFailure::Status(status @ 403) => {
                write!(
                    f,
                    "the API server answers {status}: kube-proxy's credentials permit no list"
                )
            }
            ApiFailure::Status(status) => write!(f, "the API server answers {status}"),
            ApiFailure::Expired => f.write_str("the API server forgets its changes at once"),
            ApiFailure::Malformed(cause) => {
                write!(f, "the API server's answer is no list: {cause}")
            }
            ApiFailure::TooLarge => f.write_str("the API server's answer is too large"),
        }
    }
}

impl From<ureq::Error> for ApiFailure {
    fn from(error: ureq::Error) -> ApiFailure {
        match error {
            ureq::Error::Timeout(_) => ApiFailure::Timeout,
            ureq::Error::Io(e) => e.into(),
            ureq::Error::Rustls(e) => ApiFailure::Unreachable(e.to_string()),
            ureq::Error::HostNotFound => ApiFailure::Unreachable("its name has no address".into()),
            e => ApiFailure::Unreachable(e.to_string()),
        }
    }
}

impl From<io::Error> for ApiFailure {
    fn from(error: io::Error) -> ApiFailure {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ApiFailure::Timeout,
            // ureq wraps its own errors, the deadline's too.
            _ => match error.downcast::<ureq::Error>() {
                Ok(own) => own.into(),
                Err(e) => ApiFailure::Unreachable(e.to_string()),
            },
        }
    }
}

/// A client of one API server, with one set of credentials.
pub(super) struct ApiClient {
    agent: Agent,
    server: String,
    token: Option<String>,
}

impl ApiClient {
    /// A client by `access`. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ApiFailure::Credentials`] for credentials that cannot be used.
    pub(super) fn new(access: &ApiAccess) -> Result<ApiClient, ApiFailure> {
        let provider = Arc::new(ring::default_provider());
        let authorities = certificates(&access.authorities);
        if !holds_authority(&authorities) {
            return Err(unusable("certificate-authority"));
        }
        let client = match &access.client {
            None => None,
            Some((certificate, key)) => Some(client_certificate(certificate, key, &provider)?),
        };
        let token = access.token.as_deref().map(|token| token.trim().to_owned());
        let is_visible =
            |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        if token.as_ref().is_some_and(|token| !is_visible(token)) {
            return Err(unusable("token"));
        }
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::Specific(Arc::new(authorities)))
            .client_cert(client)
            .build();
        // No proxy from the environment and no redirection: the credentials are for this server.
        let agent = Agent::config_builder()
            .tls_config(tls)
            .https_only(true)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .user_agent("proxyshift")
            .build()
            .into();
        Ok(ApiClient { agent, server: access.server.trim_end_matches('/').to_owned(), token })
    }

    /// The body of the reply to `GET path?query`, which must be read within `deadline`.
    ///
    /// # Errors
    /// For a reply with another status than 200, and without a reply.
    pub(super) fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<Body, ApiFailure> {
        let mut request = self.agent.get(format!("{}{path}", self.server));
        for (key, value) in query {
            request = request.query(key, value);
        }
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let reply = request.config().timeout_global(Some(deadline)).build().call()?;
        match reply.status().as_u16() {
            200 => Ok(reply.into_body()),
            410 => Err(ApiFailure::Expired),
            status => Err(ApiFailure::Status(status)),
        }
    }
}

fn unusable(what: &str) -> ApiFailure {
    ApiFailure::Credentials(format!("the {what} of kube-proxy's kubeconfig cannot be used"))
}

/// Whether one of the certificates is an authority's.
fn holds_authority(authorities: &[Certificate<'static>]) -> bool {
    let mut store = RootCertStore::empty();
    let all = authorities.iter().map(|authority| CertificateDer::from(authority.der()));
    store.add_parsable_certificates(all);
    !store.is_empty()
}

/// The client's certificate with its key. ureq panics where the two do not belong together, so this is
/// asked before.
fn client_certificate(
    certificate: &str,
    key: &str,
    provider: &CryptoProvider,
) -> Result<ClientCert, ApiFailure> {
    let wrong = || unusable("client-certificate");
    let chain = certificates(certificate);
    let key = private_key(key).ok_or_else(|| unusable("client-key"))?;
    let der = chain.iter().map(|certificate| CertificateDer::from(certificate.der()).into_owned());
    let der: Vec<CertificateDer<'static>> = der.collect();
    CertifiedKey::from_der(der, key_of(&key).ok_or_else(wrong)?, provider).map_err(|_| wrong())?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

/// A key as rustls has it.
fn key_of(key: &PrivateKey<'static>) -> Option<PrivateKeyDer<'static>> {
    pki_types::PrivateKeyDer::try_from(key.der().to_vec()).ok()
}
