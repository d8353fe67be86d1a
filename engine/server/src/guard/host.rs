//! Exact lists of `Host` and `Origin`.
//!
//! No patterns, no suffixes, no "any private address": each of these has let a page in somewhere.

use std::net::{IpAddr, SocketAddr};

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, Version};

use crate::error::ApiError;

/// The lists.
#[derive(Debug)]
pub(crate) struct HostRules {
    /// Authorities in lower case.
    hosts: Vec<String>,
    /// Origins in lower case, as browsers send them.
    own_origins: Vec<String>,
    asked_origins: Vec<String>,
}

impl HostRules {
    /// The names of the listening address (with its port; without it where that is the protocol's own), and those that were
    /// allowed by name.
    pub(crate) fn new(address: Option<SocketAddr>, hosts: &[String], origins: &[String]) -> Self {
        let mut names: Vec<String> = Vec::new();
        match address {
            Some(address) => {
                let port = address.port();
                let mut own = |name: String| {
                    if port == 80 {
                        names.push(name.clone());
                    }
                    names.push(format!("{name}:{port}"));
                };
                if address.ip().is_loopback() {
                    ["127.0.0.1", "localhost", "[::1]"].into_iter().for_each(|name| own(name.into()));
                } else if !address.ip().is_unspecified() {
                    own(match address.ip() {
                        IpAddr::V4(ip) => ip.to_string(),
                        IpAddr::V6(ip) => format!("[{ip}]"),
                    });
                }
            }
            // Clients of a socket in the file system make a name up.
            None => names.extend(["localhost".into(), "127.0.0.1".into()]),
        }
        let lower = |list: &[String]| list.iter().map(|text| text.to_ascii_lowercase()).collect::<Vec<_>>();
        let own_origins = names.iter().map(|name| format!("http://{name}")).collect();
        names.extend(lower(hosts));
        Self { hosts: names, own_origins, asked_origins: lower(origins) }
    }

    /// `Host` once, on the list, and the same as an authority in the request line.
    pub(crate) fn check_host<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let wrong = |what: &str| {
            let why = format!("{what}; `--allowed-host` adds a name");
            Err(ApiError::client(StatusCode::MISDIRECTED_REQUEST, why))
        };
        let mut values = request.headers().get_all(HOST).iter();
        match (values.next(), values.next()) {
            (Some(host), None) => {
                if !self.knows(host) {
                    return wrong("the header `Host` is not a name of this server");
                }
            }
            (Some(_), Some(_)) => return Err(ApiError::bad_request("there are several headers `Host`")),
            (None, _) if request.version() <= Version::HTTP_10 => {
                return wrong("a request without a header `Host` is not answered");
            }
            (None, _) => return Err(ApiError::bad_request("there is no header `Host`")),
        }
        match request.uri().authority() {
            Some(authority) if !self.hosts.contains(&authority.as_str().to_ascii_lowercase()) => {
                wrong("the request line names another server")
            }
            _ => Ok(()),
        }
    }

    fn knows(&self, host: &HeaderValue) -> bool {
        host.to_str().is_ok_and(|host| self.hosts.contains(&host.to_ascii_lowercase()))
    }

    /// No `Origin`, the server's own, or one that was asked for; the last is given back, for CORS headers.
    pub(crate) fn check_origin(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, ApiError> {
        let mut values = headers.get_all(ORIGIN).iter();
        let Some(origin) = values.next() else { return Ok(None) };
        let refused = || {
            let why = "pages of this `Origin` may not use this server; `--allowed-origin` adds one";
            ApiError::forbidden(why)
        };
        if values.next().is_some() {
            return Err(refused());
        }
        let text = origin.to_str().map_err(|_| refused())?.to_ascii_lowercase();
        if self.asked_origins.contains(&text) {
            return Ok(Some(origin.clone()));
        }
        match self.own_origins.contains(&text) {
            true => Ok(None),
            false => Err(refused()),
        }
    }
}
