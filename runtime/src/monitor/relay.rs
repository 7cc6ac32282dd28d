//! The terminal of an exec'd process: the monitor copies between its pty and the two descriptors the daemon passed.
//!
//! Without a terminal an exec'd process has the daemon's descriptors themselves and the monitor copies nothing.
//! Here, unlike with a container's output, the client is the only reader: one that reads slowly makes the
//! process wait, and one that leaves makes its output be dropped.

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::attach::Sink;
use super::poll::{Kind, Poll, Token, Watched};
use super::stdio::set_size;
use crate::Failure;

/// How much is read at once.
const READ_BYTES: usize = 16 * 1024;

/// The most that is read at the process's exit and kept for a slow client.
const DRAIN_BYTES: usize = 1024 * 1024;

/// The two directions of one terminal.
#[derive(Debug)]
pub(crate) struct Relay {
    /// None: the terminal is at its end.
    master: Option<Watched>,
    /// A second descriptor of the master, waited on for writing only.
    writer: Watched,
    input: Option<Watched>,
    output: Option<Sink>,
    /// Typed, and not yet taken by the terminal.
    typed: Vec<u8>,
    /// The process has exited: what is left to do is to hand on what it wrote.
    ending: bool,
}

impl Relay {
    /// Between `master` and the client of the exec with the number `owner`.
    pub(crate) fn new(
        poll: &Poll,
        owner: u32,
        master: OwnedFd,
        input: Option<OwnedFd>,
        output: Option<OwnedFd>,
    ) -> Result<Self, Errno> {
        rustix::io::ioctl_fionbio(&master, true)?;
        let writer = master.try_clone().map_err(|_| Errno::MFILE)?;
        let input = match input {
            Some(fd) => {
                rustix::io::ioctl_fionbio(&fd, true)?;
                Some(poll.watch(fd, Token::new(Kind::ExecInput, owner), Some(EventFlags::IN))?)
            }
            None => None,
        };
        Ok(Self {
            master: Some(poll.watch(master, Token::new(Kind::ExecTerminal, owner), Some(EventFlags::IN))?),
            writer: poll.watch(writer, Token::new(Kind::ExecTerminal, owner), None)?,
            input,
            output: output.map(|fd| Sink::new(poll, fd, Token::new(Kind::ExecOutput, owner))).transpose()?,
            typed: Vec::new(),
            ending: false,
        })
    }

    /// Sets the terminal's size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        set_size(&self.writer, columns, rows)
    }

    /// The terminal has output, or takes input again.
    pub(crate) fn terminal_ready(&mut self) {
        if !self.typed.is_empty() {
            let typed = std::mem::take(&mut self.typed);
            self.type_in(&typed);
        }
        if self.output.as_ref().is_none_or(Sink::is_flushed) {
            self.copy_once();
        }
    }

    /// The client has typed, or has left.
    pub(crate) fn input_ready(&mut self) {
        let Some(input) = &self.input else { return };
        let mut typed = [0; 4096];
        match rustix::io::retry_on_intr(|| rustix::io::read(input, &mut typed)) {
            Ok(count) if count > 0 => self.type_in(&typed[..count]),
            Err(Errno::AGAIN) => {}
            Ok(_) | Err(_) => self.input = None,
        }
    }

    /// The client takes output again, or has left.
    pub(crate) fn output_ready(&mut self, closed: bool) {
        let Some(output) = &mut self.output else { return };
        if closed || output.flush().is_err() {
            self.output = None;
        }
        self.wait_for_output();
    }

    /// The process has exited: takes what it wrote. The rest is up to [`output_ready`](Self::output_ready).
    pub(crate) fn end(&mut self) {
        let mut left = DRAIN_BYTES;
        while left > 0 {
            match self.copy_once() {
                0 => break,
                count => left = left.saturating_sub(count),
            }
        }
        self.ending = true;
        self.master = None;
        self.input = None;
    }

    /// Whether nothing is left to do.
    pub(crate) fn has_ended(&self) -> bool {
        self.ending && self.output.as_ref().is_none_or(Sink::is_flushed)
    }

    /// Copies one buffer from the terminal to the client; how much it was.
    fn copy_once(&mut self) -> usize {
        let Some(master) = &self.master else { return 0 };
        let mut buffer = [0; READ_BYTES];
        let count = match rustix::io::retry_on_intr(|| rustix::io::read(master.as_fd(), &mut buffer)) {
            Err(Errno::AGAIN) => return 0,
            Ok(0) | Err(_) => {
                self.master = None;
                return 0;
            }
            Ok(count) => count,
        };
        if let Some(output) = &mut self.output
            && output.push(&buffer[..count], DRAIN_BYTES + READ_BYTES).is_err()
        {
            self.output = None;
        }
        self.wait_for_output();
        count
    }

    /// The terminal is read only while the client has taken everything.
    fn wait_for_output(&mut self) {
        let open = self.output.as_ref().is_none_or(Sink::is_flushed);
        if let Some(master) = &mut self.master {
            log_failed(master.set(open.then_some(EventFlags::IN)));
        }
    }

    fn type_in(&mut self, mut typed: &[u8]) {
        while !typed.is_empty() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.writer, typed)) {
                Ok(count) => typed = &typed[count..],
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.input = None;
                    typed = &[];
                }
            }
        }
        self.typed = typed.to_vec();
        let waits = !self.typed.is_empty();
        log_failed(self.writer.set(waits.then_some(EventFlags::OUT)));
        if let Some(input) = &mut self.input {
            log_failed(input.set((!waits).then_some(EventFlags::IN)));
        }
    }
}

fn log_failed(result: Result<(), Errno>) {
    if let Err(errno) = result {
        tracing::error!(errno = errno.raw_os_error(), "wait for an exec'd process's terminal");
    }
}
