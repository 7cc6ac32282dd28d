//! The session's side of a connection: what it and the halves of its streams ask for. Nothing waits: a waker is left instead.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::ReadBuf;

use super::super::ResetStatus;
use super::super::frame::{Frame, HEAD_BYTES, put_data_head};
use super::super::headers::Headers;
use super::super::limits::{MAX_DATA_FRAME_BYTES, MAX_UNACCEPTED, SEND_BUFFER_BYTES};
use super::{Connection, Direction, MAX_WINDOW_BYTES, Phase, leave, wake};

impl Connection {
    /// The next stream that waits for an answer; None when no more can come.
    pub(in super::super) fn poll_accept(&mut self, context: &Context<'_>) -> Poll<Option<(u32, Headers)>> {
        if let Some(incoming) = self.unaccepted.pop_front() {
            if self.unaccepted.len() == MAX_UNACCEPTED - 1 {
                wake(&mut self.driver);
            }
            return Poll::Ready(Some(incoming));
        }
        if self.phase != Phase::Open {
            return Poll::Ready(None);
        }
        leave(&mut self.acceptor, context);
        Poll::Pending
    }

    /// Answers a new stream with SYN_REPLY, without pairs.
    pub(in super::super) fn accept(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.send == Direction::Reset {
            return;
        }
        // A unidirectional stream is answered too: the client waits for it.
        let fin = stream.send == Direction::Finished;
        let mut block = BytesMut::new();
        self.deflater.put(&Headers::default(), &mut block);
        self.answer(&Frame::SynReply { stream: id, fin, block: block.freeze() });
    }

    /// Ends a stream in both directions, after what was written to it.
    pub(in super::super) fn reset(&mut self, id: u32, status: ResetStatus) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.receive == Direction::Open || stream.send == Direction::Open {
            self.send_reset(id, status);
        }
        self.end_stream(id);
    }

    pub(in super::super) fn poll_read(
        &mut self,
        id: u32,
        context: &Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let closing = self.is_closing();
        let Some(stream) = self.streams.get_mut(&id) else { return Poll::Ready(Err(stream_reset())) };
        if stream.buffer.is_empty() {
            return match stream.receive {
                Direction::Finished => Poll::Ready(Ok(())),
                Direction::Reset => Poll::Ready(Err(stream_reset())),
                Direction::Open if closing => Poll::Ready(Err(connection_over())),
                Direction::Open => {
                    leave(&mut stream.reader, context);
                    Poll::Pending
                }
            };
        }
        let count = into.remaining().min(stream.buffer.len());
        into.put_slice(&stream.buffer[..count]);
        stream.buffer.advance(count);
        if stream.buffer.is_empty() {
            stream.buffer = BytesMut::new();
        }
        self.release(count);
        self.consume(Some(id), count);
        Poll::Ready(Ok(()))
    }

    pub(in super::super) fn poll_write(
        &mut self,
        id: u32,
        context: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let closing = self.is_closing();
        let Some(stream) =
            self.streams.get_mut(&id).filter(|stream| stream.send == Direction::Open && !closing)
        else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let buffer = SEND_BUFFER_BYTES.saturating_sub(self.data.len() + HEAD_BYTES);
        let window = if self.peer_has_windows { stream.window.min(self.window) } else { MAX_WINDOW_BYTES };
        let count =
            bytes.len().min(MAX_DATA_FRAME_BYTES).min(buffer).min(usize::try_from(window).unwrap_or(0));
        if count == 0 {
            leave(&mut stream.writer, context);
            if buffer == 0 && !self.blocked.contains(&id) {
                self.blocked.push_back(id);
            }
            return Poll::Pending;
        }
        let count_i64 = i64::try_from(count).unwrap_or(0);
        stream.window -= count_i64;
        self.window -= count_i64;
        put_data_head(&mut self.data, id, false, count);
        self.data.extend_from_slice(&bytes[..count]);
        wake(&mut self.driver);
        Poll::Ready(Ok(count))
    }

    /// Sends FIN, after what was written. Once is enough.
    pub(in super::super) fn finish(&mut self, id: u32) {
        let closing = self.is_closing();
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.send == Direction::Open) else {
            return;
        };
        stream.send = Direction::Finished;
        if !closing {
            put_data_head(&mut self.data, id, true, 0);
            wake(&mut self.driver);
        }
        self.forget_if_done(id);
    }

    /// Nobody reads any more: what comes is dropped.
    pub(in super::super) fn drop_reader(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.has_reader = false;
        stream.reader = None;
        let dropped = std::mem::take(&mut stream.buffer).len();
        self.release(dropped);
        self.consume(Some(id), dropped);
        self.forget_if_done(id);
    }

    /// Nobody writes any more.
    pub(in super::super) fn drop_writer(&mut self, id: u32) {
        self.finish(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.has_writer = false;
            stream.writer = None;
        }
        self.forget_if_done(id);
    }
}

fn stream_reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the stream was reset")
}

fn connection_over() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection is over")
}
