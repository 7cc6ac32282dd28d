//! SPDY/3.1 as Kubernetes' clients speak it: the server's end of one connection.
//!
//! The protocol is described by <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>; numbers in
//! brackets name its sections. Kubernetes uses it without HTTP in it: a stream's headers say what the stream is for
//! (`streamtype: stdin`), and data follow. The client opens all streams, and waits for the answer to each before it
//! opens the next.
//!
//! ```text
//! session     one task: socket <-> bytes          limits   every bound, by name
//!   frame       bytes <-> frames (pure)
//!   headers     name/value blocks (pure)          dictionary
//!   connection  frames <-> streams (pure)
//! stream      what a user of a stream holds: AsyncRead, AsyncWrite
//! ```
//!
//! A name or value the other end must not send ends its stream; a frame after which the next cannot be found, or the
//! compression not go on, ends the connection with GOAWAY.

mod connection;
mod dictionary;
#[cfg(any(test, fuzzing))]
pub mod exercise;
pub mod frame;
mod headers;
pub mod limits;
mod session;
mod stream;

pub use headers::{HeaderError, Headers};
pub use session::{Closed, Options, Session};
pub use stream::{Incoming, ReadHalf, Stream, WriteHalf};

/// Why a stream is reset (2.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ResetStatus {
    /// The peer did what the protocol forbids.
    ProtocolError = 1,
    /// There is no such stream.
    InvalidStream = 2,
    /// The stream was not looked at; it may be tried again.
    RefusedStream = 3,
    /// The stream is no longer wanted by who opened it.
    Cancel = 5,
    /// An error of ours.
    InternalError = 6,
    /// A window grew too large.
    FlowControlError = 7,
    /// The stream was finished, and yet something came on it.
    StreamAlreadyClosed = 9,
}
