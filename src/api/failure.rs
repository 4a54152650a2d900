//! Why a request to the API server has no use.

use std::fmt;
use std::io;
use std::time::Duration;

/// Why a request has no use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiFailure {
    /// The credentials cannot be had, or cannot be used.
    Credentials(String),
    /// The server does not answer in time.
    Timeout,
    /// The server cannot be reached, or is not the one that the authorities vouch for.
    Unreachable(String),
    /// The server refuses the request.
    Refused(ApiRefusal),
    /// The version from which changes are asked for is forgotten: all is to be listed anew.
    Expired,
    /// The answer is none of an API server.
    Malformed(String),
    /// The answer has more bytes, or more objects, than is read.
    TooLarge,
}

/// A request that the server has refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRefusal {
    /// How.
    pub status: ApiStatus,
    /// Whose credentials the request had: "the kubelet".
    pub whose: String,
    /// What the server says of it; empty if it says nothing. Safe for a terminal.
    pub message: String,
    /// When the server wants to be asked again, if it says so.
    pub(super) retry_after: Option<Duration>,
}

/// How a server refuses: the statuses of HTTP, as the API server means them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiStatus {
    /// 401: it does not know the caller.
    Unauthorized,
    /// 403: the caller has not the right, or admission denies it.
    Forbidden,
    /// 404: there is no such object.
    NotFound,
    /// 409: the object is there already, or is another than the one that was meant.
    Conflict,
    /// 422: the object is invalid, or a patch's test failed.
    Invalid,
    /// 429: too many requests, or a disruption budget.
    TooManyRequests,
    /// Any other.
    Other(u16),
}

impl ApiStatus {
    /// What the number means.
    pub(super) fn of(number: u16) -> ApiStatus {
        match number {
            401 => ApiStatus::Unauthorized,
            403 => ApiStatus::Forbidden,
            404 => ApiStatus::NotFound,
            409 => ApiStatus::Conflict,
            422 => ApiStatus::Invalid,
            429 => ApiStatus::TooManyRequests,
            other => ApiStatus::Other(other),
        }
    }

    /// The number.
    pub fn number(self) -> u16 {
        match self {
            ApiStatus::Unauthorized => 401,
            ApiStatus::Forbidden => 403,
            ApiStatus::NotFound => 404,
            ApiStatus::Conflict => 409,
            ApiStatus::Invalid => 422,
            ApiStatus::TooManyRequests => 429,
            ApiStatus::Other(number) => number,
        }
    }
}

impl ApiFailure {
    /// How the server refuses; none if it has not answered, or wrongly.
    pub fn status(&self) -> Option<ApiStatus> {
        match self {
            ApiFailure::Refused(refusal) => Some(refusal.status),
            ApiFailure::Expired => Some(ApiStatus::Other(410)),
            _ => None,
        }
    }

    /// Whether the server says that there is no such object.
    pub fn is_not_found(&self) -> bool {
        self.status() == Some(ApiStatus::NotFound)
    }

    /// Whether the same request may be answered later: the server is away, busy or slow.
    pub fn may_pass(&self) -> bool {
        match self {
            ApiFailure::Timeout | ApiFailure::Unreachable(_) => true,
            ApiFailure::Refused(refusal) => {
                matches!(refusal.status, ApiStatus::TooManyRequests | ApiStatus::Other(500..))
            }
            _ => false,
        }
    }
}

/// As it reads after "because": `the API server answers 403: the credentials of the kubelet do not
/// permit it`.
impl fmt::Display for ApiFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ApiFailure::Credentials(cause) => f.write_str(cause),
            ApiFailure::Timeout => f.write_str("the API server does not answer in time"),
            ApiFailure::Unreachable(cause) => write!(f, "the API server is not reached: {cause}"),
            ApiFailure::Refused(refusal) => refusal.fmt(f),
            ApiFailure::Expired => f.write_str("the API server forgets its changes at once"),
            ApiFailure::Malformed(cause) => {
                write!(f, "the API server's answer is not what was asked for: {cause}")
            }
            ApiFailure::TooLarge => f.write_str("the API server's answer is too large"),
        }
    }
}

impl fmt::Display for ApiRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ApiRefusal { status, whose, message, .. } = self;
        write!(f, "the API server answers {}", status.number())?;
        match status {
            ApiStatus::Unauthorized => write!(f, ": the credentials of {whose} do not count")?,
            ApiStatus::Forbidden if message.is_empty() => {
                write!(f, ": the credentials of {whose} do not permit it")?;
            }
            ApiStatus::Forbidden => write!(f, " to {whose}")?,
            _ => {}
        }
        if message.is_empty() { Ok(()) } else { write!(f, ": {message}") }
    }
}

impl std::error::Error for ApiFailure {}

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
