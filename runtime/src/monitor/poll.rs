//! The one place where the monitor waits: an epoll(7) instance, level-triggered, and tokens that say whose a descriptor is.
//!
//! A token names its owner by a number that is never used again, so an event for something that has gone
//! (earlier in the same batch, say) finds no owner and is dropped; there is no table of descriptors to keep true.
//! A [`Watched`] takes itself off the epoll instance before it closes: the kernel would not, while another process
//! holds the same open file.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::Timespec;

/// The most events taken at once.
const BATCH: usize = 64;

/// What became ready, as far as the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The listening socket.
    Listener,
    /// The signalfd.
    Signals,
    /// A daemon's connection.
    Connection,
    /// Pause's pidfd.
    Pause,
    /// A container's pidfd.
    Init,
    /// A container's start gate.
    Gate,
    /// A container's out-of-memory notices.
    Oom,
    /// A container's stdout, or its terminal.
    Stdout,
    /// A container's stderr.
    Stderr,
    /// A container's stdin pipe.
    Stdin,
    /// An attach client's input; `sub` is the client.
    ClientInput,
    /// An attach client's stdout.
    ClientStdout,
    /// An attach client's stderr.
    ClientStderr,
    /// An exec'd process's pidfd.
    Exec,
}

const KINDS: [Kind; 14] = [
    Kind::Listener,
    Kind::Signals,
    Kind::Connection,
    Kind::Pause,
    Kind::Init,
    Kind::Gate,
    Kind::Oom,
    Kind::Stdout,
    Kind::Stderr,
    Kind::Stdin,
    Kind::ClientInput,
    Kind::ClientStdout,
    Kind::ClientStderr,
    Kind::Exec,
];

/// Whose a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// What it is.
    pub kind: Kind,
    /// The number of the connection, container or exec it belongs to.
    pub owner: u32,
    /// The number of the attach client within its container; 0 elsewhere.
    pub sub: u16,
}

impl Token {
    /// A token without a sub-number.
    pub(crate) fn new(kind: Kind, owner: u32) -> Self {
        Self { kind, owner, sub: 0 }
    }

    fn pack(self) -> u64 {
        (u64::from(self.kind as u8) << 48) | (u64::from(self.sub) << 32) | u64::from(self.owner)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let kind = *KINDS.get(usize::try_from(packed >> 48).ok()?)?;
        let sub = u16::try_from((packed >> 32) & 0xffff).ok()?;
        let owner = u32::try_from(packed & 0xffff_ffff).ok()?;
        Some(Self { kind, owner, sub })
    }
}

/// Something that became ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// Whose it is.
    pub token: Token,
    /// Data, end of file or an error can be read.
    pub readable: bool,
    /// It takes data, or an error can be had by writing.
    pub writable: bool,
    /// The other end is gone.
    pub closed: bool,
}

/// The epoll instance.
#[derive(Debug, Clone)]
pub(crate) struct Poll(Rc<OwnedFd>);

impl Poll {
    /// A new one.
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self(Rc::new(epoll::create(CreateFlags::CLOEXEC)?)))
    }

    /// Takes `fd` over and waits on it for `flags`; None: not yet, or not now.
    pub(crate) fn watch(
        &self,
        fd: OwnedFd,
        token: Token,
        flags: Option<EventFlags>,
    ) -> Result<Watched, Errno> {
        let mut watched = Watched { poll: self.clone(), fd, token, flags: None };
        watched.set(flags)?;
        Ok(watched)
    }

    /// Waits until something is ready or `deadline` has come, and appends what is ready.
    pub(crate) fn wait(&self, deadline: Option<Instant>, ready: &mut Vec<Ready>) -> Result<(), Errno> {
        let timeout = deadline.map(|deadline| {
            // Milliseconds are what the call takes: rounded up, or the last one would be spent spinning.
            let left = deadline.saturating_duration_since(Instant::now());
            let left = if left.is_zero() { left } else { left + Duration::from_millis(1) };
            Timespec {
                tv_sec: i64::try_from(left.as_secs().min(3600)).unwrap_or(3600),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; BATCH];
        let count = match epoll::wait(&*self.0, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => return Err(errno),
        };
        for event in &events[..count] {
            let (flags, data) = (event.flags, event.data);
            let Some(token) = Token::unpack(data.u64()) else { continue };
            let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            ready.push(Ready {
                token,
                readable: ended || flags.contains(EventFlags::IN),
                writable: ended || flags.contains(EventFlags::OUT),
                closed: ended,
            });
        }
        Ok(())
    }
}

/// A descriptor that the poll loop owns and may be waiting on.
#[derive(Debug)]
pub(crate) struct Watched {
    poll: Poll,
    fd: OwnedFd,
    token: Token,
    flags: Option<EventFlags>,
}

impl Watched {
    /// Changes what is waited for. Some(empty): only the other end's going away. None: nothing at all, which is the only way
    /// not to be told of an end again and again.
    pub(crate) fn set(&mut self, flags: Option<EventFlags>) -> Result<(), Errno> {
        let data = EventData::new_u64(self.token.pack());
        match (self.flags, flags) {
            (old, new) if old == new => return Ok(()),
            (None, None) => {}
            (None, Some(new)) => epoll::add(&*self.poll.0, &self.fd, data, new)?,
            (Some(_), Some(new)) => epoll::modify(&*self.poll.0, &self.fd, data, new)?,
            (Some(_), None) => epoll::delete(&*self.poll.0, &self.fd)?,
        }
        self.flags = flags;
        Ok(())
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and the only one possible is that it is not there.
        let _ = self.set(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        for (place, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            let token = Token { kind, owner: u32::MAX, sub: 7 };
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn a_dropped_descriptor_that_lives_elsewhere_is_not_told_of() {
        let poll = Poll::new().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        let elsewhere = read.try_clone().unwrap();
        let watched = poll.watch(read, Token::new(Kind::Stdout, 1), Some(EventFlags::IN)).unwrap();
        rustix::io::write(&write, b"x").unwrap();
        let mut ready = Vec::new();
        poll.wait(None, &mut ready).unwrap();
        assert_eq!(ready.len(), 1);
        drop(watched);
        ready.clear();
        poll.wait(Some(Instant::now()), &mut ready).unwrap();
        assert!(ready.is_empty());
        drop(elsewhere);
    }
}
