//! A connection driven: bytes between the socket and [`Connection`], in one task.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::debug;

use super::super::idle::Idle;
use super::connection::{Connection, GoAwayStatus, ProtocolError};
use super::frame::Decoder;
use super::limits::{CLOSE_DEADLINE, READ_BYTES, READ_BYTES_IDLE};
use super::stream::Incoming;

/// What may be chosen about a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Ends the connection when no byte came or went for so long. None: never.
    pub idle: Option<Duration>,
}

/// The state that the driver, the session and the streams share. It is locked for one step at a time, and never while
/// waiting.
#[derive(Debug)]
pub(super) struct Shared(Mutex<Connection>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection. Dropping it breaks every stream at once; see [`Session::close`] for the other way.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    driver: JoinHandle<()>,
    closed: Closed,
}

impl Session {
    /// Takes over an upgraded connection. A task of its own drives it.
    ///
    /// Nothing is sent before the client has sent a frame: Kubernetes' client reads the HTTP response through a buffer
    /// that it then throws away, with whatever came behind the response.
    pub fn start<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: T, options: Options) -> Self {
        let shared = Arc::new(Shared(Mutex::new(Connection::new())));
        let (alive, closed) = watch::channel(());
        let driver = Driver {
            io,
            shared: shared.clone(),
            decoder: Decoder::default(),
            input: BytesMut::new(),
            read_bytes: READ_BYTES_IDLE,
            output: BytesMut::new(),
            unflushed: false,
            idle: options.idle.map(Idle::new),
            _alive: alive,
        };
        Self { shared, driver: tokio::spawn(driver.run()), closed: Closed(closed) }
    }

    /// The next stream of the client; None once it said GOAWAY, closed, broke the protocol or was idle for too long.
    /// Cancel safe.
    pub async fn accept(&mut self) -> Option<Incoming> {
        let (id, headers) = poll_fn(|context| self.shared.lock().poll_accept(context)).await?;
        Some(Incoming::new(self.shared.clone(), id, headers))
    }

    /// What waits for the end of the connection.
    pub fn closed(&self) -> Closed {
        self.closed.clone()
    }

    /// Sends what is queued and then GOAWAY, and waits until the peer has closed, [`CLOSE_DEADLINE`] at most.
    /// Kubernetes' client reads nothing after GOAWAY, so all streams should be finished; those that are not are reset.
    pub async fn close(mut self) {
        self.shared.lock().close(GoAwayStatus::Ok);
        // Its end is all that is of interest; a panic in it has been reported by the runtime.
        let _ = (&mut self.driver).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
        self.shared.lock().end();
    }
}

/// The end of a connection, for whoever wants to wait for it.
#[derive(Clone, Debug)]
pub struct Closed(watch::Receiver<()>);

impl Closed {
    /// Returns when the connection is over, for whatever reason: at once when it is already. Cancel safe.
    pub async fn wait(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

/// Why a driver stops.
#[derive(Debug, Error)]
enum End {
    #[error("closed by us")]
    Closing,
    #[error("closed by the client")]
    Eof,
    #[error("idle for too long")]
    Idle,
    #[error("lost")]
    Io(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] ProtocolError),
}

struct Driver<T> {
    io: T,
    shared: Arc<Shared>,
    decoder: Decoder,
    /// Read, not yet decoded.
    input: BytesMut,
    /// How much is read at once: little while little comes, so that many idle connections are cheap.
    read_bytes: usize,
    /// Being sent.
    output: BytesMut,
    unflushed: bool,
    idle: Option<Idle>,
    /// Dropped when the driver is: what [`Closed`] waits for.
    _alive: watch::Sender<()>,
}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Driver<T> {
    async fn run(mut self) {
        let end = poll_fn(|context| self.poll_exchange(context)).await;
        match &end {
            End::Closing | End::Eof => {}
            End::Protocol(error) => debug!(%error, "SPDY connection ends: {end}"),
            End::Io(error) => debug!(%error, "SPDY connection ends: {end}"),
            End::Idle => debug!("SPDY connection ends: {end}"),
        }
        let status = match end {
            End::Eof | End::Io(_) => return,
            End::Closing | End::Idle => GoAwayStatus::Ok,
            End::Protocol(_) => GoAwayStatus::ProtocolError,
        };
        self.shared.lock().close(status);
        // A peer that takes nothing, or that never closes, is not waited for.
        let _ = timeout(CLOSE_DEADLINE, self.finish()).await;
    }

    /// Moves bytes both ways until there is a reason to stop.
    fn poll_exchange(&mut self, context: &mut Context<'_>) -> Poll<End> {
        self.shared.lock().register_driver(context);
        loop {
            let mut moved = false;
            match self.poll_output(context) {
                Poll::Ready(Ok(sent)) => moved |= sent,
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Pending => {}
            }
            match self.poll_input(context) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(end)) => return Poll::Ready(end),
                Poll::Pending => {}
            }
            if self.shared.lock().is_closing() {
                return Poll::Ready(End::Closing);
            }
            if let Some(idle) = &mut self.idle {
                if moved {
                    idle.moved();
                } else if idle.poll_reached(context).is_ready() {
                    return Poll::Ready(End::Idle);
                }
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Sends what there is, once. True when something was sent.
    fn poll_output(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.output.is_empty() {
            self.shared.lock().take_output(&mut self.output);
        }
        if !self.output.is_empty() {
            let sent = std::task::ready!(Pin::new(&mut self.io).poll_write(context, &self.output))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(sent);
            self.unflushed = true;
            return Poll::Ready(Ok(true));
        }
        if self.unflushed {
            // A socket has nothing to flush, but TLS may have.
            std::task::ready!(Pin::new(&mut self.io).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(false))
    }

    /// Acts on what was read, then reads once. Ready when bytes were read; pending too when none are wanted.
    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<Result<(), End>> {
        {
            let mut connection = self.shared.lock();
            while connection.wants_input() {
                match self.decoder.next(&mut self.input).map_err(ProtocolError::from)? {
                    Some(frame) => connection.frame(frame)?,
                    None => break,
                }
            }
            if !connection.wants_input() {
                return Poll::Pending;
            }
        }
        self.input.reserve(self.read_bytes);
        let room = self.input.capacity() - self.input.len();
        let read = std::task::ready!(pin!(self.io.read_buf(&mut self.input)).poll(context))?;
        if read == 0 {
            return Poll::Ready(Err(End::Eof));
        }
        if read == room {
            self.read_bytes = READ_BYTES;
        } else if read < READ_BYTES_IDLE {
            self.read_bytes = READ_BYTES_IDLE;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is left and waits until the peer closes. Bytes that came and were not read would make the kernel
    /// reset the connection, and the peer lose what it had not read yet.
    async fn finish(&mut self) -> io::Result<()> {
        loop {
            self.io.write_all_buf(&mut self.output).await?;
            self.shared.lock().take_output(&mut self.output);
            if self.output.is_empty() {
                break;
            }
        }
        self.io.flush().await?;
        self.io.shutdown().await?;
        self.input = BytesMut::with_capacity(READ_BYTES_IDLE);
        while self.io.read_buf(&mut self.input).await? != 0 {
            self.input.clear();
        }
        Ok(())
    }
}

impl<T> Drop for Driver<T> {
    fn drop(&mut self) {
        self.shared.lock().end();
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
