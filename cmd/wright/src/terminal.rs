//! Terminals: handing a container's to another program, or being in between ourselves.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

/// The most bytes held in one direction.
const BUFFER_BYTES: usize = 32 * 1024;

/// Connects to the socket of a program that wants a descriptor of ours.
pub(crate) fn connect(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).with_context(|| format!("connect to {}", path.display()))
}

/// Sends a descriptor with its name, as the readers of `--console-socket` and `--pidfd-socket` expect.
pub(crate) fn send_fd(socket: &UnixStream, fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    // The buffer is made for exactly one descriptor.
    control.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(socket, &[IoSlice::new(name.as_bytes())], &mut control, SendFlags::NOSIGNAL)
        .context("hand over a descriptor")?;
    Ok(())
}

/// Copies between our own standard streams and a container's terminal. Dropping it restores our terminal.
pub(crate) struct Relay {
    master: OwnedFd,
    /// Our terminal's settings before it became raw. None: stdin is no terminal.
    cooked: Option<Termios>,
    /// Typed, not yet taken by the container.
    input: Vec<u8>,
    /// Stdin is at its end, or the container's terminal closed.
    input_ended: bool,
    /// The container's side is closed.
    output_ended: bool,
}

impl Relay {
    /// Takes over the terminal: raw, so that every key goes to the container, and of our size.
    pub(crate) fn start(master: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context("prepare the terminal")?;
        let stdin = rustix::stdio::stdin();
        let mut relay =
            Self { master, cooked: None, input: Vec::new(), input_ended: false, output_ended: false };
        if isatty(stdin) {
            let cooked = tcgetattr(stdin).context("read the terminal's settings")?;
            let mut raw = cooked.clone();
            raw.make_raw();
            // The container's terminal leaves the ends of lines to this one.
            raw.output_modes.insert(OutputModes::OPOST);
            tcsetattr(stdin, OptionalActions::Now, &raw).context("make the terminal raw")?;
            relay.cooked = Some(cooked);
            relay.resize();
        }
        Ok(relay)
    }

    /// Gives the container's terminal the size of ours.
    pub(crate) fn resize(&self) {
        if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
            // A terminal that is closed meanwhile needs no size.
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for: stdin where there is room, the terminal for output and where there is input to give.
    pub(crate) fn interest(&self) -> Vec<PollFd<'_>> {
        let mut interest = Vec::with_capacity(2);
        if !self.output_ended {
            let write = if self.input.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            interest.push(PollFd::new(&self.master, PollFlags::IN | write));
        }
        if !self.input_ended && self.input.len() < BUFFER_BYTES {
            interest.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        interest
    }

    /// Moves what can be moved. `stdin_ready` says that reading stdin will not block.
    pub(crate) fn step(&mut self, stdin_ready: bool) -> Result<()> {
        if stdin_ready && !self.input_ended {
            let mut buffer = [0; 4096];
            match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) | Err(Errno::IO) => self.input_ended = true,
                Ok(length) => self.input.extend_from_slice(&buffer[..length]),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno).context("read standard input"),
            }
        }
        if !self.input.is_empty() {
            match rustix::io::write(&self.master, &self.input) {
                Ok(length) => {
                    self.input.drain(..length);
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => {
                    self.input.clear();
                    self.input_ended = true;
                }
            }
        }
        self.output()
    }

    /// Copies what the container wrote until it would block or is at its end.
    pub(crate) fn output(&mut self) -> Result<()> {
        let mut buffer = [0; 8192];
        while !self.output_ended {
            match rustix::io::read(&self.master, &mut buffer) {
                // EIO: nobody has the other side open any more.
                Ok(0) | Err(Errno::IO) => self.output_ended = true,
                Ok(length) => write_all(rustix::stdio::stdout(), &buffer[..length])?,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("read the container's terminal"),
            }
        }
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(cooked) = &self.cooked {
            // The terminal may be gone with its window.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, cooked);
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd.as_fd(), bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut ready = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                rustix::event::poll(&mut ready, None).context("wait for standard output")?;
            }
            Err(errno) => return Err(errno).context("write to standard output"),
        }
    }
    Ok(())
}
