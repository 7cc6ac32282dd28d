//! From the headers of a request to a protocol, or to a refusal. Pure.
//!
//! | Asked for | Answer |
//! |---|---|
//! | WebSocket, a subprotocol we have | 101 with it |
//! | WebSocket, none named | 101: the first, binary version, as browsers expect |
//! | WebSocket, only others | 400, naming ours |
//! | SPDY/3.1, a protocol we have (X-Stream-Protocol-Version) | 101 with it |
//! | SPDY/3.1 for exec or attach, none named | 101: the first version |
//! | SPDY/3.1, only others | 400, naming ours |
//! | anything else | 400 |

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::forward_websocket::MAX_PORTS;
use super::{remote_spdy, websocket};

/// Subprotocols of exec and attach.
const REMOTE_COMMAND: [(&str, websocket::Format); 6] = [
    ("v5.channel.k8s.io", websocket::Format { base64: false, half_close: true, json_status: true }),
    ("v5.base64.channel.k8s.io", websocket::Format { base64: true, half_close: true, json_status: true }),
    ("v4.channel.k8s.io", websocket::Format { base64: false, half_close: false, json_status: true }),
    ("v4.base64.channel.k8s.io", websocket::Format { base64: true, half_close: false, json_status: true }),
    ("channel.k8s.io", UNNAMED),
    ("base64.channel.k8s.io", websocket::Format { base64: true, half_close: false, json_status: false }),
];

/// Subprotocols of port-forward.
const PORT_FORWARD: [(&str, PortForward); 3] = [
    ("SPDY/3.1+portforward.k8s.io", PortForward::Tunnel),
    ("v4.channel.k8s.io", PortForward::WebSocket { base64: false }),
    ("v4.base64.channel.k8s.io", PortForward::WebSocket { base64: true }),
];

/// What SPDY is called in `Upgrade`.
const SPDY: &str = "SPDY/3.1";

/// Names the protocols that a SPDY client offers, and the one that was chosen.
static STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Versions of exec and attach over SPDY.
const REMOTE_COMMAND_SPDY: [(&str, remote_spdy::Format); 5] = [
    ("v5.channel.k8s.io", remote_spdy::Format { resize: true, json_status: true }),
    ("v4.channel.k8s.io", remote_spdy::Format { resize: true, json_status: true }),
    ("v3.channel.k8s.io", remote_spdy::Format { resize: true, json_status: false }),
    ("v2.channel.k8s.io", FIRST_SPDY),
    ("channel.k8s.io", FIRST_SPDY),
];

/// What a SPDY client speaks that names no version.
const FIRST_SPDY: remote_spdy::Format = remote_spdy::Format { resize: false, json_status: false };

/// The protocol of port-forward over SPDY.
const PORT_FORWARD_SPDY: [(&str, PortForward); 1] = [("portforward.k8s.io", PortForward::Spdy)];

/// What a WebSocket client speaks that names no subprotocol.
const UNNAMED: websocket::Format = websocket::Format { base64: false, half_close: false, json_status: false };

/// A connection may become another: what is answered, and what it is then.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Upgrade<P> {
    /// Headers of the 101.
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What is spoken from there on.
    pub(super) protocol: P,
}

/// What carries exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RemoteCommand {
    /// Messages.
    WebSocket(websocket::Format),
    /// Streams.
    Spdy(remote_spdy::Format),
}

/// What carries port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortForward {
    /// Messages, two channels a port.
    WebSocket {
        /// Channel and data are text.
        base64: bool,
    },
    /// Two streams a connection.
    Spdy,
    /// The same in WebSocket messages.
    Tunnel,
}

/// Why there is no upgrade.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    /// Nothing is here.
    pub(super) fn not_found() -> Self {
        Self { status: StatusCode::NOT_FOUND, text: "404 page not found".to_owned() }
    }

    /// Too many are here.
    pub(super) fn busy() -> Self {
        let text = "too many streaming sessions are open; try again".to_owned();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, text }
    }

    fn bad(text: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, text: text.into() }
    }

    /// As it is sent.
    pub(super) fn response(self) -> Response<String> {
        let mut response = Response::new(self.text + "\n");
        *response.status_mut() = self.status;
        // The next request of this client would be for something else.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

impl<P> Upgrade<P> {
    /// As it is sent.
    pub(super) fn response(&self) -> Response<String> {
        let mut response = Response::new(String::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().extend(self.headers.iter().cloned());
        response
    }
}

/// What exec and attach are to be carried by.
pub(super) fn remote_command(headers: &HeaderMap) -> Result<Upgrade<RemoteCommand>, Refusal> {
    if wants_spdy(headers)? {
        let (headers, format) = spdy_handshake(headers, &REMOTE_COMMAND_SPDY, Some(FIRST_SPDY))?;
        return Ok(Upgrade { headers, protocol: RemoteCommand::Spdy(format) });
    }
    let (headers, format) = websocket_handshake(headers, &REMOTE_COMMAND, UNNAMED)?;
    Ok(Upgrade { headers, protocol: RemoteCommand::WebSocket(format) })
}

/// What port-forward is to be carried by. `ports` is how many the CRI request named, which messages need.
pub(super) fn port_forward(headers: &HeaderMap, ports: usize) -> Result<Upgrade<PortForward>, Refusal> {
    if wants_spdy(headers)? {
        let (headers, protocol) = spdy_handshake(headers, &PORT_FORWARD_SPDY, None)?;
        return Ok(Upgrade { headers, protocol });
    }
    let unnamed = PortForward::WebSocket { base64: false };
    let (headers, protocol) = websocket_handshake(headers, &PORT_FORWARD, unnamed)?;
    if matches!(protocol, PortForward::WebSocket { .. }) && !(1..=MAX_PORTS).contains(&ports) {
        let text = format!(
            "the CRI request has to name 1 to {MAX_PORTS} ports for this subprotocol; it named {ports}"
        );
        return Err(Refusal::bad(text));
    }
    Ok(Upgrade { headers, protocol })
}

/// True for SPDY, false for WebSocket.
fn wants_spdy(headers: &HeaderMap) -> Result<bool, Refusal> {
    if !has(headers, &CONNECTION, "upgrade") {
        return Err(Refusal::bad(
            "this URL is for a connection that is upgraded: it needs `Connection: Upgrade`",
        ));
    }
    match () {
        () if has(headers, &UPGRADE, "websocket") => Ok(false),
        () if has(headers, &UPGRADE, SPDY) => Ok(true),
        () => Err(Refusal::bad("a connection can be upgraded to websocket or SPDY/3.1")),
    }
}

/// The answer to a SPDY client, and what `known` has for the first of its protocols that is in it. One that names none gets `unnamed`.
fn spdy_handshake<P: Copy>(
    headers: &HeaderMap,
    known: &[(&'static str, P)],
    unnamed: Option<P>,
) -> Result<(Vec<(HeaderName, HeaderValue)>, P), Refusal> {
    let mut answer =
        vec![(CONNECTION, HeaderValue::from_static("Upgrade")), (UPGRADE, HeaderValue::from_static(SPDY))];
    let mut offered = list(headers, &STREAM_PROTOCOL).peekable();
    if let (None, Some(unnamed)) = (offered.peek(), unnamed) {
        return Ok((answer, unnamed));
    }
    let found = offered.find_map(|offered| known.iter().find(|(name, _)| *name == offered));
    let Some(&(name, protocol)) = found else { return Err(unknown(known)) };
    answer.push((STREAM_PROTOCOL.clone(), HeaderValue::from_static(name)));
    Ok((answer, protocol))
}

fn unknown<P>(known: &[(&'static str, P)]) -> Refusal {
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    Refusal::bad(format!("none of the offered subprotocols is known; supported are {}", names.join(", ")))
}

/// The answer to a handshake (RFC 6455, 4.2), and what `known` has for the first of the client's subprotocols that is in it.
fn websocket_handshake<P: Copy>(
    headers: &HeaderMap,
    known: &[(&'static str, P)],
    unnamed: P,
) -> Result<(Vec<(HeaderName, HeaderValue)>, P), Refusal> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::bad("the WebSocket version has to be 13"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or_else(|| Refusal::bad("Sec-WebSocket-Key is missing"))?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| Refusal::bad("Sec-WebSocket-Key is no key"))?;
    let mut answer = vec![
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
    ];
    let mut offered = list(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    if offered.peek().is_none() {
        return Ok((answer, unnamed));
    }
    let found = offered.find_map(|offered| known.iter().find(|(name, _)| *name == offered));
    let Some(&(name, protocol)) = found else { return Err(unknown(known)) };
    answer.push((SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name)));
    Ok((answer, protocol))
}

/// The elements of all headers of this name, separated by commas in each.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

fn has(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    list(headers, name).any(|element| element.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        // Several of one name stay several.
        let mut map = HeaderMap::new();
        for (name, value) in lines.iter().map(line) {
            map.append(name, value);
        }
        map
    }

    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn the_first_subprotocol_that_both_have_is_taken() {
        let mut lines = WEBSOCKET.to_vec();
        lines.push(("sec-websocket-protocol", "v9.channel.k8s.io, v4.channel.k8s.io"));
        lines.push(("sec-websocket-protocol", "v5.channel.k8s.io"));
        let upgrade = remote_command(&headers(&lines)).unwrap();
        let RemoteCommand::WebSocket(format) = upgrade.protocol else { panic!("{upgrade:?}") };
        assert!(format.json_status && !format.half_close);
        let response = upgrade.response();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
        // The example of RFC 6455, 1.3.
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn who_names_none_gets_the_first_version() {
        let upgrade = remote_command(&headers(&WEBSOCKET)).unwrap();
        assert_eq!(upgrade.protocol, RemoteCommand::WebSocket(UNNAMED));
        assert!(!upgrade.response().headers().contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn a_refusal_names_what_there_is() {
        let mut lines = WEBSOCKET.to_vec();
        lines.push(("sec-websocket-protocol", "chat"));
        let refusal = remote_command(&headers(&lines)).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        for (name, _) in REMOTE_COMMAND {
            assert!(refusal.text.contains(name), "{}", refusal.text);
        }
    }

    #[test]
    fn half_a_handshake_is_refused() {
        for (place, missing) in WEBSOCKET.iter().enumerate() {
            let mut lines = WEBSOCKET.to_vec();
            lines.remove(place);
            assert!(remote_command(&headers(&lines)).is_err(), "without {missing:?}");
        }
        let mut lines = WEBSOCKET.to_vec();
        lines[2].1 = "12";
        assert!(remote_command(&headers(&lines)).is_err());
    }

    #[test]
    fn spdy_is_negotiated_by_a_header_of_its_own() {
        let lines = |versions: &[&'static str]| {
            let versions = versions.iter().map(|version| ("x-stream-protocol-version", *version));
            headers(
                &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]
                    .into_iter()
                    .chain(versions)
                    .collect::<Vec<_>>(),
            )
        };
        let upgrade =
            remote_command(&lines(&["v9.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"])).unwrap();
        assert_eq!(
            upgrade.protocol,
            RemoteCommand::Spdy(remote_spdy::Format { resize: true, json_status: true })
        );
        assert_eq!(upgrade.response().headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert_eq!(upgrade.response().headers()["upgrade"], "SPDY/3.1");
        assert_eq!(remote_command(&lines(&[])).unwrap().protocol, RemoteCommand::Spdy(FIRST_SPDY));
        assert!(
            remote_command(&lines(&["v9.channel.k8s.io"])).unwrap_err().text.contains("v5.channel.k8s.io")
        );
        let forward = port_forward(&lines(&["portforward.k8s.io"]), 0).unwrap();
        assert_eq!(forward.protocol, PortForward::Spdy, "its ports are told later");
        assert!(port_forward(&lines(&[]), 0).is_err());
    }
}
