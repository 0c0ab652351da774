//! Who listens on a port that is wanted: what `ss -ltnp` would say, for the message of a second instance (proc(5)).

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// A listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Who holds a port, as far as this process may know.
#[derive(Debug, PartialEq, Eq)]
pub enum Holder {
    Process {
        id: u32,
        name: String,
    },
    /// A process that this user may not look into.
    User {
        id: u32,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A name may be anything, and this is read on a terminal.
            Holder::Process { id, name } => write!(f, "the port is used by process {id} ({})", name.escape_debug()),
            Holder::User { id } => write!(f, "the port is used by a process of user id {id}"),
        }
    }
}

/// Who listens on that port, on whatever address; `None` where the system does not tell.
pub fn holder(address: SocketAddr) -> Option<Holder> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(fs::read_to_string);
    let lines = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
    let (user, inode) = lines.filter_map(|line| listener(line, address.port())).next()?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let id = processes.find(|id| has(*id, &socket));
    Some(id.map_or(Holder::User { id: user }, |id| Holder::Process { id, name: name(id) }))
}

/// The file name that it was started by; what the kernel calls it, which is cut after 15 bytes, where it does not tell that.
fn name(process: u32) -> String {
    let told = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let first = String::from_utf8_lossy(told.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    let file = Path::new(&first).file_name().map(|name| name.to_string_lossy().into_owned());
    file.unwrap_or_else(|| {
        fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim_end().to_owned()
    })
}

/// User and inode of the socket that a line of the table tells of, if it listens on that port.
fn listener(line: &str, port: u16) -> Option<(u32, &str)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (local, state, user, inode) = (*fields.get(1)?, *fields.get(3)?, fields.get(7)?, *fields.get(9)?);
    let listens = state == LISTEN && u16::from_str_radix(local.rsplit(':').next()?, 16) == Ok(port);
    listens.then_some((user.parse().ok()?, inode))
}

fn has(process: u32, socket: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| link == Path::new(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_held_while_a_socket_listens_on_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let Some(Holder::Process { id, name }) = holder(address) else { panic!("{:?}", holder(address)) };
        assert_eq!(id, std::process::id());
        let program = std::env::current_exe().unwrap();
        assert_eq!(name.as_str(), program.file_name().unwrap(), "all of it, however long");
        drop(listener);
        assert_ne!(holder(address), Some(Holder::Process { id, name }));
    }
}
