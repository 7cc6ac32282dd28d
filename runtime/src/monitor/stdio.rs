//! A container's stdin, stdout and stderr, or its terminal, from the monitor's side.
//!
//! ```text
//!                      .--> log (never loses a line; a full disk stops the reading)
//!   stdout, stderr ----+
//!   or pty master      `--> attach clients (bounded; a slow one is dropped)
//!
//!   attach clients' input ----> stdin pipe or pty master (bounded; a full pipe stops the reading)
//! ```
//!
//! Output is read when poll says so, one buffer at a time, so that no container starves another.
//! At the exit of the container's init everything its pipes hold is read at once ([`Stdio::drain`]), before
//! the exit is told; whoever still holds a pipe's other end then is read from until the container is deleted.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::attach::{Client, ClientFds, MAX_CLIENTS, SinkEnd};
use super::log::{Flow, Log, RETRY_FIRST, RETRY_LAST};
use super::log_format::Stream;
use super::poll::{Kind, Poll, Token, Watched};
use crate::{Failure, Step};

/// How much is read at once: what a pipe holds by default.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// The most that is read from one stream at the exit: the largest pipe an unprivileged process can make.
const DRAIN_BYTES: usize = 1024 * 1024;

/// The most input that waits for the container to read it.
const INPUT_BYTES: usize = 4096;

/// Buffers that all containers share.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// What was read; [`READ_BYTES`] long once used.
    read: Vec<u8>,
    /// Encoded log lines.
    scratch: Vec<u8>,
}

impl Buffers {
    fn read(&mut self) -> (&mut [u8], &mut Vec<u8>) {
        if self.read.is_empty() {
            self.read = vec![0; READ_BYTES];
        }
        (&mut self.read, &mut self.scratch)
    }

    /// Gives memory back once nothing is written any more.
    pub(crate) fn release(&mut self) {
        *self = Self::default();
    }

    /// Whether they hold memory.
    pub(crate) fn are_used(&self) -> bool {
        !self.read.is_empty()
    }
}

/// The monitor's ends of a new container's stdio.
#[derive(Debug)]
pub(crate) enum Ends {
    /// A pseudo-terminal's master, for both directions.
    Terminal(OwnedFd),
    /// Pipes.
    Pipes {
        /// Write end; None: the container's stdin is /dev/null.
        stdin: Option<OwnedFd>,
        /// Read end.
        stdout: OwnedFd,
        /// Read end.
        stderr: OwnedFd,
    },
}

/// Everything about a container's stdio.
#[derive(Debug)]
pub(crate) struct Stdio {
    poll: Poll,
    owner: u32,
    log: Log,
    stdout: Option<Watched>,
    stderr: Option<Watched>,
    stdin: Option<Watched>,
    is_terminal: bool,
    /// Whether attach clients may type, with a terminal too.
    takes_input: bool,
    /// stdin is closed when the first client that types leaves.
    stdin_once: bool,
    /// Typed, and not yet taken by the container.
    input: Vec<u8>,
    clients: Vec<Client>,
    next_client: u16,
    /// When to try a refused log write again, and the wait after that.
    retry: Option<(Instant, Duration)>,
}

/// How a container wants its stdin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input {
    /// Clients may type.
    pub(crate) kept: bool,
    /// It ends with the first client.
    pub(crate) once: bool,
}

impl Stdio {
    /// Takes over the ends of the container with the number `owner`.
    pub(crate) fn new(poll: &Poll, owner: u32, log: Log, ends: Ends, input: Input) -> Result<Self, Errno> {
        let watch = |fd: OwnedFd, kind, flags| {
            rustix::io::ioctl_fionbio(&fd, true)?;
            poll.watch(fd, Token::new(kind, owner), flags)
        };
        let is_terminal = matches!(ends, Ends::Terminal(_));
        let (stdin, stdout, stderr) = match ends {
            Ends::Terminal(master) => {
                let writer = master.try_clone().map_err(|_| Errno::MFILE)?;
                (Some(watch(writer, Kind::Stdin, None)?), master, None)
            }
            Ends::Pipes { stdin, stdout, stderr } => {
                (stdin.map(|fd| watch(fd, Kind::Stdin, None)).transpose()?, stdout, Some(stderr))
            }
        };
        Ok(Self {
            poll: poll.clone(),
            owner,
            log,
            stdout: Some(watch(stdout, Kind::Stdout, Some(EventFlags::IN))?),
            stderr: stderr.map(|fd| watch(fd, Kind::Stderr, Some(EventFlags::IN))).transpose()?,
            stdin,
            is_terminal,
            takes_input: input.kept,
            stdin_once: input.once,
            input: Vec::new(),
            clients: Vec::new(),
            next_client: 0,
            retry: None,
        })
    }

    /// When [`retry_log`](Self::retry_log) is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    /// The log of the container.
    pub(crate) fn log(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        match &self.stdout {
            Some(master) if self.is_terminal => set_size(master, columns, rows),
            _ => Err(Failure::because(Step::Console, "the container has no terminal")),
        }
    }

    /// `stream` is readable: reads one buffer of it.
    pub(crate) fn read(&mut self, stream: Stream, buffers: &mut Buffers) {
        if !self.log.is_blocked() {
            self.read_once(stream, buffers);
        }
    }

    /// Reads all that the container has written so far, and logs a last line without its newline: its init is gone.
    pub(crate) fn drain(&mut self, buffers: &mut Buffers) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = DRAIN_BYTES;
            while left > 0 && !self.log.is_blocked() {
                match self.read_once(stream, buffers) {
                    0 => break,
                    count => left = left.saturating_sub(count),
                }
            }
            let flow = self.log.flush(stream, realtime_ns(), &mut buffers.scratch);
            self.note(flow);
        }
        self.end_clients();
    }

    /// Tries to log what the disk refused; the container's output is read again once it is taken.
    pub(crate) fn retry_log(&mut self) {
        let flow = self.log.retry();
        self.note(flow);
    }

    /// Attaches a client.
    pub(crate) fn attach(&mut self, name: String, mut fds: ClientFds) -> Result<(), Failure> {
        if self.clients.len() >= MAX_CLIENTS {
            let message = format!("{MAX_CLIENTS} clients are attached already, which is the most");
            return Err(Failure::because(Step::Request, message));
        }
        if !self.takes_input || self.stdin.is_none() {
            fds.stdin = None;
        }
        self.next_client = self.next_client.wrapping_add(1);
        let client = Client::new(&self.poll, self.owner, self.next_client, name, fds).map_err(|errno| {
            Failure::os(Step::Request, errno).with_message("wait for the attach client's descriptors")
        })?;
        self.clients.push(client);
        Ok(())
    }

    /// A client's descriptor for `stream` is ready, or closed by its other end.
    pub(crate) fn client_ready(&mut self, number: u16, stream: Stream, closed: bool) {
        let Some(client) = self.client(number) else { return };
        match client.ready(stream, closed) {
            Ok(()) => self.forget_ended_clients(),
            Err(end) => self.drop_client(number, end),
        }
    }

    /// A client has typed something, or has stopped typing for good.
    pub(crate) fn client_input(&mut self, number: u16) {
        if !self.input.is_empty() {
            return;
        }
        let Some(client) = self.client(number) else { return };
        let Some(input) = &client.input else { return };
        let mut typed = [0; INPUT_BYTES];
        match rustix::io::retry_on_intr(|| rustix::io::read(input, &mut typed)) {
            Ok(0) => {
                client.input = None;
                self.input_left();
            }
            Ok(count) => self.type_in(&typed[..count]),
            Err(Errno::AGAIN) => {}
            Err(_) => self.drop_client(number, SinkEnd::Closed),
        }
    }

    /// The container takes input again.
    pub(crate) fn stdin_ready(&mut self) {
        let waiting = std::mem::take(&mut self.input);
        self.type_in(&waiting);
    }

    fn client(&mut self, number: u16) -> Option<&mut Client> {
        self.clients.iter_mut().find(|client| client.number == number)
    }

    fn source(&mut self, stream: Stream) -> &mut Option<Watched> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// Reads and hands on one buffer; how much it was. 0: nothing now, or nothing any more.
    fn read_once(&mut self, stream: Stream, buffers: &mut Buffers) -> usize {
        let Some(source) = self.source(stream) else { return 0 };
        let (buffer, scratch) = buffers.read();
        match rustix::io::retry_on_intr(|| rustix::io::read(source.as_fd(), &mut *buffer)) {
            Err(Errno::AGAIN) => 0,
            // A pty's master says EIO when nobody has the other side open any more.
            Ok(0) | Err(_) => {
                *self.source(stream) = None;
                let flow = self.log.flush(stream, realtime_ns(), scratch);
                self.note(flow);
                if self.stdout.is_none() && self.stderr.is_none() {
                    self.end_clients();
                }
                0
            }
            Ok(count) => {
                let chunk = &buffer[..count];
                self.copy_to_clients(stream, chunk);
                if self.log.is_kept() {
                    let flow = self.log.write(stream, chunk, realtime_ns(), scratch);
                    self.note(flow);
                }
                count
            }
        }
    }

    /// Stops or resumes the reading of output, as the log can take it.
    fn note(&mut self, flow: Flow) {
        let flags = match flow {
            Flow::Open if self.retry.is_none() => return,
            Flow::Open => {
                tracing::info!("the log can be written again");
                self.retry = None;
                Some(EventFlags::IN)
            }
            Flow::Blocked(errno) => {
                let wait = self.retry.map_or(RETRY_FIRST, |(_, wait)| (wait * 2).min(RETRY_LAST));
                if self.retry.is_none() {
                    tracing::warn!(errno = errno.raw_os_error(), "the log cannot be written: output waits");
                }
                self.retry = Some((Instant::now() + wait, wait));
                None
            }
        };
        for source in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            if let Err(errno) = source.set(flags) {
                tracing::error!(errno = errno.raw_os_error(), "wait for a container's output");
            }
        }
    }

    fn copy_to_clients(&mut self, stream: Stream, chunk: &[u8]) {
        let pushed = self.clients.iter_mut().filter_map(|client| {
            let end = client.push(stream, chunk).err()?;
            Some((client.number, end))
        });
        let ended: Vec<_> = pushed.collect();
        for (number, end) in ended {
            self.drop_client(number, end);
        }
    }

    fn drop_client(&mut self, number: u16, end: SinkEnd) {
        let Some(place) = self.clients.iter().position(|client| client.number == number) else { return };
        let client = self.clients.remove(place);
        if end == SinkEnd::Slow {
            tracing::warn!(attach = client.name, "dropped an attach client that does not read");
        }
        if client.input.is_some() {
            self.input_left();
        }
    }

    /// No more output will come: clients go when they have read what waits.
    fn end_clients(&mut self) {
        self.clients.iter_mut().for_each(Client::end);
        self.forget_ended_clients();
    }

    fn forget_ended_clients(&mut self) {
        self.clients.retain(|client| !client.has_ended());
    }

    /// A client that could type has left. A terminal stays: closing its master would hang the container up.
    fn input_left(&mut self) {
        if self.stdin_once && !self.is_terminal {
            self.stdin = None;
            self.input = Vec::new();
        }
    }

    /// Writes to the container's stdin. What it does not take waits, and clients wait with it.
    fn type_in(&mut self, mut typed: &[u8]) {
        let Some(stdin) = &mut self.stdin else { return };
        while !typed.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&*stdin, typed)) {
                Ok(count) => typed = &typed[count..],
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // The container has closed its stdin. What is typed from now on goes nowhere.
                    self.stdin = None;
                    typed = &[];
                    break;
                }
            }
        }
        self.input = typed.to_vec();
        let waits = !self.input.is_empty();
        let mut failed = Ok(());
        if let Some(stdin) = &mut self.stdin {
            failed = failed.and(stdin.set(waits.then_some(EventFlags::OUT)));
        }
        for input in self.clients.iter_mut().filter_map(|client| client.input.as_mut()) {
            failed = failed.and(input.set((!waits).then_some(EventFlags::IN)));
        }
        if let Err(errno) = failed {
            tracing::error!(errno = errno.raw_os_error(), "wait for a container's input");
        }
    }
}

/// Sets the size of the terminal whose master this is.
pub(crate) fn set_size(master: &impl AsFd, columns: u16, rows: u16) -> Result<(), Failure> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).map_err(|errno| Failure::os(Step::Console, errno))
}

/// Now, in nanoseconds since the epoch.
pub(crate) fn realtime_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}
