//! What one SPDY connection may cost. Every queue and length of this module is bounded by a name here.

use std::time::Duration;

/// The longest control frame that is read, in bytes of payload. The specification asks for 8 KiB at least
/// (SPDY/3.1, 2.2.1); what Kubernetes' clients send has less than 300 bytes.
pub const MAX_CONTROL_FRAME_BYTES: usize = 16 * 1024;

/// The longest name/value block after decompression, in bytes. A block that grows beyond it ends the connection, at
/// the first byte too many.
pub const MAX_HEADER_BLOCK_BYTES: usize = 16 * 1024;

/// The most name/value pairs of one block.
pub const MAX_HEADERS: usize = 64;

/// The most pairs of one SETTINGS frame. The protocol knows eight.
pub const MAX_SETTINGS: usize = 64;

/// The longest data frame that is sent, in bytes of payload.
pub const MAX_DATA_FRAME_BYTES: usize = 64 * 1024;

/// The most streams of one connection at a time; more are refused. A port-forward needs two for each connection.
pub const MAX_STREAMS: usize = 1024;

/// The most streams that wait to be accepted. With more, nothing is read from the connection until one is accepted.
pub const MAX_UNACCEPTED: usize = 64;

/// The window of a stream that nobody has changed, in bytes (SPDY/3.1, 2.6.8).
pub const INITIAL_WINDOW_BYTES: u32 = 64 * 1024;

/// The most bytes received and not yet read, of all streams of a connection together. With more, nothing is read
/// from the connection: Kubernetes' client knows no windows, so only TCP can hold it back.
pub const RECEIVE_BUFFER_BYTES: usize = 256 * 1024;

/// The most bytes waiting to be sent, of all streams of a connection together. With more, writers wait.
pub const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// The most bytes of answers (pings, resets, windows) waiting to be sent. With more, nothing is read, so that a peer
/// that asks and never listens holds up itself only.
pub const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// How long [`Session::close`](super::Session::close) waits for the peer to take what is left and to close its end.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// The most that is read from the connection at once, in bytes.
pub const READ_BYTES: usize = 64 * 1024;

/// What is read at once, and kept allocated, while little comes, in bytes.
pub const READ_BYTES_IDLE: usize = 2 * 1024;
