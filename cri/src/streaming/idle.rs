//! Connections on which nothing moves: how long they are kept.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A limit on silence.
#[derive(Debug)]
pub(super) struct Idle {
    limit: Duration,
    since: Instant,
    /// Goes off at the earliest moment at which the limit can have been reached; it is not moved at each byte.
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    /// Counts from now.
    pub(super) fn new(limit: Duration) -> Self {
        let since = Instant::now();
        Self { limit, since, timer: Box::pin(sleep_until(since + limit)) }
    }

    /// Bytes came or went: it counts from now again.
    pub(super) fn moved(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when nothing has moved for as long as the limit is.
    pub(super) fn poll_reached(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while self.timer.as_mut().poll(context).is_ready() {
            let limit = self.since + self.limit;
            if Instant::now() >= limit {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(limit);
        }
        Poll::Pending
    }
}

/// A connection that is shut down, and whose reads fail with `TimedOut`, once nothing has moved in either direction for as long as the limit is. It is looked
/// at while somebody waits to read, which all protocols here do, but for a moment in which what they have read is not taken.
#[derive(Debug)]
pub(super) struct IdleLimit<T> {
    inner: T,
    idle: Option<Idle>,
}

impl<T> IdleLimit<T> {
    /// None: no limit.
    pub(super) fn new(inner: T, limit: Option<Duration>) -> Self {
        Self { inner, idle: limit.map(Idle::new) }
    }

    fn moved(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.moved();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for IdleLimit<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.inner).poll_read(context, into);
        if read.is_ready() {
            self.moved();
            return read;
        }
        let Some(idle) = &mut self.idle else { return Poll::Pending };
        ready!(idle.poll_reached(context));
        // Whoever writes may hold the other half for much longer, and may be what is stuck: the client sees the end at once.
        let _ = Pin::new(&mut self.inner).poll_shutdown(context);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for IdleLimit<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        if written.is_ready() {
            self.moved();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, bytes);
        if written.is_ready() {
            self.moved();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn what_moves_in_either_direction_keeps_a_connection() {
        let limit = Duration::from_secs(2);
        let (ours, mut theirs) = tokio::io::duplex(100);
        let (mut reader, mut writer) = tokio::io::split(IdleLimit::new(ours, Some(limit)));
        let reading = tokio::spawn(async move {
            loop {
                if let Err(error) = reader.read_u8().await {
                    return (error.kind(), reader);
                }
            }
        });
        let start = Instant::now();
        let mut last = start;
        while start.elapsed() < limit.mul_f32(1.5) {
            last = Instant::now();
            theirs.write_u8(1).await.unwrap();
        }
        while start.elapsed() < limit.mul_f32(3.0) {
            last = Instant::now();
            writer.write_u8(2).await.unwrap();
            theirs.read_u8().await.unwrap();
        }
        assert_eq!(reading.await.unwrap().0, io::ErrorKind::TimedOut);
        assert!(last.elapsed() >= limit);
        assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 0, "it is closed for the other end");
    }
}
