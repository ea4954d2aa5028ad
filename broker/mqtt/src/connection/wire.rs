//! The buffers of one connection: bytes read but not decoded, and bytes encoded but not written.
//!
//! Only the functions that do I/O are generic over the stream. Invariant: an idle connection holds no buffer; both
//! buffers are freed when they become empty.

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

/// Bytes of a read into an empty buffer. They go to the stack first, so that waiting for a read allocates nothing.
const STACK_READ: usize = 8 * 1024;
/// Bytes of a read after an incomplete packet.
const HEAP_READ: usize = 16 * 1024;
/// Unsent bytes above which a connection handles no more events or packets.
const HIGH_WATER: usize = 64 * 1024;
/// Time to send the last packet and for the peer to close.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are read before CONNECT is complete or has room in the budget. Most CONNECTs are smaller.
pub(super) const FIRST_READ: usize = 1024;
/// User properties of one message; each takes 64 bytes besides its text.
const USER_PROPERTIES_MAX: usize = 256;

/// The reading half.
#[derive(Debug)]
pub(super) struct Input {
    decoder: Decoder,
    /// Bytes that are not decoded.
    bytes: BytesMut,
    /// Most bytes that may be buffered.
    limit: usize,
}

impl Input {
    /// Creates an input for a CONNECT of up to `connect_size_max` bytes and further packets of up to `max_packet_size`.
    /// Reads at most [`FIRST_READ`] bytes until [`Input::expect`] or [`Input::open`] is called.
    pub(super) fn new(max_packet_size: u32, connect_size_max: usize) -> Self {
        let limit = usize::try_from(max_packet_size).unwrap_or(usize::MAX);
        let decoder = Decoder::new(limit).with_connect_limit(connect_size_max);
        let decoder = decoder.with_forwarded_user_properties(USER_PROPERTIES_MAX);
        Self { decoder, bytes: BytesMut::new(), limit: FIRST_READ }
    }

    /// Returns the size in bytes of the first packet if it exceeds the bytes that may be buffered.
    pub(super) fn wants(&self) -> Option<usize> {
        Decoder::announced(&self.bytes).filter(|size| *size > self.limit)
    }

    /// Allows a first packet of `size` bytes.
    pub(super) fn expect(&mut self, size: usize) {
        self.limit = size;
        // Reserved at once: growing step by step would take up to twice the size.
        self.bytes.reserve(size.saturating_sub(self.bytes.len()));
    }

    /// Removes the bound of the buffer. From now on the decoder and the reply queues bound the client.
    pub(super) fn open(&mut self) {
        self.limit = usize::MAX;
    }

    /// Returns the protocol version once CONNECT has been decoded that far.
    pub(super) fn version(&self) -> Option<ProtocolVersion> {
        self.decoder.version()
    }

    /// Decodes the next packet and returns it with its size in bytes; `None` if it is incomplete.
    ///
    /// # Errors
    /// Fails if the packet is malformed, violates the protocol or is too large.
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

    /// Reads once and returns the number of bytes; 0 means the end of the stream.
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

/// Reason why a packet was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsent {
    /// It exceeds the client's maximum packet size [MQTT-3.1.2-24].
    TooLarge,
    /// The client's version cannot encode it.
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
    /// Encoded bytes that are not written.
    bytes: BytesMut,
    version: ProtocolVersion,
    /// Maximum packet size of the client in bytes.
    limit: usize,
    /// Whether bytes were written and not flushed.
    unflushed: bool,
    /// Time since which the stream accepts no bytes although some are waiting.
    stalled: Option<Instant>,
    /// Bytes written since the last call of [`Output::take_sent`].
    taken: usize,
}

impl Output {
    /// Creates an output that encodes for `version` and queues no packet larger than `limit` bytes.
    pub(super) fn new(version: ProtocolVersion, limit: Option<u32>) -> Self {
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        Self { bytes: BytesMut::new(), version, limit, unflushed: false, stalled: None, taken: 0 }
    }

    /// Queues one packet.
    ///
    /// # Errors
    /// Fails if the packet is too large for the client or cannot be encoded. Nothing is queued then.
    pub(super) fn push(&mut self, packet: &Packet) -> Result<(), Unsent> {
        let begin = self.bytes.len();
        encode(packet, self.version, &mut self.bytes)?;
        if self.bytes.len() - begin > self.limit {
            self.bytes.truncate(begin);
            return Err(Unsent::TooLarge);
        }
        Ok(())
    }

    /// Returns whether further packets may be queued.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < HIGH_WATER
    }

    /// Returns the time since which the stream accepts no bytes although some are waiting.
    pub(super) fn stalled(&self) -> Option<Instant> {
        self.stalled
    }

    /// Returns the bytes written since the last call.
    pub(super) fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && !self.unflushed
    }

    /// Writes as much as the stream accepts. Ready when everything is written and flushed.
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

/// Progress of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// This many bytes were read.
    Read(usize),
    /// The peer closed its writing side.
    Ended,
    /// Everything was written.
    Written,
}

/// Waits until everything is written or, if `read` is set, until bytes were read.
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

/// Writes as much as the stream accepts without waiting.
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

/// Reads once without waiting and returns the number of bytes; 0 if there are none.
pub(super) async fn peek_read<IO: AsyncRead + Unpin>(io: &mut IO, input: &mut Input) -> io::Result<usize> {
    poll_fn(|cx| match input.poll_read(io, cx) {
        Poll::Ready(read) => Poll::Ready(read),
        Poll::Pending => Poll::Ready(Ok(0)),
    })
    .await
}

/// Writes the remaining bytes, closes the writing side and reads until the peer closes, for at most [`LINGER`]. Closing
/// a socket with unread bytes would reset the connection, and the peer would lose the last packet.
pub(super) async fn say_goodbye<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, mut output: Output) {
    let farewell = async {
        poll_fn(|cx| output.poll_write(&mut io, cx)).await?;
        io.shutdown().await?;
        let mut rest = [0; 512];
        while io.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    // Errors no longer matter: the connection has ended.
    drop(timeout(LINGER, farewell).await);
}
