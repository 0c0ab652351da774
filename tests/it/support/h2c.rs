//! HTTP/2 in plain text, as far as the tests need it: some requests at the same time over one
//! connection.

use std::net::SocketAddr;

use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::PATIENCE;
use super::client::Response;
use super::origin::runtime;

/// The answers, in the order of the requests.
pub(super) fn exchange(
    address: SocketAddr,
    requests: Vec<(Request<()>, Vec<u8>)>,
) -> Vec<Response> {
    let all = async {
        let stream = TcpStream::connect(address).await.expect("a connection");
        let (mut sender, connection) =
            h2::client::handshake(stream).await.expect("a connection of HTTP/2");
        let driver = tokio::spawn(connection);
        let mut pending = Vec::new();
        for (request, body) in requests {
            pending.push(send(&mut sender, request, body).await);
        }
        let mut answers = Vec::new();
        for answer in pending {
            answers.push(read(answer).await);
        }
        driver.abort();
        answers
    };
    runtime().block_on(async { timeout(PATIENCE, all).await.expect("answers in time") })
}

async fn send(
    sender: &mut SendRequest<bytes::Bytes>,
    request: Request<()>,
    body: Vec<u8>,
) -> ResponseFuture {
    std::future::poll_fn(|context| sender.poll_ready(context))
        .await
        .expect("room for one more stream");
    let (answer, mut stream) = sender.send_request(request, body.is_empty()).expect("a stream");
    if !body.is_empty() {
        stream.send_data(body.into(), true).expect("a body");
    }
    answer
}

async fn read(answer: ResponseFuture) -> Response {
    let (head, mut body) = answer.await.expect("an answer").into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.expect("a whole body");
        body.flow_control().release_capacity(piece.len()).expect("capacity that was taken");
        bytes.extend_from_slice(&piece);
    }
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers =
        head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    Response::of_parts(head.status.as_u16(), headers, bytes)
}
