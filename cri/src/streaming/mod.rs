//! The streaming server: Exec, Attach and PortForward answer with a URL of it, and the client's connection is upgraded there to what
//! carries several streams.
//!
//! ```text
//! kubelet --gRPC Exec--> calls --one-time URL--> kubelet --GET, Upgrade--> server
//!                                                                            |  request: which ticket, which protocol
//!                                                                            v
//!      WebSocket frames or SPDY streams <--> client <--> exec, attach, forward <--> pipes, a terminal, sockets in the pod
//! ```
//!
//! Nothing else answers: whoever has no URL gets 404. A URL is good for one request within [`tickets::URL_LIFE`] and has 256 random bits.
//! Bytes go between the connection and the descriptors of an exec'd process directly; what is attached to a container
//! goes through the pod's monitor, which has its pipes.
//!
//! | file | tells |
//! |---|---|
//! | [`calls`] | the three RPCs: what may be asked for, and the URL |
//! | [`tickets`] | URLs that wait for their request |
//! | [`server`] | listening, TLS, HTTP, deadlines and bounds |
//! | [`request`] | from a request's headers to a protocol, or to a refusal |
//! | [`client`] | the streams of exec and attach, whatever carries them |
//! | [`websocket`] | channels in WebSocket messages |
//! | [`exec`], [`attach`], [`forward`] | what is done with them |
//! | [`remote_spdy`] | the streams of exec and attach over SPDY; [`spdy`] is the protocol below |
//! | [`forward_websocket`] | port-forward in WebSocket messages |
//! | [`forward_spdy`] | port-forward over SPDY, and that in WebSocket messages |
//! | [`stdio`] | the daemon's ends of a process's stdin, stdout and stderr, or of its terminal |
//! | [`idle`] | connections on which nothing moves |
//! | [`sizes`], [`status`] | the two formats of JSON inside |
//!
//! The protocols are those of kubelet's own server (k8s.io/streaming); there is no other specification of them.

mod attach;
mod calls;
mod client;
mod exec;
mod forward;
mod forward_spdy;
mod forward_websocket;
mod idle;
mod remote_spdy;
mod request;
mod server;
mod sizes;
pub mod spdy;
mod status;
mod stdio;
mod tickets;
mod tls;
mod websocket;

pub use server::Server;
pub use tickets::Urls;

pub(crate) use calls::{attach, exec, port_forward};
