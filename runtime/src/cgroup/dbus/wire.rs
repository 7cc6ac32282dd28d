//! D-Bus values and messages as bytes, both ways (D-Bus specification 0.43, "Type System" and "Message Protocol"). Pure.

use super::BusError;

/// The specification's bound on a message.
const MOST_BYTES: usize = 128 << 20;
/// And on nesting.
const MOST_DEPTH: usize = 32;

/// A D-Bus value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// `y`
    Byte(u8),
    /// `b`
    Bool(bool),
    /// `i`
    Int32(i32),
    /// `u`
    Uint32(u32),
    /// `x`
    Int64(i64),
    /// `t`
    Uint64(u64),
    /// `d`
    Double(f64),
    /// `s`
    String(String),
    /// `o`
    Path(String),
    /// `g`
    Signature(String),
    /// `a…`: the signature of the elements, and these.
    Array(String, Vec<Value>),
    /// `(…)`
    Struct(Vec<Value>),
    /// `v`
    Variant(Box<Value>),
}

impl Value {
    /// A string.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// An array of strings.
    pub(crate) fn texts(texts: impl IntoIterator<Item = String>) -> Self {
        Self::Array("s".to_owned(), texts.into_iter().map(Self::String).collect())
    }

    /// `(name, variant)`, as systemd takes unit properties.
    pub(crate) fn property(name: impl Into<String>, value: Self) -> Self {
        Self::Struct(vec![Self::text(name), Self::Variant(Box::new(value))])
    }

    /// The text of a string, path or signature.
    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Path(text) | Self::Signature(text) => Some(text),
            Self::Variant(inner) => inner.as_text(),
            _ => None,
        }
    }

    /// The value's type, in D-Bus letters.
    pub(crate) fn signature(&self) -> String {
        match self {
            Self::Byte(_) => "y".to_owned(),
            Self::Bool(_) => "b".to_owned(),
            Self::Int32(_) => "i".to_owned(),
            Self::Uint32(_) => "u".to_owned(),
            Self::Int64(_) => "x".to_owned(),
            Self::Uint64(_) => "t".to_owned(),
            Self::Double(_) => "d".to_owned(),
            Self::String(_) => "s".to_owned(),
            Self::Path(_) => "o".to_owned(),
            Self::Signature(_) => "g".to_owned(),
            Self::Array(element, _) => format!("a{element}"),
            Self::Struct(fields) => {
                let fields: String = fields.iter().map(Self::signature).collect();
                format!("({fields})")
            }
            Self::Variant(_) => "v".to_owned(),
        }
    }

    /// Appends the little-endian form; `out` starts at a multiple of 8.
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Byte(value) => out.push(*value),
            Self::Bool(value) => put_u32(u32::from(*value), out),
            Self::Int32(value) => put_u32(value.cast_unsigned(), out),
            Self::Uint32(value) => put_u32(*value, out),
            Self::Int64(value) => put_u64(value.cast_unsigned(), out),
            Self::Uint64(value) => put_u64(*value, out),
            Self::Double(value) => put_u64(value.to_bits(), out),
            Self::String(text) | Self::Path(text) => {
                put_u32(length(text.len()), out);
                out.extend(text.as_bytes());
                out.push(0);
            }
            Self::Signature(text) => put_signature(text, out),
            Self::Array(element, items) => {
                put_u32(0, out);
                let size_at = out.len() - 4;
                pad(alignment(element.as_bytes().first().copied().unwrap_or(b'y')), out);
                let start = out.len();
                for item in items {
                    item.put(out);
                }
                let size = length(out.len() - start);
                out[size_at..size_at + 4].copy_from_slice(&size.to_le_bytes());
            }
            Self::Struct(fields) => {
                pad(8, out);
                for field in fields {
                    field.put(out);
                }
            }
            Self::Variant(inner) => {
                put_signature(&inner.signature(), out);
                inner.put(out);
            }
        }
    }
}

fn put_signature(text: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
    out.extend(text.as_bytes());
    out.push(0);
}

fn put_u32(value: u32, out: &mut Vec<u8>) {
    pad(4, out);
    out.extend(value.to_le_bytes());
}

fn put_u64(value: u64, out: &mut Vec<u8>) {
    pad(8, out);
    out.extend(value.to_le_bytes());
}

fn pad(alignment: usize, out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(alignment), 0);
}

/// Nothing here comes near the bound on messages, let alone this one.
fn length(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

fn alignment(letter: u8) -> usize {
    match letter {
        b'n' | b'q' => 2,
        b'b' | b'i' | b'u' | b's' | b'o' | b'a' | b'h' => 4,
        b'x' | b't' | b'd' | b'(' | b'{' => 8,
        _ => 1,
    }
}

/// Reads values off a message.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl Cursor<'_> {
    const SHORT: BusError = BusError::Malformed("it ends too early");

    fn align(&mut self, alignment: usize) {
        self.at = self.at.next_multiple_of(alignment);
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], BusError> {
        self.align(N.min(8));
        let found = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk).ok_or(Self::SHORT)?;
        self.at += N;
        Ok(*found)
    }

    fn u32(&mut self) -> Result<u32, BusError> {
        let bytes = self.take()?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    fn u64(&mut self) -> Result<u64, BusError> {
        let bytes = self.take()?;
        Ok(if self.big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }

    fn size(&mut self) -> Result<usize, BusError> {
        usize::try_from(self.u32()?).map_err(|_| Self::SHORT)
    }

    /// Text and the NUL after it.
    fn text(&mut self, size: usize) -> Result<String, BusError> {
        let end = self.at.checked_add(size).ok_or(Self::SHORT)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Self::SHORT)?;
        self.at = end + 1;
        String::from_utf8(bytes.to_vec()).map_err(|_| BusError::Malformed("a string is not UTF-8"))
    }

    fn signature(&mut self) -> Result<String, BusError> {
        let [size] = self.take()?;
        self.text(size.into())
    }

    /// Every value of a signature.
    fn values(&mut self, signature: &str, depth: usize) -> Result<Vec<Value>, BusError> {
        let mut rest = signature;
        let mut values = Vec::new();
        while !rest.is_empty() {
            let (one, after) = split_signature(rest)?;
            values.push(self.value(one, depth)?);
            rest = after;
        }
        Ok(values)
    }

    /// A value of one complete type.
    fn value(&mut self, signature: &str, depth: usize) -> Result<Value, BusError> {
        if depth > MOST_DEPTH {
            return Err(BusError::Malformed("it is nested too deeply"));
        }
        let letter = signature.as_bytes().first().copied().unwrap_or(0);
        Ok(match letter {
            b'y' => Value::Byte(self.take::<1>()?[0]),
            b'b' => Value::Bool(self.u32()? != 0),
            b'i' => Value::Int32(self.u32()?.cast_signed()),
            b'u' | b'h' => Value::Uint32(self.u32()?),
            b'x' => Value::Int64(self.u64()?.cast_signed()),
            b't' => Value::Uint64(self.u64()?),
            b'd' => Value::Double(f64::from_bits(self.u64()?)),
            b's' | b'o' => {
                let size = self.size()?;
                let text = self.text(size)?;
                if letter == b's' { Value::String(text) } else { Value::Path(text) }
            }
            b'g' => Value::Signature(self.signature()?),
            b'v' => {
                let inner = self.signature()?;
                Value::Variant(Box::new(self.value(&inner, depth + 1)?))
            }
            b'a' => self.array(&signature[1..], depth)?,
            b'(' | b'{' => {
                self.align(8);
                Value::Struct(self.values(&signature[1..signature.len() - 1], depth + 1)?)
            }
            _ => return Err(BusError::Malformed("a type is unknown")),
        })
    }

    fn array(&mut self, element: &str, depth: usize) -> Result<Value, BusError> {
        let size = self.size()?;
        self.align(alignment(element.as_bytes().first().copied().unwrap_or(0)));
        let end = self.at.checked_add(size).filter(|end| *end <= self.bytes.len()).ok_or(Self::SHORT)?;
        let mut items = Vec::new();
        while self.at < end {
            items.push(self.value(element, depth + 1)?);
        }
        Ok(Value::Array(element.to_owned(), items))
    }
}

/// The first complete type, and what follows.
fn split_signature(signature: &str) -> Result<(&str, &str), BusError> {
    let bad = BusError::Malformed("a signature is not complete");
    let mut open = 0_usize;
    for (at, letter) in signature.bytes().enumerate() {
        match letter {
            b'(' | b'{' => open += 1,
            b')' | b'}' if open == 0 => return Err(bad),
            b')' | b'}' => open -= 1,
            _ => {}
        }
        if open == 0 && letter != b'a' {
            return signature.split_at_checked(at + 1).ok_or(bad);
        }
    }
    Err(bad)
}

/// What a call names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call<'a> {
    /// Bus name; not used on a private socket.
    pub destination: &'a str,
    /// Object.
    pub path: &'a str,
    /// Interface.
    pub interface: &'a str,
    /// Method.
    pub(crate) member: &'a str,
}

/// A message that arrived.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    /// One of the constants below.
    pub(super) kind: u8,
    /// The call that this answers.
    pub(super) reply_to: Option<u32>,
    /// An error's name.
    pub(super) error: Option<String>,
    /// Signal's or method's name.
    pub(crate) member: Option<String>,
    /// Its arguments.
    pub(crate) body: Vec<Value>,
}

const METHOD_CALL: u8 = 1;
pub(super) const METHOD_RETURN: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;

/// The bytes of a method call.
pub(super) fn encode(call: &Call<'_>, serial: u32, addressed: bool, body: &[Value]) -> Vec<u8> {
    let field = |code, value| Value::Struct(vec![Value::Byte(code), Value::Variant(Box::new(value))]);
    let mut fields = vec![
        field(1, Value::Path(call.path.to_owned())),
        field(2, Value::text(call.interface)),
        field(3, Value::text(call.member)),
    ];
    if addressed {
        fields.push(field(6, Value::text(call.destination)));
    }
    let mut arguments = Vec::new();
    for value in body {
        value.put(&mut arguments);
    }
    if !body.is_empty() {
        fields.push(field(8, Value::Signature(body.iter().map(Value::signature).collect())));
    }
    let mut out = vec![b'l', METHOD_CALL, 0, 1];
    put_u32(length(arguments.len()), &mut out);
    put_u32(serial, &mut out);
    Value::Array("(yv)".to_owned(), fields).put(&mut out);
    pad(8, &mut out);
    out.extend(arguments);
    out
}

/// How long a message is, from its first 16 bytes.
pub(super) fn total_length(head: &[u8; 16]) -> Result<usize, BusError> {
    let mut cursor = Cursor { bytes: head, at: 4, big_endian: head[0] == b'B' };
    let body = cursor.size()?;
    cursor.u32()?;
    let fields = cursor.size()?;
    let total = 16_usize.saturating_add(fields).next_multiple_of(8).saturating_add(body);
    if total > MOST_BYTES || head[3] != 1 {
        return Err(BusError::Malformed("its head is impossible"));
    }
    Ok(total)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Message, BusError> {
    let mut cursor = Cursor { bytes, at: 12, big_endian: bytes.first() == Some(&b'B') };
    let kind = bytes.get(1).copied().unwrap_or(0);
    let mut message = Message { kind, reply_to: None, error: None, member: None, body: Vec::new() };
    let mut signature = String::new();
    let Value::Array(_, fields) = cursor.value("a(yv)", 0)? else {
        return Err(BusError::Malformed("it has no fields"));
    };
    for field in fields {
        let Value::Struct(pair) = field else { continue };
        let [Value::Byte(code), Value::Variant(value)] = pair.as_slice() else { continue };
        let text = || value.as_text().map(str::to_owned);
        match code {
            3 => message.member = text(),
            4 => message.error = text(),
            5 => {
                if let Value::Uint32(serial) = **value {
                    message.reply_to = Some(serial);
                }
            }
            8 => signature = text().unwrap_or_default(),
            _ => {}
        }
    }
    cursor.align(8);
    message.body = cursor.values(&signature, 0)?;
    Ok(message)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) const HELLO: Call<'static> = Call {
        destination: "org.freedesktop.DBus",
        path: "/org/freedesktop/DBus",
        interface: "org.freedesktop.DBus",
        member: "Hello",
    };

    #[test]
    fn hello_is_the_bytes_that_every_client_sends() {
        let mut expected = b"l\x01\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x6d\x00\x00\x00".to_vec();
        expected.extend(b"\x01\x01o\x00\x15\x00\x00\x00/org/freedesktop/DBus\x00\x00\x00");
        expected.extend(b"\x02\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00");
        expected.extend(b"\x03\x01s\x00\x05\x00\x00\x00Hello\x00\x00\x00");
        expected.extend(b"\x06\x01s\x00\x14\x00\x00\x00org.freedesktop.DBus\x00\x00\x00\x00");
        let bytes = encode(&HELLO, 1, true, &[]);
        // The last field's padding is the header's, and not counted in the length of the fields.
        assert_eq!(bytes, expected);
        assert_eq!(total_length(bytes.first_chunk().unwrap()).unwrap(), bytes.len());
    }

    #[test]
    fn values_are_aligned() {
        let put = |value: Value| {
            let mut out = Vec::new();
            value.put(&mut out);
            out
        };
        assert_eq!(put(Value::text("ab")), b"\x02\x00\x00\x00ab\x00");
        assert_eq!(put(Value::Variant(Box::new(Value::Uint64(5)))), b"\x01t\x00\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        // An array of structs: its size does not count the padding before the first.
        let pids = Value::property("PIDs", Value::Array("u".to_owned(), vec![Value::Uint32(7)]));
        let list = Value::Array("(sv)".to_owned(), vec![pids]);
        assert_eq!(list.signature(), "a(sv)");
        assert_eq!(put(list), b"\x18\0\0\0\0\0\0\0\x04\0\0\0PIDs\0\x02au\0\0\0\0\x04\0\0\0\x07\0\0\0");
        assert_eq!(put(Value::Array("t".to_owned(), vec![])), b"\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let body = vec![
            Value::text("x"),
            Value::Byte(1),
            Value::Bool(true),
            Value::Int32(-2),
            Value::Int64(-3),
            Value::Double(0.5),
            Value::Path("/a".to_owned()),
            Value::Array("(sv)".to_owned(), vec![Value::property("p", Value::texts(["q".to_owned()]))]),
            Value::Struct(vec![Value::Byte(9), Value::Signature("a{sv}".to_owned())]),
        ];
        let message = decode(&encode(&HELLO, 7, false, &body)).unwrap();
        assert_eq!((message.kind, message.member.as_deref()), (METHOD_CALL, Some("Hello")));
        assert_eq!(message.body, body);
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let bytes = encode(&HELLO, 7, false, &[Value::texts(["abc".to_owned()])]);
        for end in 12..bytes.len() - 1 {
            assert!(decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(split_signature("(s").is_err());
        assert!(split_signature("a").is_err());
        assert!(split_signature(")").is_err());
        assert_eq!(split_signature("a(sv)u").unwrap(), ("a(sv)", "u"));
    }
}
