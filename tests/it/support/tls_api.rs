//! A stand-in for the API over TLS that notes how each handshake went. It closes every connection
//! after one response, so that each request needs a handshake.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use super::{Authority, Certificate, PATIENCE, response};

/// A handshake that succeeded.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The name that the client asked for.
    pub server_name: Option<String>,
    pub is_resumed: bool,
    pub has_client_certificate: bool,
}

/// The stand-in; its threads end with their connections.
pub struct TlsApi {
    pub address: SocketAddr,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
}

impl TlsApi {
    /// With `clients`, only clients with a certificate of that authority are served.
    pub fn start(certificate: &Certificate, clients: Option<&Authority>) -> TlsApi {
        let config = Arc::new(server_config(certificate, clients));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let handshakes = Arc::<Mutex<Vec<Handshake>>>::default();
        let seen = handshakes.clone();
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let (config, seen) = (config.clone(), seen.clone());
                std::thread::spawn(move || serve(stream, config, &seen));
            }
        });
        TlsApi { address, handshakes }
    }

    pub fn handshakes(&self) -> Vec<Handshake> {
        self.handshakes.lock().clone()
    }
}

fn server_config(certificate: &Certificate, clients: Option<&Authority>) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions that the provider supports");
    let (certificate, key) = certificate.chain();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("PEM");
            roots.add(root).expect("a trust anchor");
            let provider = Arc::new(ring::default_provider());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
    };
    builder.with_single_cert(vec![certificate], key).expect("a certificate with its key")
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, seen: &Mutex<Vec<Handshake>>) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let connection = ServerConnection::new(config).expect("a connection");
    let mut stream = StreamOwned::new(connection, stream);
    let mut received = Vec::new();
    while !received.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => received.extend_from_slice(&chunk[..count]),
            _ => return,
        }
    }
    seen.lock().push(Handshake {
        server_name: stream.conn.server_name().map(str::to_owned),
        is_resumed: stream.conn.handshake_kind() == Some(HandshakeKind::Resumed),
        has_client_certificate: stream.conn.peer_certificates().is_some(),
    });
    let answer = response("200 OK", &["Content-Type: application/json", "Connection: close"], "{}");
    let _ = stream.write_all(answer.as_bytes());
    stream.conn.send_close_notify();
    let _ = stream.flush();
}
