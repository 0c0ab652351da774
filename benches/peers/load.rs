//! Load: every request of a list once, to warm a server and check its responses; or an open loop,
//! for latency.
//!
//! In the open loop each connection has a schedule, by which it sends whether or not the server
//! keeps up. A request that had to wait for the one before it counts from its scheduled time, any
//! other from when it was sent, because a late wake-up of this program is not the server's delay.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned,
};

use crate::Outcome;

/// The `Host` of every request, at any port: a cache may distinguish responses by it.
pub const HOST: &str = "gateway.example";

/// The state that all connections share.
pub struct Work {
    requests: Vec<Line>,
    /// Fields of every request, as lines.
    fields: String,
    seed: String,
    address: String,
    fresh: AtomicUsize,
}

pub struct Line {
    token: String,
    path: String,
    etag: Option<String>,
}

pub type Asked<'a> = (&'a str, &'a str, &'a str, &'a str);

impl Work {
    pub fn read((requests, seed, _, address): Asked) -> Outcome<Arc<Self>> {
        let text = std::fs::read_to_string(requests)?;
        let fields = text
            .lines()
            .filter_map(|line| line.strip_prefix('+'))
            .map(|field| format!("{field}\r\n"))
            .collect();
        let requests: Vec<Line> = text
            .lines()
            .filter(|line| !line.starts_with('+'))
            .filter_map(|line| {
                let mut words = line.split(' ').map(str::to_owned);
                Some(Line { token: words.next()?, path: words.next()?, etag: words.next() })
            })
            .collect();
        if requests.is_empty() {
            return Err("no requests".into());
        }
        Ok(Arc::new(Work {
            requests,
            fields,
            seed: seed.into(),
            address: address.into(),
            fresh: AtomicUsize::new(0),
        }))
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns token and path of the request with that number.
    pub fn target(&self, number: usize) -> (&str, String) {
        let Line { token, path, .. } = &self.requests[number % self.requests.len()];
        (token, self.filled(path))
    }

    /// Replaces `{}` in a path by a new id.
    fn filled(&self, path: &str) -> String {
        if !path.contains("{}") {
            return path.to_owned();
        }
        let id = format!("{}{:012x}", self.seed, self.fresh.fetch_add(1, Ordering::Relaxed));
        path.replace("{}", &id)
    }

    /// Returns the bytes of the request with that number; the list repeats.
    fn bytes(&self, number: usize) -> Vec<u8> {
        let Line { token, path, etag } = &self.requests[number % self.requests.len()];
        let (path, fields) = (self.filled(path), &self.fields);
        let validator =
            etag.as_ref().map_or(String::new(), |etag| format!("If-None-Match: {etag}\r\n"));
        format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {token}\r\n{validator}{fields}\r\n")
            .into_bytes()
    }
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn connect(address: &str, tls: Option<&Arc<ClientConfig>>) -> Outcome<Box<dyn Stream>> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let client = ClientConnection::new(config.clone(), ServerName::try_from("localhost")?)?;
    Ok(Box::new(StreamOwned::new(client, stream)))
}

/// Sends one request and reads the whole response: the status, and whether it was a hit.
fn exchange(stream: &mut dyn Stream, request: &[u8], buffer: &mut [u8]) -> Outcome<(u16, bool)> {
    stream.write_all(request)?;
    stream.flush()?;
    let mut filled = 0;
    let (status, mut missing, no_hit) = loop {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err("closed before the response".into());
        }
        filled += read;
        let mut fields = [httparse::EMPTY_HEADER; 48];
        let mut answer = httparse::Response::new(&mut fields);
        if let httparse::Status::Complete(length) = answer.parse(&buffer[..filled])? {
            let status = answer.code.unwrap_or_default();
            let body = answer
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let body: usize = match body {
                Some(field) if status != 304 => std::str::from_utf8(field.value)?.parse()?,
                Some(_) => 0,
                None if status == 304 => 0,
                None => return Err("a response without a length".into()),
            };
            let cache_status =
                answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("cache-status"));
            let no_hit = cache_status
                .is_some_and(|field| !field.value.windows(5).any(|window| window == b"; hit"));
            break (
                status,
                (length + body).checked_sub(filled).ok_or("more than one answer")?,
                no_hit,
            );
        }
    };
    while missing > 0 {
        let most = missing.min(buffer.len());
        match stream.read(&mut buffer[..most])? {
            0 => return Err("closed within an answer".into()),
            read => missing -= read,
        }
    }
    Ok((status, no_hit))
}

/// Sends every request once; prints the number of responses by status.
pub fn once(requests: &str, seed: &str, connections: &str, address: &str) -> Outcome {
    let work = Work::read((requests, seed, connections, address))?;
    let next = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..connections.parse::<usize>()?)
        .map(|_| {
            let (work, next) = (work.clone(), next.clone());
            std::thread::spawn(move || -> Outcome<BTreeMap<u16, usize>> {
                let (mut stream, mut buffer) = (connect(&work.address, None)?, vec![0; 1 << 16]);
                let mut statuses = BTreeMap::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= work.requests.len() {
                        return Ok(statuses);
                    }
                    let (status, _) = exchange(&mut *stream, &work.bytes(number), &mut buffer)?;
                    *statuses.entry(status).or_default() += 1;
                }
            })
        })
        .collect();
    let mut statuses = BTreeMap::<u16, usize>::new();
    for thread in threads {
        for (status, count) in thread.join().map_err(|_| "a connection panicked")?? {
            *statuses.entry(status).or_default() += count;
        }
    }
    println!("{}", serde_json::to_string(&statuses)?);
    Ok(())
}

/// Runs an open loop at a rate; prints percentiles in microseconds, and the number of responses by
/// status. `hits_alone`: only hits count in the percentiles.
pub fn paced(asked: Asked, rate: &str, seconds: &str, tls: bool, hits_alone: bool) -> Outcome {
    let (work, connections) = (Work::read(asked)?, asked.2.parse::<usize>()?);
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let tls = if tls { Some(Arc::new(trusting()?)) } else { None };
    let planned = (rate * seconds) as usize;
    // Time for every connection to open.
    let begin = Instant::now() + Duration::from_millis(300 + connections as u64);
    #[expect(
        clippy::disallowed_methods,
        reason = "each connection has its own thread, which waits for its time"
    )]
    let threads: Vec<_> = (0..connections)
        .map(|which| {
            let (work, tls) = (work.clone(), tls.clone());
            std::thread::Builder::new().stack_size(1 << 18).spawn(move || -> Outcome<_> {
                let (mut stream, mut buffer) =
                    (connect(&work.address, tls.as_ref())?, vec![0; 1 << 14]);
                let (mut times, mut statuses) = (Vec::new(), BTreeMap::<u16, usize>::new());
                for number in (which..planned).step_by(connections) {
                    let request = work.bytes(number);
                    let due = begin + Duration::from_secs_f64(number as f64 / rate);
                    let early = due.saturating_duration_since(Instant::now());
                    let since = if early.is_zero() {
                        due
                    } else {
                        std::thread::sleep(early);
                        Instant::now()
                    };
                    let (status, no_hit) = exchange(&mut *stream, &request, &mut buffer)?;
                    *statuses.entry(status).or_default() += 1;
                    if !(hits_alone && no_hit) {
                        times.push(since.elapsed());
                    }
                }
                Ok((times, statuses))
            })
        })
        .collect();
    let (mut times, mut statuses) = (Vec::with_capacity(planned), BTreeMap::<u16, usize>::new());
    for thread in threads {
        let (its_times, its_statuses) = thread?.join().map_err(|_| "a connection panicked")??;
        times.extend(its_times);
        for (status, count) in its_statuses {
            *statuses.entry(status).or_default() += count;
        }
    }
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let said = serde_json::json!({
        "statuses": statuses, "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0),
        "counted": times.len(),
    });
    println!("{said}");
    Ok(())
}

/// Measures the delay that the machine causes to a program that only reads the clock: how late it
/// notices a scheduled time. Percentiles in microseconds.
pub fn clock(rate: &str, seconds: &str) -> Outcome {
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let (step, begin) = (Duration::from_secs_f64(1.0 / rate), Instant::now());
    let (mut due, mut times) = (begin, Vec::with_capacity((rate * seconds) as usize + 1));
    while due < begin + Duration::from_secs_f64(seconds) {
        let now = Instant::now();
        while due <= now {
            times.push(now - due);
            due += step;
        }
    }
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    println!(
        "{}",
        serde_json::json!({ "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0) })
    );
    Ok(())
}

/// Accepts any certificate: the measurement is on this machine.
pub fn trusting() -> Outcome<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let schemes = provider.signature_verification_algorithms.supported_schemes();
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(schemes)))
        .with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Vec<SignatureScheme>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
