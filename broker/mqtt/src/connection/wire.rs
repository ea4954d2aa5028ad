//! The bytes of one connection: what came and is not yet decoded, what was encoded and is not yet sent.
//!
//! Generic over the stream only in the functions that touch it. Invariant: an idle connection holds no buffer; both
//! buffers are given back when they run empty.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use covey_codec::{DecodeError, Decoder, EncodeError, Packet, ProtocolVersion, encode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, timeout};

/// A read goes to the stack first, so that waiting for one takes no memory.
const STACK_READ: usize = 8 * 1024;
/// Room for what follows an incomplete packet.
const HEAP_READ: usize = 16 * 1024;
/// Above this many unsent bytes a connection takes no more work.
const HIGH_WATER: usize = 64 * 1024;
/// How long the last packet may take to leave, and the peer to close.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read of a client before its CONNECT has come, or was given room in the budget: most have less.
pub(super) const FIRST_READ: usize = 1024;
/// User properties of one message; each takes 64 bytes besides its text.
const USER_PROPERTIES_MAX: usize = 256;

/// The reading half.
#[derive(Debug)]
pub(super) struct Input {
    decoder: Decoder,
    bytes: BytesMut,
    /// Bytes that may be buffered.
    limit: usize,
}

impl Input {
    /// Takes a CONNECT up to `connect_size_max` bytes and further packets up to `max_packet_size`. Reads no more than
    /// [`FIRST_READ`] before [`Input::expect`] or [`Input::open`].
    pub(super) fn new(max_packet_size: u32, connect_size_max: usize) -> Self {
        let limit = usize::try_from(max_packet_size).unwrap_or(usize::MAX);
        let decoder = Decoder::new(limit).with_connect_limit(connect_size_max);
        let decoder = decoder.with_forwarded_user_properties(USER_PROPERTIES_MAX);
        Self { decoder, bytes: BytesMut::new(), limit: FIRST_READ }
    }

    /// Size in bytes of a first packet for which more has to be read than may be.
    pub(super) fn wants(&self) -> Option<usize> {
        Decoder::announced(&self.bytes).filter(|size| *size > self.limit)
    }

    /// Lets a first packet of this size be read.
    pub(super) fn expect(&mut self, size: usize) {
        self.limit = size;
        // At once: growing step by step would take up to twice the size.
        self.bytes.reserve(size.saturating_sub(self.bytes.len()));
    }

    /// The client is known: what it may send is bounded by its session.
    pub(super) fn open(&mut self) {
        self.limit = usize::MAX;
    }

    /// The version, as soon as the client said it.
    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        self.decoder.version()
    }

    /// The next packet that has come as a whole, and its size in bytes.
    pub(super) fn decode(&mut self) -> Result<Option<(Packet, usize)>, DecodeError> {
        let before = self.bytes.len();
        if before == 0 {
            return Ok(None);
        }
        let packet = self.decoder.decode(&mut self.bytes)?;
        let size = before - self.bytes.len();
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
        Ok(packet.map(|packet| (packet, size)))
    }

    /// Reads once; 0 is the end of the stream.
    pub(super) fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let room = self.limit.saturating_sub(self.bytes.len());
        if self.bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); STACK_READ];
            let mut read = ReadBuf::uninit(space.get_mut(..room.min(STACK_READ)).unwrap_or_default());
            ready!(Pin::new(io).poll_read(cx, &mut read))?;
            self.bytes.extend_from_slice(read.filled());
            return Poll::Ready(Ok(read.filled().len()));
        }
        let room = room.min(HEAP_READ);
        self.bytes.reserve(room);
        pin!(io.read_buf(&mut (&mut self.bytes).limit(room))).poll(cx)
    }
}

/// Why a packet was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    /// It exceeds the client's maximum packet size [MQTT-3.1.2-24].
    TooLarge,
    /// The version cannot say it.
    Unsayable,
}

impl From<EncodeError> for Unsent {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLong => Self::TooLarge,
            EncodeError::NotInVersion | EncodeError::PacketId => Self::Unsayable,
        }
    }
}

/// The writing half.
#[derive(Debug)]
pub(super) struct Output {
    bytes: BytesMut,
    version: ProtocolVersion,
    /// Maximum packet size of the client in bytes.
    limit: usize,
    /// The stream took everything and may still hold it back.
    unflushed: bool,
    /// Since when the stream has taken nothing of what waits.
    stalled: Option<Instant>,
    /// Bytes that the stream took since they were last asked for.
    taken: usize,
}

impl Output {
    /// Encodes for this version, nothing larger than `limit` bytes.
    pub(super) fn new(version: ProtocolVersion, limit: Option<u32>) -> Self {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        Self { bytes: BytesMut::new(), version, limit, unflushed: false, stalled: None, taken: 0 }
    }

    /// Queues one packet; nothing is queued on an error.
    pub(super) fn push(&mut self, packet: &Packet) -> Result<(), Unsent> {
        let begin = self.bytes.len();
        encode(packet, self.version, &mut self.bytes)?;
        if self.bytes.len() - begin > self.limit {
            self.bytes.truncate(begin);
            return Err(Unsent::TooLarge);
        }
        Ok(())
    }

    /// Whether more work may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < HIGH_WATER
    }

    /// Since when the stream has taken nothing of what waits.
    pub(super) fn stalled(&self) -> Option<Instant> {
        self.stalled
    }

    /// Bytes that the stream took since the last call.
    pub(super) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && !self.unflushed
    }

    /// Writes what the stream takes; ready when nothing waits any more.
    fn poll_write<IO: AsyncWrite + Unpin>(&mut self, io: &mut IO, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.bytes.is_empty() {
            match Pin::new(&mut *io).poll_write(cx, &self.bytes) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(taken)) => {
                    self.bytes.advance(taken);
                    self.taken += taken;
                    self.stalled = None;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        if self.bytes.capacity() > 0 {
            self.bytes = BytesMut::new();
        }
        if self.unflushed {
            match Pin::new(io).poll_flush(cx) {
                Poll::Ready(done) => {
                    done?;
                    self.unflushed = false;
                    self.stalled = None;
                }
                Poll::Pending => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// What the stream did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// This many bytes came.
    Read(usize),
    /// The peer sends nothing more.
    Ended,
    /// Everything that waited was taken.
    Written,
}

/// Waits until the stream took everything that waits, or gave bytes if `read` says that they are wanted.
pub(super) async fn progress<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut IO,
    input: &mut Input,
    output: &mut Output,
    read: bool,
) -> io::Result<Progress> {
    poll_fn(|cx| {
        if !output.is_idle()
            && let Poll::Ready(done) = output.poll_write(io, cx)
        {
            return Poll::Ready(done.map(|()| Progress::Written));
        }
        if !read {
            return Poll::Pending;
        }
        let count = ready!(input.poll_read(io, cx))?;
        Poll::Ready(Ok(if count == 0 { Progress::Ended } else { Progress::Read(count) }))
    })
    .await
}

/// Offers what waits to the stream, without waiting for it.
pub(super) async fn offer<IO: AsyncWrite + Unpin>(io: &mut IO, output: &mut Output) -> io::Result<()> {
    if output.is_idle() {
        return Ok(());
    }
    poll_fn(|cx| match output.poll_write(io, cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        _ => Poll::Ready(Ok(())),
    })
    .await
}

/// Reads once if bytes are there, without waiting.
pub(super) async fn peek_read<IO: AsyncRead + Unpin>(io: &mut IO, input: &mut Input) -> io::Result<usize> {
    poll_fn(|cx| match input.poll_read(io, cx) {
        Poll::Ready(read) => Poll::Ready(read),
        Poll::Pending => Poll::Ready(Ok(0)),
    })
    .await
}

/// Sends what waits, closes the writing side and takes what still comes for a moment: a socket closed over unread bytes
/// would reset the connection, and the peer would lose the last packet.
pub(super) async fn say_goodbye<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, mut output: Output) {
    let farewell = async {
        poll_fn(|cx| output.poll_write(&mut io, cx)).await?;
        io.shutdown().await?;
        let mut rest = [0; 512];
        while io.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Whatever goes wrong now, the connection is over.
    drop(timeout(LINGER, farewell).await);
}
