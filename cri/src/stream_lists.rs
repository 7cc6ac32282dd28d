//! The Stream* calls: a list in batches, for nodes whose lists do not fit into one message.

use std::pin::Pin;

use prost::Message;
use tokio_stream::Stream;
use tonic::Status;

/// The most elements in one batch.
const BATCH_ITEMS: usize = 256;

/// The most bytes in one batch, unless one element alone is larger: a quarter of gRPC's smallest default limit.
const BATCH_BYTES: usize = 1024 * 1024;

/// The answer of a Stream* call.
pub type Batches<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `items` in batches, each made into a message by `message`. No items: no batch.
pub fn batches<I: Message + Send + 'static, T: Send + 'static>(
    items: Vec<I>,
    message: impl Fn(Vec<I>) -> T + Send + 'static,
) -> Batches<T> {
    let batches = split(items).into_iter().map(move |batch| Ok(message(batch)));
    Box::pin(tokio_stream::iter(batches.collect::<Vec<_>>()))
}

fn split<I: Message>(items: Vec<I>) -> Vec<Vec<I>> {
    let mut batches = Vec::new();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for item in items {
        let length = item.encoded_len();
        if !batch.is_empty() && (batch.len() == BATCH_ITEMS || bytes + length > BATCH_BYTES) {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += length;
        batch.push(item);
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Container;

    #[test]
    fn batches_are_bounded_and_lose_nothing() {
        let large = Container { id: "x".repeat(600 * 1024), ..Container::default() };
        let lengths = |items: Vec<Container>| split(items).iter().map(Vec::len).collect::<Vec<_>>();
        assert!(lengths(Vec::new()).is_empty());
        assert_eq!(lengths(vec![Container::default(); 600]), [256, 256, 88]);
        assert_eq!(lengths(vec![large.clone(); 3]), [1, 1, 1]);
        assert_eq!(lengths(vec![Container::default(), large, Container::default()]), [3]);
    }
}
