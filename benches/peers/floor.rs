//! The floor: the least cost of a hit with these parts. A loop that reads, parses with httparse,
//! digests the token with a key, looks it up in moka and writes prepared bytes. It checks and
//! counts nothing.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Outcome, origin};

const KEY: [u8; 32] = [7; 32];

/// Both responses for a caller and customer as bytes, and the tag that decides between them.
#[derive(Clone)]
pub struct Stored {
    pub body: Bytes,
    pub etag: String,
    whole: Bytes,
    unchanged: Bytes,
}

/// The prepared responses.
#[derive(Clone)]
pub struct Memory(moka::sync::Cache<([u8; 32], [u8; 12]), Arc<Stored>>);

impl Memory {
    pub fn new() -> Self {
        Memory(moka::sync::Cache::new(2_000_000))
    }

    /// Returns the response for a caller; makes it the first time, because the floor is measured
    /// warm.
    pub fn answer(&self, authorization: &[u8], path: &str) -> Option<Arc<Stored>> {
        let id = path.strip_prefix("/customer/")?.strip_suffix("/name")?;
        let caller = *blake3::keyed_hash(&KEY, authorization).as_bytes();
        Some(self.0.get_with((caller, customer(id)?), || Arc::new(stored(id))))
    }
}

/// Parses twelve bytes from hexadecimal digits.
fn customer(id: &str) -> Option<[u8; 12]> {
    let mut bytes = [0; 12];
    let digits = id.as_bytes().as_chunks::<2>().0;
    if id.len() != 24 {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(digits) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(bytes)
}

fn stored(id: &str) -> Stored {
    let body = origin::document(id);
    let etag = format!("\"{}\"", &blake3::hash(body.as_bytes()).to_hex()[..32]);
    // As many fields as the gateway writes.
    let fields = format!(
        "ETag: {etag}\r\nAge: 1\r\nCache-Status: floor; hit; ttl=3599\r\nCache-Control: private, no-cache\r\n\
         Vary: Authorization, X-API-Key, Cookie\r\nX-Request-Id: a024ac3cd8296cac0000000000000000\r\n\
         Date: Mon, 23 Nov 2026 16:55:16 GMT\r\n\r\n"
    );
    let whole = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n{fields}{body}",
        body.len()
    );
    let unchanged = format!("HTTP/1.1 304 Not Modified\r\n{fields}");
    Stored { body: body.into(), etag, whole: whole.into(), unchanged: unchanged.into() }
}

/// Serves until the process ends.
pub fn serve(workers: &str, address: &str, tls: Option<(&str, &str, &str)>) -> Outcome {
    let runtime = match workers.parse()? {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        workers => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()?,
    };
    let memory = Memory::new();
    if let Some((address, certificate, key)) = tls {
        let acceptor = acceptor(certificate, key)?;
        runtime.spawn(over_tls(address.to_owned(), acceptor, memory.clone()));
    }
    let address = address.to_owned();
    // Spawned, so that a worker accepts and not the waiting thread.
    runtime.block_on(runtime.spawn(async move {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(connection(stream, memory.clone()));
        }
    }))?
}

async fn over_tls(address: String, acceptor: TlsAcceptor, memory: Memory) -> Outcome {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, memory) = (acceptor.clone(), memory.clone());
        tokio::spawn(async move { connection(acceptor.accept(stream).await?, memory).await });
    }
}

fn acceptor(certificate: &str, key: &str) -> Outcome<TlsAcceptor> {
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(certificate)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(key)?,
        )?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn connection(mut stream: impl AsyncRead + AsyncWrite + Unpin, memory: Memory) -> Outcome {
    let mut buffer = Vec::with_capacity(8192);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut fields);
        let httparse::Status::Complete(length) = request.parse(&buffer)? else { continue };
        let field = |name: &str| {
            request
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case(name))
                .map(|field| field.value)
        };
        let stored = memory
            .answer(field("authorization").unwrap_or_default(), request.path.unwrap_or_default());
        let stored = stored.ok_or("not a customer's name")?;
        let held = field("if-none-match") == Some(stored.etag.as_bytes());
        stream.write_all(if held { &stored.unchanged } else { &stored.whole }).await?;
        stream.flush().await?;
        buffer.drain(..length);
    }
}
