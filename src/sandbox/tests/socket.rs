//! Over a socket: keep-alive, the bound of a body, latency.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

use crate::sandbox::data::DEMO_CUSTOMER;
use crate::sandbox::{Options, Sandbox};

/// Serves on a free port while `client` runs with a connection.
fn with_connection<F: Future>(options: Options, client: impl FnOnce(TcpStream) -> F) -> F::Output {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(Sandbox::new(options).serve(listener));
        let stream = TcpStream::connect(address).await.unwrap();
        let output = tokio::time::timeout(Duration::from_secs(20), client(stream))
            .await
            .expect("an response in time");
        server.abort();
        output
    })
}

/// Reads a response, head and body, that is framed by `content-length`.
async fn response(stream: &mut TcpStream) -> (String, String) {
    let head = response_head(stream).await;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .unwrap()
        .parse()
        .unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// Reads a response head, in lower case, with its empty line.
async fn response_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

#[test]
fn connection_serves_several_requests() {
    with_connection(Options::default(), async |mut stream| {
        let path = format!("/customer/{DEMO_CUSTOMER}/name");
        let get = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sandbox-demo-viewer\r\n\r\n"
        );
        stream.write_all(get.as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(body, include_str!("../data/anders_and.json"));

        stream.write_all(get.replace("GET", "HEAD").as_bytes()).await.unwrap();
        let head = response_head(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");

        // A body after the response to HEAD would be read as the start of this response.
        let post = "POST /auth/login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let login = r#"{"username":"viewer@sandbox.example","password":"demo-viewer"}"#;
        let post = format!("{post}{:x}\r\n{login}\r\n0\r\n\r\n", login.len());
        stream.write_all(post.as_bytes()).await.unwrap();
        let (head, body) = response(&mut stream).await;
        assert!(
            head.starts_with("http/1.1 200") && head.contains("\r\nset-cookie: token="),
            "{head}"
        );
        let login: serde_json::Value = serde_json::from_str(&body).unwrap();

        let token = login["token"].as_str().unwrap();
        let validate = format!(
            "GET /auth/validateToken?ip=127.0.0.1&token={token} HTTP/1.1\r\nHost: x\r\n\r\n"
        );
        stream.write_all(validate.as_bytes()).await.unwrap();
        let (_, body) = response(&mut stream).await;
        assert!(body.contains(r#""success":true"#), "{body}");
    });
}

/// Sends a request with these lines of fields and returns the head of the response.
async fn request(stream: &mut TcpStream, request_line: &str, fields: &str) -> String {
    let head = format!("{request_line} HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    if request_line.starts_with("OPTIONS") {
        response_head(stream).await
    } else {
        response(stream).await.0
    }
}

#[test]
fn pages_of_this_machine_may_use_the_sandbox() {
    with_connection(Options::default(), async |mut stream| {
        for origin in [
            "http://localhost:5173",
            "http://127.0.0.1:3000",
            "https://[::1]",
            "http://a.localhost:1",
        ] {
            let preflight = format!(
                "Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n\
                 Access-Control-Request-Headers: authorization,content-type\r\n"
            );
            let head = request(&mut stream, "OPTIONS /auth/login", &preflight).await;
            assert!(head.starts_with("http/1.1 204"), "{head}");
            let allowed = format!("\r\naccess-control-allow-origin: {origin}\r\n");
            for field in [
                allowed.as_str(),
                "\r\naccess-control-allow-credentials: true\r\n",
                "\r\naccess-control-allow-headers: authorization,content-type\r\n",
                "\r\naccess-control-allow-methods: get, head, post, delete\r\n",
                "\r\nvary: origin\r\n",
            ] {
                assert!(head.contains(field), "{field} is not in {head}");
            }
            for path in ["/", "/nowhere", "/customer"] {
                let head =
                    request(&mut stream, &format!("GET {path}"), &format!("Origin: {origin}\r\n"))
                        .await;
                let credentials = "\r\naccess-control-allow-credentials: true\r\n";
                assert!(head.contains(&allowed) && head.contains(credentials), "{path}: {head}");
            }
        }
    });
}

#[test]
fn other_origins_may_not_use_the_sandbox() {
    with_connection(Options::default(), async |mut stream| {
        for origin in
            ["https://app.example", "null", "http://localhost.example", "http://192.0.2.1:5173"]
        {
            let preflight = format!("Origin: {origin}\r\nAccess-Control-Request-Method: GET\r\n");
            let head = request(&mut stream, "OPTIONS /customer", &preflight).await;
            assert!(head.starts_with("http/1.1 403"), "{head}");
            let plain = request(&mut stream, "GET /", &format!("Origin: {origin}\r\n")).await;
            assert!(plain.contains("\r\nvary: origin\r\n"), "{plain}");
            assert!(!format!("{head}{plain}").contains("access-control-allow"), "{head}{plain}");
        }
    });
}

#[test]
fn too_large_body_is_413_and_closes_connection() {
    with_connection(Options::default(), async |mut stream| {
        let over = (1 << 20) + 1;
        let head =
            format!("POST /auth/login HTTP/1.1\r\nHost: x\r\nContent-Length: {over}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        // The sandbox may stop reading before all is written.
        let _ = stream.write_all(&vec![b' '; over]).await;
        let (head, body) = response(&mut stream).await;
        assert!(
            head.starts_with("http/1.1 413") && head.contains("\r\nconnection: close"),
            "{head}"
        );
        assert!(body.contains(r#""error""#), "{body}");
    });
}

#[test]
fn latency_delays_every_response() {
    let latency = Duration::from_millis(50);
    let options = Options { latency, ..Options::default() };
    with_connection(options, async |mut stream| {
        for path in ["/", "/nowhere"] {
            let begin = Instant::now();
            stream
                .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                .await
                .unwrap();
            response(&mut stream).await;
            assert!(begin.elapsed() >= latency, "{path}");
        }
    });
}

#[test]
fn dropped_server_closes_connections() {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(Sandbox::new(Options::default()).serve(listener));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let (head, _) = response(&mut stream).await;
        assert!(head.starts_with("http/1.1 200") && !head.contains("connection: close"), "{head}");
        server.abort();
        let end = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut [0])).await;
        assert!(matches!(end.expect("an end in time"), Ok(0) | Err(_)));
    });
}
