//! Where the API is and how it is connected to: its addresses, TLS with verification and SNI, deadlines.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::header::InvalidHeaderValue;
use parking_lot::Mutex;
use pingora_core::protocols::tls::CaType;
use pingora_core::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy, PeerOptions};
use pingora_core::utils::tls::{WrappedX509, parse_x509};
use pingora_rustls::load_native_certs;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::{IDLE, UpstreamError};
use crate::config;

/// How long the addresses of a name are used before they are looked up again: pingora looks a name up once, this twice a
/// minute, so that a moved API is found again without a restart.
const ADDRESSES_LIVE: Duration = Duration::from_secs(30);

/// How long a forwarded exchange may be silent in either direction. Long polls and websocket pings are shorter.
const FORWARD_SILENCE: Duration = Duration::from_secs(75);

/// What is wrong with a file of trust anchors.
#[derive(Debug)]
pub struct TrustError(pub(super) String);

impl std::fmt::Display for TrustError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TrustError {}

/// One address of the API: what pingora must know of it for the gateway's own requests, which have a deadline of their own,
/// and for forwarded ones.
#[derive(Clone)]
struct Peer {
    fetch: Arc<HttpPeer>,
    forward: Arc<HttpPeer>,
}

/// Makes peers: one address of the API with all that a connection to it needs.
pub struct Peers {
    url: config::UpstreamUrl,
    /// Its host is an address, and nothing is looked up.
    literal: bool,
    authority: HeaderValue,
    connect_timeout: Duration,
    trust: Option<Arc<CaType>>,
    addresses: Mutex<Addresses>,
}

struct Addresses {
    known: Vec<Peer>,
    looked_up: Option<Instant>,
    next: usize,
}

impl Peers {
    /// # Errors
    /// `upstream.ca_file` cannot be read or holds no certificate.
    pub fn new(config: &config::Upstream) -> Result<Self, TrustError> {
        let trust = config.ca_file.as_deref().map(trust_anchors).transpose()?;
        let literal = config.url.host.parse::<IpAddr>().ok();
        let wrong = |error: InvalidHeaderValue| TrustError(format!("upstream.url: {error}"));
        let peers = Peers {
            url: config.url.clone(),
            literal: literal.is_some(),
            authority: HeaderValue::try_from(config.url.authority()).map_err(wrong)?,
            connect_timeout: config.connect_timeout,
            trust,
            addresses: Mutex::new(Addresses { known: Vec::new(), looked_up: None, next: 0 }),
        };
        if let Some(ip) = literal {
            let peer = peers.at(SocketAddr::new(ip, config.url.port));
            peers.addresses.lock().known.push(peer);
        }
        Ok(peers)
    }

    /// The value of `Host` in every request to the API.
    pub fn authority(&self) -> &HeaderValue {
        &self.authority
    }

    /// A peer for one of the gateway's own requests.
    ///
    /// # Errors
    /// The name has no address.
    pub async fn for_fetch(&self) -> Result<Arc<HttpPeer>, UpstreamError> {
        self.peer().await.map(|peer| peer.fetch)
    }

    /// A peer for a forwarded request.
    ///
    /// # Errors
    /// The name has no address.
    pub async fn for_forward(&self) -> Result<Arc<HttpPeer>, UpstreamError> {
        self.peer().await.map(|peer| peer.forward)
    }

    /// The next request takes another address, if there is one.
    pub fn failed_to_connect(&self) {
        self.addresses.lock().next += 1;
    }

    fn at(&self, address: SocketAddr) -> Peer {
        // Never empty, since pingora does not verify without a name.
        let mut peer = HttpPeer::new(address, self.url.tls, self.url.host.clone());
        let mut options = PeerOptions::new();
        options.connection_timeout = Some(self.connect_timeout);
        // TCP and TLS each get the time, both together twice of it.
        options.total_connection_timeout = Some(self.connect_timeout * 2);
        options.idle_timeout = Some(IDLE);
        options.http_upstream_request_policy = HttpUpstreamRequestPolicy::standard();
        options.ca = self.trust.clone();
        peer.options = options;
        let fetch = Arc::new(peer.clone());
        peer.options.read_timeout = Some(FORWARD_SILENCE);
        peer.options.write_timeout = Some(FORWARD_SILENCE);
        Peer { fetch, forward: Arc::new(peer) }
    }

    async fn peer(&self) -> Result<Peer, UpstreamError> {
        if self.literal {
            return self.pick().ok_or(UpstreamError::Resolve);
        }
        let due = self.addresses.lock().looked_up.is_none_or(|at| at.elapsed() >= ADDRESSES_LIVE);
        if due {
            let lookup = tokio::net::lookup_host((self.url.host.as_str(), self.url.port));
            let found = tokio::time::timeout(self.connect_timeout, lookup).await;
            let mut addresses = self.addresses.lock();
            if let Ok(Ok(found)) = found {
                addresses.known = found.map(|address| self.at(address)).collect();
            }
            // Also when it failed: known addresses serve until the next look, without a wait for each request.
            addresses.looked_up = Some(Instant::now()).filter(|_| !addresses.known.is_empty());
        }
        // A name server that is down does not take known addresses away.
        self.pick().ok_or(UpstreamError::Resolve)
    }

    fn pick(&self) -> Option<Peer> {
        let addresses = self.addresses.lock();
        addresses.known.get(addresses.next % addresses.known.len().max(1)).cloned()
    }
}

/// The certificates of `file` beside those of the system.
fn trust_anchors(file: &Path) -> Result<Arc<CaType>, TrustError> {
    let shown = file.display();
    let own: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| TrustError(format!("upstream.ca_file: {shown}: {error}; it must hold certificates in PEM")))?;
    if own.is_empty() || own.iter().any(|der| x509_parser::parse_x509_certificate(der).is_err()) {
        return Err(TrustError(format!("upstream.ca_file: {shown}: it must hold at least one certificate, in PEM")));
    }
    let system = load_native_certs().unwrap_or_default();
    let anchors = own.into_iter().chain(system).filter(|der| x509_parser::parse_x509_certificate(der).is_ok());
    Ok(anchors.map(|der| WrappedX509::new(der.to_vec(), parse_x509)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Peers {
        // RFC 6761, section 6.4: no such name has an address.
        let text = "upstream = { url = \"http://api.invalid:80\", connect_timeout = \"1s\" }";
        Peers::new(&config::parse("test", text, []).unwrap().upstream).unwrap()
    }

    #[tokio::test]
    async fn a_name_server_that_is_down_takes_no_known_address_away() {
        let peers = peers();
        assert_eq!(peers.for_fetch().await.err(), Some(UpstreamError::Resolve));
        let known = peers.at(SocketAddr::from(([127, 0, 0, 1], 80)));
        peers.addresses.lock().known.push(known.clone());
        let given = || async { peers.for_fetch().await.is_ok_and(|peer| Arc::ptr_eq(&peer, &known.fetch)) };
        // Due, since nothing was ever found.
        assert!(given().await);
        let looked_up = peers.addresses.lock().looked_up;
        assert!(looked_up.is_some());
        // The next one does not look again so soon.
        assert!(given().await);
        assert_eq!(peers.addresses.lock().looked_up, looked_up);
    }
}
