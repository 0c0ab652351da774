//! A request to the admin listener, and the resource that its path names.

use std::net::IpAddr;

use http::{HeaderMap, Method};

/// Who sent a request to the admin listener.
#[derive(Clone, Copy, Debug)]
pub struct Requester<'r> {
    pub address: IpAddr,
    pub request_id: &'r str,
}

/// A request to the admin listener.
pub struct AdminRequest<'r> {
    pub method: &'r Method,
    pub path: &'r str,
    pub host: Option<&'r str>,
    pub fields: &'r HeaderMap,
    pub requester: Requester<'r>,
}

/// The resource that a path names.
#[derive(PartialEq, Eq)]
pub enum Resource<'a> {
    Live,
    Ready,
    Page,
    Metrics,
    Stats,
    History,
    Config,
    Cache,
    Customer(&'a str),
    Employee(&'a str),
    Reload,
}

impl<'a> Resource<'a> {
    pub fn find(path: &'a str) -> Option<Self> {
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        Some(match *segments.as_slice() {
            ["livez"] => Resource::Live,
            ["readyz"] => Resource::Ready,
            [""] => Resource::Page,
            ["metrics"] => Resource::Metrics,
            ["stats"] => Resource::Stats,
            ["stats", "history"] => Resource::History,
            ["config"] => Resource::Config,
            ["cache"] => Resource::Cache,
            ["cache", "customers", id] => Resource::Customer(id),
            ["cache", "employees", id] => Resource::Employee(id),
            ["reload"] => Resource::Reload,
            _ => return None,
        })
    }

    /// The methods that it supports, as `Allow` lists them (RFC 9110 section 10.2.1).
    pub const fn methods(&self) -> &'static str {
        match self {
            Resource::Cache | Resource::Customer(_) | Resource::Employee(_) => "DELETE",
            Resource::Reload => "POST",
            _ => "GET, HEAD",
        }
    }

    pub fn allows(&self, method: &Method) -> bool {
        self.methods().split(", ").any(|allowed| allowed == method.as_str())
    }
}
