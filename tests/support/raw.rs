//! Calls by their bytes: fields of the current contract that k8s-cri does not know yet, and messages that no binding would send.
//!
//! A protobuf message takes fields from anywhere in its bytes, and one that comes twice is merged. So what k8s-cri encodes,
//! followed by [`Wire`] with the newer field, is the newer message.

use anyhow::{Context as _, Result, bail};
use prost::bytes::{Buf as _, BufMut as _};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::{Client, seconds};

/// A protobuf message under construction, or a part of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wire(pub Vec<u8>);

impl Wire {
    /// Adds a number, as int32, int64, uint64, bool or an enumeration has it.
    #[must_use]
    pub fn varint(mut self, field: u32, value: u64) -> Self {
        self.put(u64::from(field) << 3);
        self.put(value);
        self
    }

    /// Adds a string, bytes or a message.
    #[must_use]
    pub fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.put(u64::from(field) << 3 | 2);
        self.put(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Adds a message.
    #[must_use]
    pub fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    fn put(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    /// The last number of a field, through the messages that `path` names on the way. None: it is not there, which is 0.
    pub fn number(&self, path: &[u32]) -> Result<Option<u64>> {
        let (last, way) = path.split_last().context("an empty path")?;
        let mut message = self.clone();
        for field in way {
            match message.fields()?.into_iter().rfind(|(number, _)| number == field) {
                Some((_, Value::Bytes(bytes))) => message = Self(bytes),
                Some(_) => bail!("field {field} is no message"),
                None => return Ok(None),
            }
        }
        match message.fields()?.into_iter().rfind(|(number, _)| number == last) {
            Some((_, Value::Number(number))) => Ok(Some(number)),
            Some(_) => bail!("field {last} is no number"),
            None => Ok(None),
        }
    }

    fn fields(&self) -> Result<Vec<(u32, Value)>> {
        let mut rest = &self.0[..];
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let key = take(&mut rest)?;
            let value = match key & 7 {
                0 => Value::Number(take(&mut rest)?),
                2 => {
                    let length = usize::try_from(take(&mut rest)?)?;
                    let (bytes, after) = rest.split_at_checked(length).context("a field is cut off")?;
                    rest = after;
                    Value::Bytes(bytes.to_owned())
                }
                other => bail!("wire type {other}"),
            };
            fields.push((u32::try_from(key >> 3)?, value));
        }
        Ok(fields)
    }
}

enum Value {
    Number(u64),
    Bytes(Vec<u8>),
}

fn take(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first().context("a number is cut off")?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a number is too long")
}

impl Client {
    /// Sends bytes to a method such as `/runtime.v1.RuntimeService/Version` and gives the answer's bytes; of a stream its first
    /// message, empty if it has none. No answer within a minute is `DEADLINE_EXCEEDED`.
    pub fn raw(&self, path: &'static str, request: Vec<u8>) -> Result<Wire, Status> {
        let mut grpc = tonic::client::Grpc::new(self.channel().clone());
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let path = http::uri::PathAndQuery::from_static(path);
            // Of a call that is no stream this is the one answer.
            let answers = grpc.server_streaming(tonic::Request::new(request), path, Bytes).await?;
            let mut answers = answers.into_inner();
            Ok(answers.message().await?.unwrap_or_default())
        };
        let answer = self.block_on(async { tokio::time::timeout(seconds(60), call).await });
        let answer = answer.unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "no answer")));
        answer.map(Wire)
    }
}

/// Messages as they are.
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_again() {
        let inner = Wire::default().varint(18, 300).bytes(2, b"x");
        let outer = Wire::default().message(1, &inner).varint(3, u64::MAX);
        assert_eq!(outer.number(&[1, 18]).unwrap(), Some(300));
        assert_eq!(outer.number(&[3]).unwrap(), Some(u64::MAX));
        assert_eq!(outer.number(&[1, 4]).unwrap(), None);
        assert_eq!(outer.number(&[7, 4]).unwrap(), None);
        assert!(outer.number(&[1, 2]).is_err());
    }
}
