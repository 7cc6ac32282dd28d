//! From the headers of a request to a protocol, or to a refusal. Pure.
//!
//! | Asked for | Answer |
//! |---|---|
//! | WebSocket, a subprotocol we have | 101 with it |
//! | WebSocket, none named | 101: the first, binary version, as browsers expect |
//! | WebSocket, only others | 400, naming ours |
//! | anything else | 400 |

use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::forward_websocket::MAX_PORTS;
use super::websocket;

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
const PORT_FORWARD: [(&str, PortForward); 2] = [
    ("v4.channel.k8s.io", PortForward::WebSocket { base64: false }),
    ("v4.base64.channel.k8s.io", PortForward::WebSocket { base64: true }),
];

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
}

/// What carries port-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PortForward {
    /// Messages, two channels a port.
    WebSocket {
        /// Channel and data are text.
        base64: bool,
    },
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
    wants_websocket(headers)?;
    let (headers, format) = websocket_handshake(headers, &REMOTE_COMMAND, UNNAMED)?;
    Ok(Upgrade { headers, protocol: RemoteCommand::WebSocket(format) })
}

/// What port-forward is to be carried by. `ports` is how many the CRI request named, which messages need.
pub(super) fn port_forward(headers: &HeaderMap, ports: usize) -> Result<Upgrade<PortForward>, Refusal> {
    wants_websocket(headers)?;
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

fn wants_websocket(headers: &HeaderMap) -> Result<(), Refusal> {
    if !has(headers, &CONNECTION, "upgrade") {
        return Err(Refusal::bad(
            "this URL is for a connection that is upgraded: it needs `Connection: Upgrade`",
        ));
    }
    if !has(headers, &UPGRADE, "websocket") {
        return Err(Refusal::bad("a connection can be upgraded to websocket"));
    }
    Ok(())
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
    let Some(&(name, protocol)) = found else {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        return Err(Refusal::bad(format!(
            "none of the offered subprotocols is known; supported are {}",
            names.join(", ")
        )));
    };
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
        let RemoteCommand::WebSocket(format) = upgrade.protocol;
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
}
