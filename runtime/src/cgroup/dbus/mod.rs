//! As much of D-Bus as starting a systemd unit takes: one connection, calls that block until their answer or a
//! deadline, and signals that arrive meanwhile (D-Bus specification 0.43, "Type System", "Message Protocol", "Authentication Protocol").
//!
//! The engine is single-threaded and asks for a handful of calls: a client library would bring an async runtime for them.

mod wire;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;

pub(crate) use wire::{Call, Value};
use wire::{ERROR, METHOD_RETURN, Message, SIGNAL, decode, encode, total_length};

/// Why a call failed.
#[derive(Debug, Error)]
pub(crate) enum BusError {
    /// The socket cannot be reached.
    #[error("connecting to {0}")]
    Connect(PathBuf, #[source] std::io::Error),
    /// The peer closed the connection, or reading or writing failed.
    #[error("talking to systemd over D-Bus")]
    Io(#[from] std::io::Error),
    /// Our user id was not accepted.
    #[error("D-Bus authentication refused: {0}")]
    Refused(String),
    /// What arrived is no D-Bus message.
    #[error("malformed D-Bus message: {0}")]
    Malformed(&'static str),
    /// The peer's own error.
    #[error("{name}: {message}")]
    Remote {
        /// Such as `org.freedesktop.systemd1.UnitExists`.
        name: String,
        /// Its sentence.
        message: String,
    },
    /// No answer in time.
    #[error("no answer from systemd in time")]
    Deadline,
}

/// An authenticated connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    serial: u32,
    /// A bus in between (true), or systemd itself at the other end.
    is_bus: bool,
    signals: VecDeque<Message>,
}

impl Connection {
    /// Connects and authenticates as our user; on a bus, also says hello.
    pub(crate) fn open(socket: &Path, is_bus: bool, deadline: Instant) -> Result<Self, BusError> {
        let stream =
            UnixStream::connect(socket).map_err(|error| BusError::Connect(socket.to_owned(), error))?;
        let mut connection = Self { stream, serial: 0, is_bus, signals: VecDeque::new() };
        let user = rustix::process::geteuid().as_raw().to_string();
        // The number's digits, each in hexadecimal ASCII.
        let user: String = user.chars().flat_map(|digit| ['3', digit]).collect();
        // In one piece with BEGIN, as sd-bus itself does. BEGIN on its own can reach systemd together with the first message; systemd then
        // waits for the socket to become readable although it has read that message already, and never answers it.
        connection.stream.write_all(format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n").as_bytes())?;
        let answer = connection.line(deadline)?;
        if !answer.starts_with("OK ") {
            return Err(BusError::Refused(answer));
        }
        if is_bus {
            let hello = Call {
                destination: "org.freedesktop.DBus",
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member: "Hello",
            };
            connection.call(&hello, &[], deadline)?;
        }
        Ok(connection)
    }

    /// Whether a bus is in between.
    pub(crate) fn is_bus(&self) -> bool {
        self.is_bus
    }

    /// Calls a method and waits for what it returns. Signals that come first are kept.
    pub(crate) fn call(
        &mut self,
        call: &Call<'_>,
        body: &[Value],
        deadline: Instant,
    ) -> Result<Vec<Value>, BusError> {
        self.serial += 1;
        let bytes = encode(call, self.serial, self.is_bus, body);
        self.wait_until(deadline)?;
        self.stream.write_all(&bytes)?;
        loop {
            let message = self.receive(deadline)?;
            let ours = message.reply_to == Some(self.serial);
            match message.kind {
                METHOD_RETURN if ours => return Ok(message.body),
                ERROR if ours => {
                    let name = message.error.unwrap_or_default();
                    let text = message.body.first().and_then(Value::as_text).unwrap_or_default();
                    return Err(BusError::Remote { name, message: text.to_owned() });
                }
                SIGNAL => self.signals.push_back(message),
                _ => {}
            }
        }
    }

    /// The next signal.
    pub(crate) fn signal(&mut self, deadline: Instant) -> Result<Message, BusError> {
        loop {
            if let Some(message) = self.signals.pop_front() {
                return Ok(message);
            }
            let message = self.receive(deadline)?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, BusError> {
        let mut head = [0; 16];
        self.read(&mut head, deadline)?;
        let mut bytes = head.to_vec();
        bytes.resize(total_length(&head)?, 0);
        self.read(&mut bytes[16..], deadline)?;
        decode(&bytes)
    }

    /// Fills the buffer.
    fn read(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), BusError> {
        while !buffer.is_empty() {
            self.wait_until(deadline)?;
            match self.stream.read(buffer) {
                Ok(0) => return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => buffer = &mut buffer[count..],
                Err(error) => match error.kind() {
                    std::io::ErrorKind::Interrupted => {}
                    std::io::ErrorKind::WouldBlock => return Err(BusError::Deadline),
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// A line of the authentication, byte by byte, for binary messages may follow it.
    fn line(&mut self, deadline: Instant) -> Result<String, BusError> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() > 1024 {
                return Err(BusError::Malformed("the authentication answer has no end"));
            }
            let mut byte = [0];
            self.read(&mut byte, deadline)?;
            line.push(byte[0]);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Bounds the next read and write.
    fn wait_until(&self, deadline: Instant) -> Result<(), BusError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left < Duration::from_micros(1) {
            return Err(BusError::Deadline);
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.set_write_timeout(Some(left))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::wire::tests::HELLO;

    #[test]
    fn a_real_bus_understands_us() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("bus");
        let daemon = std::process::Command::new("dbus-daemon")
            .args(["--session", "--nofork", "--nopidfile", "--print-address"])
            .arg(format!("--address=unix:path={}", socket.display()))
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut daemon) = daemon else { return println!("skipped: no dbus-daemon here") };
        let mut ready = [0];
        daemon.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut connection = Connection::open(&socket, true, deadline).unwrap();
        let signal = connection.signal(deadline).unwrap();
        assert_eq!(signal.member.as_deref(), Some("NameAcquired"));
        let name = signal.body[0].as_text().unwrap().to_owned();
        let names = connection.call(&Call { member: "ListNames", ..HELLO }, &[], deadline).unwrap();
        assert!(matches!(&names[0], Value::Array(_, names) if names.contains(&Value::String(name.clone()))));
        let pid = Call { member: "GetConnectionUnixProcessID", ..HELLO };
        let pid = connection.call(&pid, &[Value::text(name)], deadline).unwrap();
        assert_eq!(pid, [Value::Uint32(std::process::id())]);
        let absent = Call { destination: "org.podwright.Absent", ..HELLO };
        let error = connection.call(&absent, &[], deadline).unwrap_err();
        assert!(matches!(error, BusError::Remote { name, .. } if name.ends_with(".ServiceUnknown")));
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(connection.signal(soon), Err(BusError::Deadline)));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }
}
