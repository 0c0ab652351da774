//! Certificates made when a test runs: good ones, one for another name, one that is over.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, date_time_ymd,
};
use rustix::net::{AddressFamily, SocketType, bind, socket};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::{Resumption, Tls12Resumption, WantsClientCert};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName,
};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, RootCertStore, ServerConfig, StreamOwned,
};

use super::PATIENCE;

/// To a server over TLS.
pub type TlsConnection = StreamOwned<ClientConnection, TcpStream>;

/// An authority that signs certificates. Only configured peers trust it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key_pem: String,
}

/// Protocol version of a client, and how it asks for its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sessions {
    Tls13Tickets,
    Tls12Tickets,
    /// TLS 1.2 with session ids, which the server stores.
    Tls12Ids,
    /// TLS 1.2 with a session id that the client forgets.
    Tls12Forgotten,
}

/// A client that keeps its sessions.
pub struct SessionClient(Arc<ClientConfig>);

impl SessionClient {
    /// Sends a request that asks for the connection to be closed, on a new connection.
    pub fn exchange(&self, address: SocketAddr, request: &str) -> io::Result<String> {
        exchange(connect(self.0.clone(), address)?, request)
    }
}

/// A certificate with its key.
pub struct Certificate {
    certificate: CertificateDer<'static>,
    key: KeyPair,
    pem: String,
}

impl Authority {
    pub fn new() -> Authority {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = named("stand-in authority");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let key_pem = key.serialize_pem();
        Authority { issuer: Issuer::new(params, key), pem, key_pem }
    }

    /// Its key, for another program that signs.
    pub fn key_pem(&self) -> String {
        self.key_pem.clone()
    }

    /// For `ca_file`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// For loopback, by address and by name.
    pub fn certificate(&self) -> Certificate {
        self.sign(&["127.0.0.1", "localhost"], (2020, 4000))
    }

    /// A certificate for these names.
    pub fn certificate_for(&self, names: &[&str]) -> Certificate {
        self.sign(names, (2020, 4000))
    }

    pub fn certificate_for_another_name(&self) -> Certificate {
        self.sign(&["elsewhere.invalid"], (2020, 4000))
    }

    pub fn expired_certificate(&self) -> Certificate {
        self.sign(&["127.0.0.1", "localhost"], (2020, 2021))
    }

    /// One that is valid in so many seconds.
    pub fn certificate_valid_in(&self, seconds: u64) -> Certificate {
        let begins = std::time::SystemTime::now() + std::time::Duration::from_secs(seconds);
        self.sign_with(&["127.0.0.1", "localhost"], |params| params.not_before = begins.into())
    }

    /// One that may not be shown by a client.
    pub fn certificate_of_a_server(&self) -> Certificate {
        self.sign_with(&["127.0.0.1"], |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]
        })
    }

    /// A connection that offers these protocols by ALPN.
    pub fn connect_offering(
        &self,
        protocols: &[&[u8]],
        address: SocketAddr,
    ) -> io::Result<TlsConnection> {
        let mut config = self.trusting();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        connect(config, address)
    }

    /// Clients, each with sessions that the others do not have.
    pub fn clients_with(&self, sessions: Sessions) -> impl Iterator<Item = SessionClient> {
        let resumption = move || match sessions {
            Sessions::Tls13Tickets | Sessions::Tls12Tickets => Resumption::in_memory_sessions(8),
            Sessions::Tls12Ids => {
                Resumption::in_memory_sessions(8).tls12_resumption(Tls12Resumption::SessionIdOnly)
            }
            Sessions::Tls12Forgotten => Resumption::disabled(),
        };
        let version = if sessions == Sessions::Tls13Tickets { &TLS13 } else { &TLS12 };
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).expect("a trust anchor");
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[version])
            .expect("a version that the provider knows")
            .with_root_certificates(roots)
            .with_no_client_auth();
        std::iter::repeat_with(move || {
            let mut config = config.clone();
            config.resumption = resumption();
            SessionClient(Arc::new(config))
        })
    }

    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")
    }

    /// What a server at that address says to `request`, if it has a certificate of ours for that
    /// address. The request must ask for the connection to be closed.
    pub fn exchange(&self, address: SocketAddr, request: &str) -> io::Result<String> {
        exchange(self.connect(address)?, request)
    }

    /// The same, with this name as SNI. The certificate must be valid for it.
    pub fn exchange_with_name(
        &self,
        name: &str,
        address: SocketAddr,
        request: &str,
    ) -> io::Result<String> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        exchange(connect_to(self.trusting(), name, address)?, request)
    }

    /// The same from another address of this machine.
    pub fn exchange_from(
        &self,
        from: [u8; 4],
        address: SocketAddr,
        request: &str,
    ) -> io::Result<String> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        bind(&socket, &SocketAddr::from((from, 0)))?;
        rustix::net::connect(&socket, &address)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(self.connect_over(stream), request)
    }

    /// The same for a client that presents a certificate.
    pub fn exchange_as(
        &self,
        client: &Certificate,
        address: SocketAddr,
        request: &str,
    ) -> io::Result<String> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(client.key.serialize_der()));
        let config = self.builder().with_client_auth_cert(vec![client.certificate.clone()], key);
        exchange(connect(config.map_err(io::Error::other)?, address)?, request)
    }

    /// A connection to it, for requests that follow each other.
    pub fn connect(&self, address: SocketAddr) -> io::Result<TlsConnection> {
        connect(self.trusting(), address)
    }

    /// TLS over a TCP connection.
    pub fn connect_over(&self, stream: TcpStream) -> TlsConnection {
        let name = stream.peer_addr().expect("a connected socket").ip().into();
        let client =
            ClientConnection::new(Arc::new(self.trusting()), name).expect("a configuration");
        StreamOwned::new(client, stream)
    }

    /// A client's view of TLS that trusts this authority alone.
    pub fn trusting(&self) -> ClientConfig {
        self.builder().with_no_client_auth()
    }

    fn builder(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der()).expect("a trust anchor");
        ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions that the provider knows")
            .with_root_certificates(roots)
    }

    fn sign(&self, names: &[&str], years: (i32, i32)) -> Certificate {
        self.sign_with(names, |params| {
            params.not_before = date_time_ymd(years.0, 1, 1);
            params.not_after = date_time_ymd(years.1, 1, 1);
        })
    }

    fn sign_with(
        &self,
        names: &[&str],
        adjust: impl FnOnce(&mut CertificateParams),
    ) -> Certificate {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names that a certificate may hold");
        params.distinguished_name = named("stand-in");
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(4000, 1, 1);
        adjust(&mut params);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("a signed certificate");
        Certificate { certificate: signed.der().clone(), pem: signed.pem(), key }
    }
}

impl Certificate {
    /// For `cert_file` and `key_file`.
    pub fn pem(&self) -> (String, String) {
        (self.pem.clone(), self.key.serialize_pem())
    }

    pub(super) fn chain(&self) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        (
            self.certificate.clone(),
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der())),
        )
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions that the provider knows")
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)
            .expect("a certificate with its own key");
        TlsAcceptor::from(Arc::new(config))
    }
}

fn connect(config: impl Into<Arc<ClientConfig>>, address: SocketAddr) -> io::Result<TlsConnection> {
    connect_to(config, address.ip().into(), address)
}

fn connect_to(
    config: impl Into<Arc<ClientConfig>>,
    name: ServerName<'static>,
    address: SocketAddr,
) -> io::Result<TlsConnection> {
    let session = ClientConnection::new(config.into(), name).map_err(io::Error::other)?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(StreamOwned::new(session, stream))
}

fn exchange(mut stream: TlsConnection, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer) {
        // Closed without a close_notify, which is no matter here.
        Err(error) if answer.is_empty() => Err(error),
        // An end without an answer is one of a handshake that failed.
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}
