//! A client by hand against a session, over a pipe and over a socket.

use bytes::Bytes;
use tokio::io::{DuplexStream, duplex};
use tokio::time::Instant;

use super::super::frame::Frame;
use super::super::headers::{Deflater, Headers};
use super::super::limits::{MAX_ANSWER_BYTES, RECEIVE_BUFFER_BYTES, SEND_BUFFER_BYTES};
use super::super::{ResetStatus, Stream};
use super::*;

/// A client that sends and reads frames.
struct Client<T> {
    io: T,
    deflater: Deflater,
    decoder: Decoder,
    input: BytesMut,
}

fn pair(buffer: usize) -> (Client<DuplexStream>, Session) {
    let (ours, theirs) = duplex(buffer);
    (Client::new(ours), Session::start(theirs, Options::default()))
}

impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
    fn new(io: T) -> Self {
        Self { io, deflater: Deflater::default(), decoder: Decoder::default(), input: BytesMut::new() }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn syn(&mut self, stream: u32) {
        let mut block = BytesMut::new();
        self.deflater.put(&[("streamtype", "stdin")].into_iter().collect::<Headers>(), &mut block);
        self.send(Frame::SynStream { stream, fin: false, unidirectional: false, block: block.freeze() })
            .await;
    }

    /// The next frame but those that say hello and those about windows; None at the end.
    async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next(&mut self.input).unwrap() {
                Some(Frame::Settings(_) | Frame::WindowUpdate { .. }) => {}
                Some(frame) => return Some(frame),
                None if self.io.read_buf(&mut self.input).await.unwrap_or(0) == 0 => return None,
                None => {}
            }
        }
    }
}

impl Client<DuplexStream> {
    async fn open(&mut self, session: &mut Session, stream: u32) -> Stream {
        self.syn(stream).await;
        let accepted = session.accept().await.unwrap().accept();
        assert!(matches!(self.next().await, Some(Frame::SynReply { stream: id, .. }) if id == stream));
        accepted
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_and_both_ways_end() {
    let (mut client, mut session) = pair(100);
    let mut stream = client.open(&mut session, 1).await;
    let echo = tokio::spawn(async move {
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        stream.write_all(&read).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    client.send(Frame::Data { stream: 1, fin: false, chunk: Bytes::from_static(b"there and ") }).await;
    client.send(Frame::Data { stream: 1, fin: true, chunk: Bytes::from_static(b"back") }).await;
    let mut back = Vec::new();
    while let Some(Frame::Data { stream: 1, fin, chunk }) = client.next().await {
        back.extend_from_slice(&chunk);
        if fin {
            break;
        }
    }
    assert_eq!(back, b"there and back");
    echo.await.unwrap();
    let closing = tokio::spawn(session.close());
    assert!(matches!(client.next().await, Some(Frame::GoAway { last: 1, status: 0 })));
    assert!(client.next().await.is_none());
    drop(client);
    closing.await.unwrap();
}

#[tokio::test]
async fn nothing_is_sent_first_and_an_end_is_seen() {
    let (mut client, mut session) = pair(100);
    let mut closed = session.closed();
    client.io.shutdown().await.unwrap();
    assert!(session.accept().await.is_none());
    closed.wait().await;
    closed.wait().await;
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn a_broken_protocol_ends_with_goaway_and_breaks_the_streams() {
    let (mut client, mut session) = pair(1000);
    let mut stream = client.open(&mut session, 1).await;
    client.io.write_all(&[0xff; 8]).await.unwrap();
    assert_eq!(client.next().await, Some(Frame::Reset { stream: 1, status: ResetStatus::Cancel as u32 }));
    assert_eq!(client.next().await, Some(Frame::GoAway { last: 1, status: 1 }));
    assert!(client.next().await.is_none());
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(stream.write(&[0; 1]).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(session.accept().await.is_none());
}

#[tokio::test]
async fn a_waiting_reader_and_writer_learn_of_a_reset() {
    let (mut client, mut session) = pair(100);
    let (mut read, mut write) = client.open(&mut session, 1).await.into_split();
    let reader = tokio::spawn(async move { read.read(&mut [0; 1]).await.map_err(|error| error.kind()) });
    let writer = tokio::spawn(async move {
        loop {
            if let Err(error) = write.write_all(&[0; 1000]).await {
                return error.kind();
            }
        }
    });
    client.send(Frame::Reset { stream: 1, status: 5 }).await;
    assert_eq!(reader.await.unwrap(), Err(io::ErrorKind::ConnectionReset));
    // The writer fills the connection's buffer first, while nobody reads.
    assert_eq!(writer.await.unwrap(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_dropped_incoming_is_refused() {
    let (mut client, mut session) = pair(1000);
    client.syn(1).await;
    drop(session.accept().await);
    assert_eq!(
        client.next().await,
        Some(Frame::Reset { stream: 1, status: ResetStatus::RefusedStream as u32 })
    );
    client.syn(3).await;
    session.accept().await.unwrap().refuse(ResetStatus::Cancel);
    assert_eq!(client.next().await, Some(Frame::Reset { stream: 3, status: ResetStatus::Cancel as u32 }));
}

#[tokio::test]
async fn dropped_halves_finish_and_discard() {
    let (mut client, mut session) = pair(1000);
    let (read, write) = client.open(&mut session, 1).await.into_split();
    drop(write);
    assert_eq!(client.next().await, Some(Frame::Data { stream: 1, fin: true, chunk: Bytes::new() }));
    drop(read);
    for _ in 0..RECEIVE_BUFFER_BYTES / 10_000 * 3 {
        client.send(Frame::Data { stream: 1, fin: false, chunk: vec![0; 10_000].into() }).await;
    }
    let mut other = client.open(&mut session, 3).await;
    client.send(Frame::Data { stream: 3, fin: true, chunk: Bytes::from_static(b"unharmed") }).await;
    let mut read = String::new();
    other.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "unharmed");
}

#[tokio::test]
async fn a_session_that_is_dropped_breaks_its_streams() {
    let (mut client, mut session) = pair(1000);
    let mut stream = client.open(&mut session, 1).await;
    let mut closed = session.closed();
    drop(session);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    closed.wait().await;
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn silence_ends_a_connection_with_a_limit_and_bytes_prolong_it() {
    let (ours, theirs) = duplex(1000);
    let limit = Duration::from_secs(2);
    let mut session = Session::start(theirs, Options { idle: Some(limit) });
    let mut client = Client::new(ours);
    let start = Instant::now();
    let mut last = start;
    while start.elapsed() < limit.mul_f32(1.5) {
        last = Instant::now();
        client.send(Frame::Ping(1)).await;
        assert_eq!(client.next().await, Some(Frame::Ping(1)));
    }
    assert!(session.accept().await.is_none());
    assert!(last.elapsed() >= limit);
    assert!(matches!(client.next().await, Some(Frame::GoAway { status: 0, .. })));
}

#[tokio::test]
async fn a_client_that_never_reads_holds_up_itself_only_and_costs_little() {
    let (mut client, mut session) = pair(1000);
    let mut stream = client.open(&mut session, 1).await;
    let writer = tokio::spawn(async move {
        let mut written = 0;
        while let Ok(count) = stream.write(&[0; 10_000]).await {
            written += count;
        }
        written
    });
    // It asks and does not listen: at some point nothing is taken from it any more.
    let asked = timeout(Duration::from_millis(300), async {
        loop {
            client.send(Frame::Ping(1)).await;
        }
    });
    assert!(asked.await.is_err());
    let load = session.shared.lock().load();
    assert!(load.answers < MAX_ANSWER_BYTES + 100 && load.data <= SEND_BUFFER_BYTES, "{load:?}");
    let start = Instant::now();
    session.close().await;
    assert!(start.elapsed() <= 2 * CLOSE_DEADLINE, "nor is it waited for");
    assert!(writer.await.unwrap() < 2 * SEND_BUFFER_BYTES + 20_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_at_once_over_a_socket() {
    const STREAMS: u32 = 50;
    const BYTES: usize = 300_000;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (client, server) =
        tokio::join!(tokio::net::TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let mut session = Session::start(server.unwrap().0, Options::default());
    let server = tokio::spawn(async move {
        while let Some(incoming) = session.accept().await {
            let (mut read, mut write) = incoming.accept().into_split();
            tokio::spawn(async move { tokio::io::copy(&mut read, &mut write).await });
        }
        session.close().await;
    });
    let mut client = Client::new(client.unwrap());
    let ids: Vec<_> = (0..STREAMS).map(|number| 2 * number + 1).collect();
    for id in &ids {
        client.syn(*id).await;
    }
    let (reading, writing) = client.io.split();
    let mut reader = Client::new(tokio::io::join(reading, tokio::io::sink()));
    let mut writer = Client::new(tokio::io::join(tokio::io::empty(), writing));
    let send = async {
        for round in 0..BYTES / 10_000 {
            for id in &ids {
                let fin = (round + 1) * 10_000 == BYTES;
                let chunk = vec![u8::try_from(*id).unwrap(); 10_000].into();
                writer.send(Frame::Data { stream: *id, fin, chunk }).await;
            }
        }
    };
    let receive = async {
        let (mut counts, mut finished) = (std::collections::HashMap::<u32, usize>::new(), 0);
        while finished < STREAMS {
            match reader.next().await.unwrap() {
                Frame::Data { stream, fin, chunk } => {
                    assert!(chunk.iter().all(|byte| u32::from(*byte) == stream));
                    *counts.entry(stream).or_default() += chunk.len();
                    finished += u32::from(fin);
                }
                Frame::SynReply { .. } => {}
                frame => panic!("{frame:?}"),
            }
        }
        counts
    };
    let ((), counts) = tokio::join!(send, receive);
    assert!(counts.len() == ids.len() && counts.values().all(|count| *count == BYTES), "{counts:?}");
    writer.send(Frame::GoAway { last: 0, status: 0 }).await;
    while reader.next().await.is_some() {}
    drop((reader, writer));
    drop(client.io);
    server.await.unwrap();
}
