//! The gateway, nginx and HAProxy, each in front of a separate API.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use super::api::{Api, Arrival};
use super::exchange::Protocol;
use crate::support::{Gateway, Origin, TempDir, unused_port, wait_until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    Gateway,
    Nginx,
    Haproxy,
}

impl Proxy {
    pub const ALL: [Proxy; 3] = [Proxy::Gateway, Proxy::Nginx, Proxy::Haproxy];
}

/// Where clients connect to a proxy.
#[derive(Clone, Copy)]
pub struct Door {
    pub proxy: Proxy,
    http1: SocketAddr,
    http2: SocketAddr,
}

impl Door {
    pub fn of(self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Http2 => self.http2,
            Protocol::Http10 | Protocol::Http11 => self.http1,
        }
    }
}

/// A proxy with its API.
pub struct Peer {
    pub door: Door,
    api: Api,
    running: Running,
}

enum Running {
    Gateway(Box<Gateway>, Origin),
    Other(Other),
}

/// A process that is not the gateway, and the folder of its files. Dropped, it is killed.
struct Other {
    child: Child,
    _dir: TempDir,
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    pub fn gateway(seed: u64) -> Peer {
        let (api, origin) = (Api::start(seed), Origin::start());
        let gateway = Gateway::with(
            &origin,
            &format!(
                "upstream.url = \"http://{}\"\nlog.level = \"warn\"\nserver.trusted_proxies = []",
                api.address()
            ),
        );
        let address = gateway.public_address();
        Peer {
            door: Door { proxy: Proxy::Gateway, http1: address, http2: address },
            api,
            running: Running::Gateway(Box::new(gateway), origin),
        }
    }

    /// `None`: nginx is not installed.
    pub fn nginx(seed: u64) -> Option<Peer> {
        let (api, dir) = (Api::start(seed), TempDir::new());
        let (http1, http2) = (unused_port(), unused_port());
        let config = dir.write("nginx.conf", &nginx_config(&dir, &api, http1, http2));
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(config);
        Peer::start(Door { proxy: Proxy::Nginx, http1, http2 }, command, dir, api)
    }

    /// `None`: HAProxy is not installed.
    pub fn haproxy(seed: u64) -> Option<Peer> {
        let (api, dir) = (Api::start(seed), TempDir::new());
        let (http1, http2) = (unused_port(), unused_port());
        let config = dir.write("haproxy.cfg", &haproxy_config(&api, http1, http2));
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(config);
        Peer::start(Door { proxy: Proxy::Haproxy, http1, http2 }, command, dir, api)
    }

    fn start(door: Door, mut command: Command, dir: TempDir, api: Api) -> Option<Peer> {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut other = Other { child: quiet.spawn().ok()?, _dir: dir };
        wait_until(&format!("{:?} listens", door.proxy), || {
            assert!(
                other.child.try_wait().expect("its state").is_none(),
                "{:?} did not start",
                door.proxy
            );
            std::net::TcpStream::connect(door.http2).is_ok()
        });
        Some(Peer { door, api, running: Running::Other(other) })
    }

    /// Ends the proxy; what its API received, and what of it was no message.
    pub fn finish(self) -> (Vec<Arrival>, Vec<String>) {
        match self.running {
            Running::Gateway(gateway, origin) => {
                drop(gateway);
                drop(origin);
            }
            Running::Other(other) => drop(other),
        }
        self.api.into_arrivals()
    }
}

/// nginx with everything off that changes a message without need.
fn nginx_config(dir: &TempDir, api: &Api, http1: SocketAddr, http2: SocketAddr) -> String {
    let (at, api) = (dir.path().display(), api.address());
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String =
        kinds.iter().map(|kind| format!("{kind}_temp_path {at}/{kind};\n")).collect();
    format!(
        r#"
        daemon off; master_process off; pid {at}/pid; error_log stderr crit; events {{ worker_connections 1024; }}
        http {{
            access_log off; {temporary}
            keepalive_requests 1000000; client_max_body_size 0; client_body_buffer_size 1m;
            large_client_header_buffers 8 64k;
            underscores_in_headers on; ignore_invalid_headers off;
            upstream api {{ server {api} max_fails=0; keepalive 64; keepalive_requests 1000000; }}
            server {{
                listen {http1}; listen {http2} http2;
                location / {{
                    proxy_pass http://api; proxy_http_version 1.1;
                    proxy_set_header Host {api}; proxy_set_header X-Forwarded-For $remote_addr;
                    proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header Connection "";
                    proxy_pass_header Server; proxy_pass_header Date; proxy_redirect off;
                    proxy_request_buffering off; proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k;
                    proxy_busy_buffers_size 128k; proxy_max_temp_file_size 0;
                }}
            }}
        }}
        "#
    )
}

fn haproxy_config(api: &Api, http1: SocketAddr, http2: SocketAddr) -> String {
    let api = api.address();
    format!(
        r#"
global
    maxconn 1024
    tune.bufsize 65536
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    http-reuse always
frontend public
    bind {http1}
    bind {http2} proto h2
    http-request set-header host {api}
    http-request set-header x-forwarded-for %[src]
    http-request set-header x-forwarded-proto http
    default_backend api
backend api
    server api {api}
"#
    )
}
