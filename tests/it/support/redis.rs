//! A real `redis-server` for one test, on a socket in a temporary folder, without persistence.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{PATIENCE, TempDir, wait_until};

/// A running server; killed when it is dropped.
pub struct Redis {
    child: Option<Child>,
    dir: TempDir,
    password: Option<String>,
    /// A configuration file, whose options the test's own override.
    config: Option<PathBuf>,
}

impl Redis {
    /// Starts a server. `None`, with a printed reason, if it is not installed.
    pub fn start(test: &str) -> Option<Redis> {
        Redis::with_password(test, None)
    }

    /// Starts a server that requires a password.
    pub fn with_password(test: &str, password: Option<&str>) -> Option<Redis> {
        let mut redis = Redis::stopped(test)?;
        redis.password = password.map(str::to_owned);
        redis.run();
        Some(redis)
    }

    /// Starts a server with a configuration file.
    pub fn configured(test: &str, config: &Path) -> Option<Redis> {
        let mut redis = Redis::stopped(test)?;
        redis.config = Some(config.to_owned());
        redis.run();
        Some(redis)
    }

    /// A server that is not started yet.
    pub fn stopped(test: &str) -> Option<Redis> {
        if Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_err() {
            println!("skipped: {test}: redis-server is not installed");
            return None;
        }
        Some(Redis { child: None, dir: TempDir::new(), password: None, config: None })
    }

    /// The URL of its socket.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The path of its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Starts the server, empty.
    pub fn run(&mut self) {
        let socket = self.socket();
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("redis-server");
        command.args(&self.config);
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "no",
            "--daemonize",
            "no",
            "--unixsocket",
        ]);
        command.arg(&socket).arg("--dir").arg(self.dir.path());
        if let Some(password) = &self.password {
            command.arg("--requirepass").arg(password);
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        self.child = Some(child);
        wait_until("Redis answers", || answers(&socket));
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }

    /// Sends a signal, for example STOP to make it silent.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("it runs");
    }

    /// Sends a command and returns the raw reply.
    pub fn command(&self, words: &[&str]) -> String {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        String::from_utf8_lossy(&self.send(&words)).into_owned()
    }

    /// Sends a command as that user and returns the raw reply.
    pub fn command_as(&self, user: &str, password: &str, words: &[&str]) -> String {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        let login: Vec<&[u8]> = vec![b"AUTH", user.as_bytes(), password.as_bytes()];
        String::from_utf8_lossy(&self.send_all(vec![login, words])).into_owned()
    }

    /// The keys of that type.
    pub fn names(&self, kind: &str) -> Vec<String> {
        let all = self.command(&["KEYS", "*"]);
        let names = all.lines().skip(1).filter(|line| !line.starts_with('$')).map(str::to_owned);
        names.filter(|name| self.command(&["TYPE", name]).trim() == format!("+{kind}")).collect()
    }

    /// The string value of a key; empty if it does not exist.
    pub fn value(&self, name: &str) -> Vec<u8> {
        let answer = self.send(&[b"GET", name.as_bytes()]);
        let head = answer.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
        answer[head..].strip_suffix(b"\r\n").unwrap_or_default().to_vec()
    }

    pub fn set(&self, name: &str, value: &[u8]) {
        assert_eq!(self.send(&[b"SET", name.as_bytes(), value]), b"+OK\r\n");
    }

    fn send(&self, words: &[&[u8]]) -> Vec<u8> {
        let login =
            self.password.as_ref().map(|password| vec![b"AUTH".as_slice(), password.as_bytes()]);
        self.send_all(login.into_iter().chain([words.to_vec()]).collect())
    }

    /// Sends commands on one connection and returns the last reply.
    fn send_all(&self, all: Vec<Vec<&[u8]>>) -> Vec<u8> {
        let mut stream = UnixStream::connect(self.socket()).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut answer = Vec::new();
        for words in all {
            let mut request = format!("*{}\r\n", words.len()).into_bytes();
            for word in words {
                request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                request.extend_from_slice(word);
                request.extend_from_slice(b"\r\n");
            }
            stream.write_all(&request).expect("it reads");
            answer.clear();
            let reader = BufReader::new(stream.try_clone().expect("another handle"));
            reply(&mut { reader }, &mut answer).expect("it answers");
        }
        answer
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let mut answer = [0; 1];
    stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok()
}

/// Reads one reply.
fn reply(from: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<()> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    into.extend_from_slice(line.as_bytes());
    let count = line[1..].trim().parse::<i64>().unwrap_or(0);
    match line.as_bytes().first() {
        Some(b'$') if count >= 0 => {
            let mut bytes = vec![0; usize::try_from(count).expect("a length") + 2];
            from.read_exact(&mut bytes)?;
            into.extend_from_slice(&bytes);
        }
        Some(b'*') => {
            for _ in 0..count {
                reply(from, into)?;
            }
        }
        _ => {}
    }
    Ok(())
}
