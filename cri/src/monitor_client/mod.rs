//! The daemon's end of a pod's monitor: starting it, and asking it.
//!
//! ```text
//! pod task, handlers --request()--> socket --> monitor
//!                    <--oneshot---- reader task <-- socket
//! pod task           <--mpsc------- reader task       (events, and at the end Gone, with who still waits for a process)
//! exec               <--oneshot---- reader task       (the exit of its process; of the next connection's, if this one breaks)
//! ```
//!
//! A packet is sent whole or not at all, so requests need no order and no lock; one reader task hands every answer to who
//! asked. The end of the connection is not the end of the monitor, which closes one that it cannot serve: only a socket that nobody
//! listens on proves that, and nothing is concluded from a time that has passed. See [`take_up`] and
//! [`runtime::monitor::protocol`].

mod launch;
mod process;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use runtime::Failure;
use runtime::monitor::protocol::{
    Event, ExecReport, Hello, MAX_EXECS, Message, Op, PROTOCOL, Reply, Request,
};
use runtime::monitor::wire::{self, Packet, WireError};
use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::{Instrument as _, Span};

use crate::ids;

pub use launch::{LaunchError, Launched, Program};
pub use process::Process;

/// The most requests under way on one connection; more wait for their turn.
const MAX_IN_FLIGHT: usize = 64;

/// Events not yet taken by the pod's task; the reader waits when it is full, and so, in the end, does the monitor.
const EVENT_QUEUE: usize = 256;

/// How long the monitor may take for one request. It is far above what any takes, because the answer to a slow disk is
/// patience; after it the request is reported as failed, and nothing is concluded about the monitor.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(120);

/// How long after a connection that failed the next is tried: at first, and in the end.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// The length of a trace, in hexadecimal digits.
const TRACE_DIGITS: usize = 16;

/// The versions of the protocol that this daemon speaks.
const PROTOCOLS: [u32; 1] = [PROTOCOL];

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection has ended.
    #[error("the connection to the pod's monitor has ended")]
    Gone,
    /// The monitor did what was asked, and it failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// connect(2) on the monitor's socket.
    #[error("connect to the pod's monitor")]
    Connect(#[source] std::io::Error),
    /// The request cannot be sent.
    #[error("send a request to the pod's monitor")]
    Send(#[source] WireError),
    /// An answer of the wrong kind, or a version that is not ours.
    #[error("the pod's monitor answered {0}")]
    Protocol(String),
    /// No answer, from a monitor that holds its socket.
    #[error("the pod's monitor did not answer within {0:?}")]
    Slow(Duration),
}

impl ClientError {
    /// Whether this proves that no monitor serves the socket any more.
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error.raw_os_error().map(Errno::from_raw_os_error),
                Some(Errno::CONNREFUSED | Errno::NOENT)
            ),
            _ => false,
        }
    }

    /// Whether trying again can end otherwise.
    fn may_pass(&self) -> bool {
        match self {
            Self::Gone | Self::Send(_) | Self::Slow(_) => true,
            Self::Connect(_) => !self.is_gone(),
            Self::Failed(_) | Self::Protocol(_) => false,
        }
    }
}

/// What a connection tells its pod's task without being asked.
#[derive(Debug)]
pub enum Notice {
    /// An event of the monitor.
    Event(Event),
    /// The connection has ended. The last notice. What waits for exec'd processes can be given to [`take_up`]; dropped, it learns that
    /// nobody can tell it any more.
    Gone(ExecWaiters),
}

/// Who waits for the ends of exec'd processes, by their ids.
#[derive(Debug, Default)]
pub struct ExecWaiters(HashMap<String, oneshot::Sender<i32>>);

/// A connection to a monitor. Clones share it.
#[derive(Debug, Clone)]
pub struct MonitorClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A `SOCK_SEQPACKET` socket. tokio's type for streams only waits for it: all reads and writes are [`wire`]'s.
    socket: UnixStream,
    next_id: AtomicU64,
    slots: Semaphore,
    waiting: Mutex<Waiting>,
    ended: watch::Sender<bool>,
    process: OnceLock<Process>,
}

/// An answer and the descriptors that came with it.
type Answer = (Reply, Vec<OwnedFd>);

/// Who waits for what. The lock is held for a map operation only.
#[derive(Debug, Default)]
struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>,
    execs: ExecWaiters,
    closed: bool,
}

/// A connection that has said hello.
#[derive(Debug)]
pub struct Connected {
    /// For requests.
    pub client: MonitorClient,
    /// All that lives in the monitor.
    pub hello: Hello,
    /// For the pod's task.
    pub notices: mpsc::Receiver<Notice>,
}

/// Connects to the monitor that listens in `run_dir`, and says hello.
///
/// # Errors
/// [`ClientError::is_gone`] tells whether there is no monitor; [`ClientError::Slow`] that it does not answer.
pub async fn connect(run_dir: &Path, deadline: Duration) -> Result<Connected, ClientError> {
    greet(run_dir, deadline, &mut ExecWaiters::default()).await
}

/// As [`connect`], for who waits on too. On failure they are given back.
async fn greet(
    run_dir: &Path,
    deadline: Duration,
    execs: &mut ExecWaiters,
) -> Result<Connected, ClientError> {
    let socket = dial(run_dir).map_err(|errno| ClientError::Connect(errno.into()))?;
    let socket = UnixStream::from_std(socket.into()).map_err(ClientError::Connect)?;
    let inner = Arc::new(Inner {
        socket,
        next_id: AtomicU64::new(1),
        slots: Semaphore::new(MAX_IN_FLIGHT),
        waiting: Mutex::new(Waiting { execs: std::mem::take(execs), ..Waiting::default() }),
        ended: watch::Sender::new(false),
        process: OnceLock::new(),
    });
    let client = MonitorClient { inner };
    let (sender, mut notices) = mpsc::channel(EVENT_QUEUE);
    tokio::spawn(client.clone().read(sender));
    // They wait from before the question on, so that none misses an end between the answer and its event.
    let asked = client.inner.with_waiting(|waiting| waiting.execs.ids());
    let hello = client.request(Op::Hello { protocols: PROTOCOLS.to_vec(), execs: asked.clone() }, Vec::new());
    let error = match tokio::time::timeout(deadline, hello).await {
        Err(_) => ClientError::Slow(deadline),
        Ok(Err(error)) => error,
        Ok(Ok(Reply::Hello(hello))) if PROTOCOLS.contains(&hello.protocol) => {
            client.inner.with_waiting(|waiting| waiting.execs.settle(&asked, &hello.execs));
            return Ok(Connected { client, hello, notices });
        }
        Ok(Ok(other)) => ClientError::Protocol(format!("{other:?}")),
    };
    // Its reader ends with that; nothing else would end it where the monitor does not.
    if let Err(errno) = rustix::net::shutdown(&client.inner.socket, Shutdown::Both) {
        tracing::debug!(errno = errno.raw_os_error(), "shut a connection down");
    }
    while let Some(notice) = notices.recv().await {
        if let Notice::Gone(waiters) = notice {
            *execs = waiters;
        }
    }
    Err(error)
}

/// Connects to a monitor that may be there, and does not give up before it has answered or is proved to be gone: a connection on which
/// it does not answer within [`REQUEST_DEADLINE`] is made anew. Who waits for a
/// process since an earlier connection goes on waiting on this one, or learns at once how it ended meanwhile.
///
/// # Errors
/// [`ClientError::is_gone`]; or what no patience mends: a monitor that does not speak our protocol.
pub async fn take_up(run_dir: &Path, mut execs: ExecWaiters) -> Result<Connected, ClientError> {
    let mut wait = RETRY_FIRST;
    loop {
        match greet(run_dir, REQUEST_DEADLINE, &mut execs).await {
            Err(error) if error.may_pass() => {
                tracing::debug!(%error, ?wait, "a monitor is tried again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_LAST);
            }
            other => return other,
        }
    }
}

/// A connected, non-blocking socket. The directory goes by descriptor: its path may be longer than a socket's can be.
fn dial(run_dir: &Path) -> Result<OwnedFd, Errno> {
    let directory = launch::open_dir(run_dir)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(launch::socket_path(&directory))?)?;
    Ok(socket)
}

impl MonitorClient {
    /// Asks and waits for the answer, for [`REQUEST_DEADLINE`] at most. `fds` travel with the request.
    pub async fn request(&self, op: Op, fds: Vec<OwnedFd>) -> Result<Reply, ClientError> {
        self.request_fds(op, fds).await.map(|(reply, _)| reply)
    }

    /// As [`request`](Self::request), with the descriptors that came with the answer.
    pub async fn request_fds(&self, op: Op, fds: Vec<OwnedFd>) -> Result<Answer, ClientError> {
        let span = tracing::debug_span!("monitor_request", trace = tracing::field::Empty);
        let trace = new_trace(&span);
        let answer = tokio::time::timeout(REQUEST_DEADLINE, self.exchange(op, fds, trace));
        answer.instrument(span).await.unwrap_or(Err(ClientError::Slow(REQUEST_DEADLINE)))
    }

    async fn exchange(
        &self,
        op: Op,
        fds: Vec<OwnedFd>,
        trace: Option<String>,
    ) -> Result<Answer, ClientError> {
        let inner = &self.inner;
        let _slot = inner.slots.acquire().await.map_err(|_| ClientError::Gone)?;
        let id = inner.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Request { id, trace, op };
        let bytes = wire::encode(&request).map_err(ClientError::Send)?;
        let (sender, answer) = oneshot::channel();
        if !inner.with_waiting(|waiting| {
            let open = !waiting.closed;
            if open {
                waiting.replies.insert(id, sender);
            }
            open
        }) {
            return Err(ClientError::Gone);
        }
        // Whoever stops waiting leaves no entry behind.
        let _entry = Forget { inner, id };
        inner.send(&bytes, &fds).await?;
        drop(fds);
        match answer.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ClientError::Gone),
        }
    }

    /// As [`request`](Self::request), for operations that answer [`Reply::Done`].
    pub async fn order(&self, op: Op) -> Result<(), ClientError> {
        match self.request(op, Vec::new()).await? {
            Reply::Done => Ok(()),
            other => Err(ClientError::Protocol(format!("{other:?}"))),
        }
    }

    /// Has the monitor end, and waits until it has.
    pub async fn shutdown(&self, limit: Duration) -> Result<(), ClientError> {
        match self.order(Op::Shutdown).await {
            Ok(()) | Err(ClientError::Gone) => {}
            Err(error) => return Err(error),
        }
        let mut ended = self.inner.ended.subscribe();
        let gone = async {
            // An error would mean that the sender is gone, which we hold.
            let _ = ended.wait_for(|ended| *ended).await;
            if let Some(process) = self.inner.process.get() {
                process.clone().wait(limit).await;
            }
        };
        tokio::time::timeout(limit, gone).await.map_err(|_| ClientError::Slow(limit))
    }

    /// Notes which process it is, for [`shutdown`](Self::shutdown) to wait for.
    pub fn is_process(&self, process: Process) {
        // Told once, by who connected.
        let _ = self.inner.process.set(process);
    }

    /// The exit code of the exec'd process `exec`, once it has exited. To be called before it is asked for. Dropping the
    /// answer forgets it; an error of the answer means that nobody knows it any more.
    pub fn exec_exit(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.inner.with_waiting(|waiting| {
            waiting.execs.0.retain(|_, other| !other.is_closed());
            if !waiting.closed {
                waiting.execs.0.insert(exec.to_owned(), sender);
            }
        });
        receiver
    }

    /// Hands out what arrives, until nothing can any more.
    async fn read(self, notices: mpsc::Sender<Notice>) {
        let mut buffer = wire::buffer();
        loop {
            match self.inner.receive(&mut buffer).await {
                Ok(Some(Packet { message: Message::Reply { id, result }, fds })) => {
                    let waiter = self.inner.with_waiting(|waiting| waiting.replies.remove(&id));
                    if let Some(waiter) = waiter {
                        // One that has stopped waiting does not want it.
                        let _ = waiter.send(result.map(|reply| (reply, fds)));
                    }
                }
                Ok(Some(Packet {
                    message: Message::Event(Event::ExecExited { exec, exit_code }), ..
                })) => {
                    let waiter = self.inner.with_waiting(|waiting| waiting.execs.0.remove(&exec));
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(exit_code);
                    }
                }
                Ok(Some(Packet { message: Message::Event(event), .. })) => {
                    // A pod that is taken down again does not listen; its requests are still answered.
                    let _ = notices.send(Notice::Event(event)).await;
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "a monitor's connection is broken");
                    break;
                }
            }
        }
        let execs = self.inner.with_waiting(|waiting| {
            waiting.closed = true;
            waiting.replies.clear();
            std::mem::take(&mut waiting.execs)
        });
        self.inner.ended.send_replace(true);
        let _ = notices.send(Notice::Gone(execs)).await;
    }
}

impl ExecWaiters {
    /// Those that still want to know, as far as one question can name them.
    fn ids(&mut self) -> Vec<String> {
        self.0.retain(|_, waiter| !waiter.is_closed());
        self.0.keys().take(MAX_EXECS).cloned().collect()
    }

    /// The monitor's answer about those it was `asked` for: of the others it knows nothing.
    fn settle(&mut self, asked: &[String], reports: &[ExecReport]) {
        let known: HashMap<&str, Option<i32>> =
            reports.iter().map(|report| (report.exec.as_str(), report.exit_code)).collect();
        for exec in asked {
            match known.get(exec.as_str()) {
                Some(None) => {}
                Some(Some(code)) => {
                    if let Some(waiter) = self.0.remove(exec) {
                        // One that has stopped waiting does not want it.
                        let _ = waiter.send(*code);
                    }
                }
                None => drop(self.0.remove(exec)),
            }
        }
    }
}

impl Inner {
    fn with_waiting<T>(&self, act: impl FnOnce(&mut Waiting) -> T) -> T {
        act(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn send(&self, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), ClientError> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        let send = || Ok(wire::send_bytes(self.socket.as_fd(), bytes, &fds)?);
        self.socket.async_io(Interest::WRITABLE, send).await.map_err(|error| {
            let gone = [Errno::PIPE, Errno::CONNRESET, Errno::NOTCONN];
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(errno) if gone.contains(&errno) => ClientError::Gone,
                Some(errno) => ClientError::Send(WireError::Send(errno)),
                None => ClientError::Protocol(error.to_string()),
            }
        })
    }

    async fn receive(&self, buffer: &mut [u8]) -> std::io::Result<Option<Packet<Message>>> {
        let receive = || Ok(wire::receive::<Message>(self.socket.as_fd(), buffer)?);
        self.socket.async_io(Interest::READABLE, receive).await
    }
}

/// Takes a request's entry away when its future ends, however it ends.
struct Forget<'a> {
    inner: &'a Inner,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.inner.with_waiting(|waiting| waiting.replies.remove(&self.id));
    }
}

/// A new name for a request, which the lines of its span here and those of the monitor both carry: that is how a step in the
/// monitor is found from its RPC, and the RPC from the step. None where nobody listens to the span.
fn new_trace(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let mut trace = ids::random().ok()?;
    trace.truncate(TRACE_DIGITS);
    span.record("trace", &trace);
    Some(trace)
}

#[cfg(test)]
mod tests;
