//! Streams as their users hold them.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::ResetStatus;
use super::headers::Headers;
use super::session::Shared;

/// A stream the client has opened, not yet answered. Dropping it refuses it.
pub struct Incoming {
    headers: Headers,
    shared: Arc<Shared>,
    id: u32,
    answered: bool,
}

impl Incoming {
    pub(super) fn new(shared: Arc<Shared>, id: u32, headers: Headers) -> Self {
        Self { headers, shared, id, answered: false }
    }

    /// Its number: odd, and higher than those before.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What the client says about it.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Answers with SYN_REPLY, without headers, as Kubernetes does. A stream that the client has reset meanwhile
    /// gives a stream all of whose calls fail.
    pub fn accept(mut self) -> Stream {
        self.answered = true;
        self.shared.lock().accept(self.id);
        Stream {
            read: ReadHalf { shared: self.shared.clone(), id: self.id },
            write: WriteHalf { shared: self.shared.clone(), id: self.id },
        }
    }

    /// Answers with RST_STREAM.
    pub fn refuse(mut self, status: ResetStatus) {
        self.answer_with(status);
    }

    fn answer_with(&mut self, status: ResetStatus) {
        if !std::mem::replace(&mut self.answered, true) {
            let mut connection = self.shared.lock();
            connection.reset(self.id, status);
            connection.drop_reader(self.id);
            connection.drop_writer(self.id);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.answer_with(ResetStatus::RefusedStream);
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("id", &self.id)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// An accepted stream: [`ReadHalf`] and [`WriteHalf`] in one.
#[derive(Debug)]
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
}

impl Stream {
    /// Its number.
    pub fn id(&self) -> u32 {
        self.read.id
    }

    /// Both ends, to be used by different tasks.
    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// Ends both directions at once with RST_STREAM. What is not yet read is dropped; what was written is sent.
    pub fn reset(self, status: ResetStatus) {
        self.read.reset(status);
    }
}

/// What the client sends. Reads give 0 bytes after its FIN, and `ConnectionReset` after its RST_STREAM or when the
/// connection is over. Dropped early, what still arrives is discarded.
pub struct ReadHalf {
    shared: Arc<Shared>,
    id: u32,
}

impl ReadHalf {
    /// As [`Stream::reset`]: the other half is over too.
    pub fn reset(self, status: ResetStatus) {
        self.shared.lock().reset(self.id, status);
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        self.shared.lock().drop_reader(self.id);
    }
}

/// What the client receives. A write copies into the connection's buffer and waits while that is full. Writes fail with
/// `BrokenPipe` once the client has reset the stream or the connection is over. `flush` does nothing: what is written
/// is on its way. `shutdown`, or dropping it, sends FIN.
pub struct WriteHalf {
    shared: Arc<Shared>,
    id: u32,
}

impl WriteHalf {
    /// As [`Stream::reset`]: the other half is over too.
    pub fn reset(self, status: ResetStatus) {
        self.shared.lock().reset(self.id, status);
    }
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        self.shared.lock().drop_writer(self.id);
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteHalf").field("id", &self.id).finish_non_exhaustive()
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shared.lock().poll_read(self.id, context, into)
    }
}

impl AsyncWrite for WriteHalf {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.lock().poll_write(self.id, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.lock().finish(self.id);
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(context, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(context)
    }
}
