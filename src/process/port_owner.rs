//! The process that listens on an occupied port, as `ss -ltnp` shows it (proc(5)). It is part of
//! the error of a second instance.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// The owner of a port, as far as this process may see it.
#[derive(Debug, PartialEq, Eq)]
pub enum PortOwner {
    Process {
        id: u32,
        name: String,
    },
    /// A process whose descriptors this user may not read.
    User {
        id: u32,
    },
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A process chooses its own name, and this is printed on a terminal.
            PortOwner::Process { id, name } => {
                write!(f, "the port is used by process {id} ({})", name.escape_debug())
            }
            PortOwner::User { id } => write!(f, "the port is used by a process of user id {id}"),
        }
    }
}

/// Finds the owner of a port, on any address; `None` if the system does not show it.
pub fn port_owner(address: SocketAddr) -> Option<PortOwner> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"].map(fs::read_to_string);
    let lines = tables.iter().flatten().flat_map(|table| table.lines().skip(1));
    let socket = lines.filter_map(|line| listening_socket(line, address.port())).next()?;
    let link = format!("socket:[{}]", socket.inode);
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Some(match ids.find(|id| has_descriptor(*id, &link)) {
        Some(id) => PortOwner::Process { id, name: program_name(id) },
        None => PortOwner::User { id: socket.user },
    })
}

/// The file name of the program that a process runs. The kernel's own name for it is cut after 15
/// bytes and is the fallback.
fn program_name(process: u32) -> String {
    let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = String::from_utf8_lossy(program);
    match Path::new(&*program).file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => {
            let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            name.trim_end().to_owned()
        }
    }
}

struct ListeningSocket<'a> {
    user: u32,
    inode: &'a str,
}

/// Parses a line of the table, if its socket listens on that port.
fn listening_socket(line: &str, port: u16) -> Option<ListeningSocket<'_>> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let local_port = fields.get(1)?.rsplit(':').next()?;
    let listens = *fields.get(3)? == LISTEN && u16::from_str_radix(local_port, 16) == Ok(port);
    let user = fields.get(7)?.parse().ok()?;
    listens.then_some(ListeningSocket { user, inode: fields.get(9)? })
}

fn has_descriptor(process: u32, link: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let mut targets = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.any(|target| target == Path::new(link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_owner_is_found_while_its_socket_listens() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let owner = port_owner(address);
        let Some(PortOwner::Process { id, name }) = owner else { panic!("{owner:?}") };
        assert_eq!(id, std::process::id());
        let program = std::env::current_exe().unwrap();
        assert_eq!(name.as_str(), program.file_name().unwrap(), "the whole name, however long");
        drop(listener);
        assert_ne!(port_owner(address), Some(PortOwner::Process { id, name }));
    }
}
