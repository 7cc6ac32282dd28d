//! URLs that wait for their request. A ticket is what one of them stands for.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::ids;

/// How long a URL is good for.
pub(super) const URL_LIFE: Duration = Duration::from_secs(60);

/// The most URLs that wait at once.
pub(super) const MAX_WAITING: usize = 1000;

/// What is to be done for whoever comes with the URL. Its parts are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ticket {
    /// Runs a command in a container.
    Exec {
        /// The container's full id.
        container: String,
        /// The program and its arguments.
        command: Vec<String>,
        /// Which streams are wanted.
        streams: Streams,
    },
    /// Attaches to a container.
    Attach {
        /// The container's full id.
        container: String,
        /// Which streams are wanted.
        streams: Streams,
    },
    /// Forwards ports of a pod.
    PortForward {
        /// The pod's full id.
        pod: String,
        /// The ports, for clients that do not name them later.
        ports: Vec<u16>,
    },
}

impl Ticket {
    /// The first part of the URL's path.
    fn verb(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Attach { .. } => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "they are the request's")]
pub(super) struct Streams {
    /// The process's input.
    pub(super) stdin: bool,
    /// Its output; with a terminal all of it.
    pub(super) stdout: bool,
    /// Its error output; never with a terminal.
    pub(super) stderr: bool,
    /// It has a terminal.
    pub(super) tty: bool,
}

/// The URLs of one server.
#[derive(Debug)]
pub struct Urls {
    /// Scheme, host and port.
    base: String,
    /// The oldest first. Few enough to be searched from end to end.
    waiting: Mutex<VecDeque<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    token: String,
    ticket: Ticket,
}

impl Urls {
    /// Of a server that is reached at `base`, such as `http://127.0.0.1:4000`.
    pub(super) fn new(base: String) -> Self {
        Self { base, waiting: Mutex::default() }
    }

    /// A URL for the ticket.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` where [`MAX_WAITING`] wait already.
    pub(super) fn issue(&self, ticket: Ticket) -> Result<String, Error> {
        self.issue_at(ticket, Instant::now())
    }

    fn issue_at(&self, ticket: Ticket, now: Instant) -> Result<String, Error> {
        let token = ids::random()?;
        let url = format!("{}/{}/{token}", self.base, ticket.verb());
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // All live equally long, so the expired ones are in front.
        while waiting.front().is_some_and(|oldest| oldest.until <= now) {
            waiting.pop_front();
        }
        if waiting.len() >= MAX_WAITING {
            return Err(Error::ResourceExhausted {
                what: format!("a streaming URL for {}", ticket.verb()),
                reason: format!("{MAX_WAITING} wait for their client already, which is the most"),
            });
        }
        waiting.push_back(Waiting { until: now + URL_LIFE, token, ticket });
        Ok(url)
    }

    /// What the path of a request stands for, once. None: it was never given out, is too old, or was used.
    pub(super) fn redeem(&self, path: &str) -> Option<Ticket> {
        self.redeem_at(path, Instant::now())
    }

    fn redeem_at(&self, path: &str, now: Instant) -> Option<Ticket> {
        let (verb, token) = path.strip_prefix('/')?.split_once('/')?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let place = waiting.iter().position(|waiting| waiting.token == token)?;
        let found = waiting.remove(place)?;
        (found.until > now && found.ticket.verb() == verb).then_some(found.ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(container: &str) -> Ticket {
        let streams = Streams { stdin: false, stdout: true, stderr: false, tty: false };
        Ticket::Exec { container: container.into(), command: vec!["true".into()], streams }
    }

    fn path(url: &str) -> &str {
        url.strip_prefix("http://host:1").unwrap()
    }

    #[test]
    fn a_url_is_good_once_and_for_its_verb() {
        let urls = Urls::new("http://host:1".into());
        let url = urls.issue(ticket("a")).unwrap();
        assert_eq!(urls.redeem("/exec/0123"), None);
        assert_eq!(urls.redeem(path(&url)), Some(ticket("a")));
        assert_eq!(urls.redeem(path(&url)), None);
        let url = urls.issue(ticket("a")).unwrap();
        assert_eq!(urls.redeem(&path(&url).replace("exec", "attach")), None);
        assert_eq!(urls.redeem(path(&url)), None, "a wrong verb uses it up");
    }

    #[test]
    fn so_many_wait_and_no_longer_than_that() {
        let urls = Urls::new("http://host:1".into());
        let start = Instant::now();
        let first = urls.issue_at(ticket("a"), start).unwrap();
        for _ in 1..MAX_WAITING {
            urls.issue_at(ticket("a"), start + URL_LIFE / 2).unwrap();
        }
        let full = urls.issue_at(ticket("a"), start + URL_LIFE / 2).unwrap_err();
        assert_eq!(full.code(), tonic::Code::ResourceExhausted);
        let later = urls.issue_at(ticket("b"), start + URL_LIFE).unwrap();
        assert_eq!(urls.redeem_at(path(&first), start + URL_LIFE), None);
        assert_eq!(urls.redeem_at(path(&later), start + 2 * URL_LIFE), None, "found, but too old");
    }
}
