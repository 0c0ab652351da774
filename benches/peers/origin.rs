//! An API that costs nothing: every token is valid, every customer exists, and `/bytes/N` has N
//! bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Outcome;

/// The body of a customer's name, without the id: about a kilobyte, with secrets under a root of
/// the redaction.
const DOCUMENT: &str = include_str!("../../tests/golden/upstream.json");
/// The id in that document.
const ITS_ID: &str = "73469a52f4fd7f77ec7b28cc";
/// Customers whose ids begin so have one document, and so one entity tag at each server.
const ALIKE: &str = "a11ce";

/// Requests for names so far; hits of a cache do not reach the origin.
static ASKED: AtomicU64 = AtomicU64::new(0);

/// Returns the document of a customer.
pub fn document(customer: &str) -> String {
    let id = if customer.starts_with(ALIKE) { ITS_ID } else { customer };
    DOCUMENT.trim_end().replace(ITS_ID, id)
}

/// Serves until the process ends.
pub fn serve(address: &str) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::spawn(connection(stream));
        }
    })
}

async fn connection(mut stream: TcpStream) -> Outcome {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(8192);
    loop {
        let (read, target, validator) = loop {
            if let Some(head) = head(&buffer)? {
                break head;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        buffer.drain(..read);
        stream.write_all(&answer(&target, validator.as_deref())).await?;
    }
}

type Head = (usize, String, Option<String>);

/// Returns length, target and entity tag of a complete request. No request has a body here.
fn head(bytes: &[u8]) -> Outcome<Option<Head>> {
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes)? else { return Ok(None) };
    let target = request.path.unwrap_or_default().to_owned();
    let validator =
        request.headers.iter().find(|field| field.name.eq_ignore_ascii_case("if-none-match"));
    let validator = validator.map(|field| String::from_utf8_lossy(field.value).into_owned());
    Ok(Some((length, target, validator)))
}

fn answer(target: &str, validator: Option<&str>) -> Vec<u8> {
    let path = target.split('?').next().unwrap_or_default();
    match path.split('/').collect::<Vec<_>>()[..] {
        ["", "customer", customer, "name"] => {
            ASKED.fetch_add(1, Ordering::Relaxed);
            name(customer, validator)
        }
        ["", "auth", "validateToken"] => {
            json(br#"{"success":true,"employee":"5f00000000000000000000aa","customer":"x","accessLevel":"VIEWER"}"#)
        }
        ["", "bytes", count] => json(&vec![b'x'; count.parse().unwrap_or(0)]),
        ["", "asked"] => json(ASKED.load(Ordering::Relaxed).to_string().as_bytes()),
        _ => b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
    }
}

fn name(customer: &str, validator: Option<&str>) -> Vec<u8> {
    let document = document(customer);
    let etag = format!("\"{}\"", &blake3::hash(document.as_bytes()).to_hex()[..32]);
    let fields = format!("ETag: {etag}\r\nCache-Control: max-age=86400\r\n");
    if validator == Some(&etag) {
        return format!("HTTP/1.1 304 Not Modified\r\n{fields}\r\n").into_bytes();
    }
    with_body(&fields, document.as_bytes())
}

fn json(body: &[u8]) -> Vec<u8> {
    with_body("", body)
}

fn with_body(fields: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{fields}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}
