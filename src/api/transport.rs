//! Requests to an API server, by HTTPS, with deadlines.

use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, pki_types};
use serde::Deserialize;
use ureq::http::Response;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::access::{ApiAccess, certificates, private_key};
use super::failure::{ApiFailure, ApiRefusal, ApiStatus};
use crate::error::{LONGEST_CAUSE, shortened};
use crate::visible::visible;

/// How long a connection may take until TLS is set up.
const CONNECT: Duration = Duration::from_secs(3);

/// How long one request for one object may take. An API server ends its own after 34 s at most
/// (`--request-timeout` of dry runs and admission webhooks: 30 s at most).
const ONE_DEADLINE: Duration = Duration::from_secs(35);

/// How long a request is made again that the server puts off, all in all; the pause where the server
/// says none, and the longest that it may say.
const PUT_OFF: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How much is read of an answer that says why the server refuses, and of one object, in bytes. No
/// object has more than 1.5 MiB (etcd).
const REFUSAL_LIMIT: u64 = 64 << 10;
const OBJECT_LIMIT: u64 = 4 << 20;

/// A client of one API server, with one set of credentials.
pub struct ApiClient {
    agent: Agent,
    server: String,
    token: Option<String>,
    /// Whose credentials these are.
    whose: String,
    /// When nothing more is waited for.
    until: Option<Instant>,
}

/// What a server says when it refuses (`Status` of k8s.io/apimachinery).
#[derive(Deserialize)]
struct ServerStatus {
    kind: String,
    #[serde(default)]
    message: String,
}

/// A request that changes an object.
pub(super) enum ApiWrite<'a> {
    /// POST of a new object.
    Create(&'a [u8]),
    /// PATCH by a JSON patch (RFC 6902).
    Patch(&'a [u8]),
    /// DELETE with these options.
    Delete(&'a [u8]),
}

impl ApiClient {
    /// A client by `access`. Connects to nothing yet.
    ///
    /// # Errors
    /// [`ApiFailure::Credentials`] for credentials that cannot be used.
    pub fn new(access: &ApiAccess) -> Result<ApiClient, ApiFailure> {
        let provider = Arc::new(ring::default_provider());
        let authorities = certificates(&access.authorities);
        let whose = &access.whose;
        if !holds_authority(&authorities) {
            return Err(unusable("certificate-authority", whose));
        }
        let client = match &access.client {
            None => None,
            Some((certificate, key)) => {
                Some(client_certificate(certificate, key, &provider, whose)?)
            }
        };
        let token = access.token.as_deref().map(|token| token.trim().to_owned());
        let is_visible =
            |token: &String| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        if token.as_ref().is_some_and(|token| !is_visible(token)) {
            return Err(unusable("token", whose));
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
        let server = access.server.trim_end_matches('/').to_owned();
        Ok(ApiClient { agent, server, token, whose: whose.clone(), until: None })
    }

    /// This client, which waits for nothing after `until`.
    #[must_use]
    pub fn until(self, until: Instant) -> ApiClient {
        ApiClient { until: Some(until), ..self }
    }

    /// The body of the reply to `GET path?query`, which must be read within `deadline`.
    ///
    /// # Errors
    /// For a reply with another status than 200, 201 and 202, and without a reply.
    pub(super) fn get(
        &self,
        path: &str,
        query: &[(&str, &str)],
        deadline: Duration,
    ) -> Result<Body, ApiFailure> {
        let deadline = self.within(deadline)?;
        let mut request = self.agent.get(format!("{}{path}", self.server));
        for (key, value) in query {
            request = request.query(key, value);
        }
        if let Some(token) = self.authorization() {
            request = request.header("Authorization", token);
        }
        self.accepted(request.config().timeout_global(Some(deadline)).build().call()?)
    }

    /// The object that is the reply to `GET path`. Waits for a server that puts the request off.
    ///
    /// # Errors
    /// As [`ApiClient::get`], and for a reply that is too large.
    pub(super) fn get_object(&self, path: &str) -> Result<Vec<u8>, ApiFailure> {
        self.patiently(|| self.get(path, &[], ONE_DEADLINE).and_then(whole))
    }

    /// The reply to a change of the object, or the collection of objects, at `path`. Waits for a server
    /// that puts the request off; makes no request again that may have been fulfilled.
    ///
    /// # Errors
    /// As [`ApiClient::get`], and for a reply that is too large.
    pub(super) fn change(
        &self,
        path: &str,
        query: &[(&str, &str)],
        change: &ApiWrite<'_>,
    ) -> Result<Vec<u8>, ApiFailure> {
        let address = format!("{}{path}", self.server);
        self.patiently(|| {
            let (mut request, kind, body) = match change {
                ApiWrite::Create(body) => (self.agent.post(&address), "application/json", body),
                ApiWrite::Patch(body) => {
                    (self.agent.patch(&address), "application/json-patch+json", body)
                }
                ApiWrite::Delete(body) => {
                    (self.agent.delete(&address).force_send_body(), "application/json", body)
                }
            };
            for (key, value) in query {
                request = request.query(key, value);
            }
            if let Some(token) = self.authorization() {
                request = request.header("Authorization", token);
            }
            let request = request.header("Content-Type", kind).header("Accept", "application/json");
            let reply = request
                .config()
                .timeout_global(Some(self.within(ONE_DEADLINE)?))
                .build()
                .send(*body)?;
            self.accepted(reply).and_then(whole)
        })
    }

    /// How much of `deadline` is left before [`ApiClient::until`].
    fn within(&self, deadline: Duration) -> Result<Duration, ApiFailure> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        match left {
            Some(Duration::ZERO) => Err(ApiFailure::Timeout),
            left => Ok(left.map_or(deadline, |left| left.min(deadline))),
        }
    }

    /// Whose credentials it has.
    pub(super) fn whose(&self) -> &str {
        &self.whose
    }

    fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    /// The body of a reply that fulfils the request.
    fn accepted(&self, reply: Response<Body>) -> Result<Body, ApiFailure> {
        let status = match reply.status().as_u16() {
            200..=202 => return Ok(reply.into_body()),
            410 => return Err(ApiFailure::Expired),
            status => ApiStatus::of(status),
        };
        let after = reply.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let retry_after = after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let message = message_of(reply.into_body());
        let whose = self.whose.clone();
        Err(ApiFailure::Refused(ApiRefusal { status, whose, message, retry_after }))
    }

    /// What `request` yields, which is made again while the server puts it off: it has too much to do
    /// (429), or says when to come again.
    fn patiently<T>(
        &self,
        mut request: impl FnMut() -> Result<T, ApiFailure>,
    ) -> Result<T, ApiFailure> {
        let until = Instant::now() + self.within(PUT_OFF)?;
        loop {
            let failure = match request() {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let ApiFailure::Refused(refusal) = &failure else { return Err(failure) };
            let pause = match (refusal.status, refusal.retry_after) {
                (ApiStatus::TooManyRequests, after) => after.unwrap_or(PAUSE),
                (ApiStatus::Other(503), Some(after)) => after,
                _ => return Err(failure),
            };
            let pause = pause.clamp(PAUSE, LONGEST_PAUSE);
            if Instant::now() + pause > until {
                return Err(failure);
            }
            thread::sleep(pause);
        }
    }
}

/// All of a reply that is one object.
fn whole(mut body: Body) -> Result<Vec<u8>, ApiFailure> {
    let mut text = Vec::new();
    body.as_reader().take(OBJECT_LIMIT + 1).read_to_end(&mut text)?;
    if text.len() as u64 > OBJECT_LIMIT { Err(ApiFailure::TooLarge) } else { Ok(text) }
}

/// Why the server refuses, as it says itself; empty if it does not say so in its own form.
fn message_of(mut body: Body) -> String {
    let mut text = Vec::new();
    let read = body.as_reader().take(REFUSAL_LIMIT).read_to_end(&mut text);
    let status = read.ok().and_then(|_| serde_json::from_slice::<ServerStatus>(&text).ok());
    let message = status.filter(|status| status.kind == "Status").map(|status| status.message);
    visible(&shortened(message.unwrap_or_default().trim(), LONGEST_CAUSE)).into_owned()
}

fn unusable(what: &str, whose: &str) -> ApiFailure {
    ApiFailure::Credentials(format!("the {what} of {whose} cannot be used"))
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
    whose: &str,
) -> Result<ClientCert, ApiFailure> {
    let wrong = || unusable("client-certificate", whose);
    let chain = certificates(certificate);
    let key = private_key(key).ok_or_else(|| unusable("client-key", whose))?;
    let der = chain.iter().map(|certificate| CertificateDer::from(certificate.der()).into_owned());
    let der: Vec<CertificateDer<'static>> = der.collect();
    CertifiedKey::from_der(der, key_of(&key).ok_or_else(wrong)?, provider).map_err(|_| wrong())?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

/// A key as rustls has it.
fn key_of(key: &PrivateKey<'static>) -> Option<PrivateKeyDer<'static>> {
    pki_types::PrivateKeyDer::try_from(key.der().to_vec()).ok()
}
