//! Load over HTTP/2 with TLS: each connection has one request under way, as fast as the server
//! responds, or at a rate.
//!
//! h2load cannot request new ids, and its connections send the same requests at the same time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use h2::client::SendRequest;
use http::header::AUTHORIZATION;
use http::{Request, Version};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::Outcome;
use crate::load::{Asked, HOST, Work, trusting};

/// The results of one connection.
#[derive(Default)]
struct Seen {
    times: Vec<Duration>,
    statuses: BTreeMap<u16, usize>,
}

/// The state that all connections share.
struct Loop {
    work: Arc<Work>,
    next: AtomicUsize,
    begin: Instant,
    end: Instant,
    /// Requests a second in total; `None`: as many as possible.
    rate: Option<f64>,
}

/// Sends for a time; prints the number of responses, their rate, their statuses, and percentiles in
/// microseconds.
pub fn run(asked: Asked, seconds: &str, rate: Option<&str>) -> Outcome {
    let (work, connections) = (Work::read(asked)?, asked.2.parse::<usize>()?);
    let seconds: f64 = seconds.parse()?;
    let rate = rate.map(str::parse::<f64>).transpose()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut seen = Seen::default();
    let spent = runtime.block_on(async {
        let mut senders = Vec::with_capacity(connections);
        for _ in 0..connections {
            senders.push(connect(work.address()).await?);
        }
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(seconds);
        let shared =
            Arc::new(Loop { work: work.clone(), next: AtomicUsize::new(0), begin, end, rate });
        let tasks: Vec<_> = senders
            .into_iter()
            .map(|sender| tokio::spawn(requests(sender, shared.clone())))
            .collect();
        for task in tasks {
            let its = task.await??;
            seen.times.extend(its.times);
            its.statuses
                .iter()
                .for_each(|(status, count)| *seen.statuses.entry(*status).or_default() += count);
        }
        Outcome::Ok(begin.elapsed())
    })?;
    let times = &mut seen.times;
    times.sort_unstable();
    if times.is_empty() {
        return Err("nothing was answered".into());
    }
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    let said = serde_json::json!({
        "count": times.len(), "rps": times.len() as f64 / spent.as_secs_f64(), "statuses": seen.statuses,
        "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": at(1.0),
    });
    println!("{said}");
    Ok(())
}

async fn connect(address: &str) -> Outcome<SendRequest<bytes::Bytes>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut config = trusting()?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from("localhost")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends the requests of one connection one after the other.
async fn requests(sender: SendRequest<bytes::Bytes>, shared: Arc<Loop>) -> Outcome<Seen> {
    let mut seen = Seen::default();
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut since = Instant::now();
        if let Some(rate) = shared.rate {
            // A request that had to wait for the one before it counts from its scheduled time.
            let due = shared.begin + Duration::from_secs_f64(number as f64 / rate);
            if due > since {
                tokio::time::sleep_until(due.into()).await;
                since = Instant::now();
            } else {
                since = due;
            }
        }
        if Instant::now() >= shared.end {
            return Ok(seen);
        }
        let (token, path) = shared.work.target(number);
        let request = Request::get(format!("https://{HOST}{path}"))
            .version(Version::HTTP_2)
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .body(())?;
        let (response, _) = sender.clone().ready().await?.send_request(request, true)?;
        let (head, mut body) = response.await?.into_parts();
        while let Some(piece) = body.data().await {
            body.flow_control().release_capacity(piece?.len())?;
        }
        *seen.statuses.entry(head.status.as_u16()).or_default() += 1;
        seen.times.push(since.elapsed());
    }
}
