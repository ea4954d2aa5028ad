//! The handshake, from the first byte to CONNACK (MQTT 5, 3.1 and 3.2): authentication, limits and the session.
//!
//! [`accept`] is called once per socket, by the connection task. Invariant: CONNECT is handled only when it is
//! complete, and packets after it only when a successful CONNACK was queued ([MQTT-3.1.4-6]).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use covey_codec::packet::{ConnAck, Connect, PublishProperties, Will};
use covey_codec::{DecodeError, MqttStr, Packet, ProtocolVersion, ReasonCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tracing::debug;
use uuid::Uuid;

use super::close::{Refusal, Rejected};
use super::guard::{Guard, Principal};
use super::keep_alive::KeepAlive;
use super::open::{Open, Owned, Parts};
use super::wire::{Input, Output, Progress, progress};
use super::{Context, Limits};
use crate::session::{ConnectRequest, Message, Sessions};

/// Longest client id in bytes; the standard requires at least 23 ([MQTT-3.1.3-5]).
const CLIENT_ID_MAX: usize = 1024;

/// Reads CONNECT, admits the client and queues CONNACK.
///
/// # Errors
/// Returns why the client is refused, with the CONNACK that is still to be written.
pub(super) async fn accept<IO, N, G>(
    io: &mut IO,
    peer: IpAddr,
    context: &Arc<Context<N, G>>,
) -> Result<Box<Open<N, G>>, Box<RefusedClient>>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    N: Sessions,
    G: Guard,
{
    let mut input = Input::new(context.limits.max_packet_size, context.limits.connect_size_max);
    let answer = async {
        let (connect, room) = first_packet(io, &mut input, context).await?;
        let version = connect.protocol_version;
        let output = Output::new(version, connect.properties.maximum_packet_size);
        tokio::select! {
            done = admit(connect, peer, context) => {
                // From here on the limits of an admitted client apply.
                drop(room);
                done.map(|admitted| (admitted, output))
            }
            () = context.drain.turn() => {
                Err(Refusal::answered(ReasonCode::ServerUnavailable, version, "node is stopping"))
            }
        }
    };
    match answer.await {
        Ok((admitted, output)) => open(admitted, input, output, context),
        Err(refusal) => {
            let version = refusal.answer.map_or(ProtocolVersion::V311, |(_, version)| version);
            Err(Box::new(refuse(refusal, Output::new(version, None))))
        }
    }
}

/// Queues the CONNACK of a refusal, if there is one.
fn refuse(refusal: Refusal, mut output: Output) -> RefusedClient {
    if let Some((code, _)) = refusal.answer {
        let packet = Packet::ConnAck(Box::new(ConnAck::new(false, code)));
        // If the version has no such return code, the socket is closed without CONNACK ([MQTT-3.2.2-6] of 3.1.1).
        if let Err(unsent) = output.push(&packet) {
            debug!(?unsent, "client refused without connack");
        }
    }
    RefusedClient { refusal, output }
}

/// A refused handshake.
pub(super) struct RefusedClient {
    /// Why the client is refused.
    pub(super) refusal: Refusal,
    /// Bytes that are still to be written.
    pub(super) output: Output,
}

/// An admitted client.
struct Admitted<N: Sessions, G: Guard> {
    /// State of its connection.
    parts: Parts<N, G>,
    /// The successful CONNACK.
    connack: ConnAck,
}

/// Queues the successful CONNACK and creates the connection.
fn open<N: Sessions, G: Guard>(
    admitted: Admitted<N, G>,
    mut input: Input,
    mut output: Output,
    context: &Arc<Context<N, G>>,
) -> Result<Box<Open<N, G>>, Box<RefusedClient>> {
    input.open();
    let Admitted { parts, connack } = admitted;
    let packet = Packet::ConnAck(Box::new(connack));
    if output.push(&packet).is_err() {
        let refusal = Refusal::silent(Rejected::BadProtocol, "connack exceeds the client's maximum packet size");
        return Err(Box::new(RefusedClient { refusal, output }));
    }
    context.observer.sent(&packet);
    context.observer.opened();
    Ok(Open::new(parts, input, output, Arc::clone(context)))
}

/// Reads CONNECT. Returns it with the bytes that it reserved from the budget, if it is larger than the first read.
async fn first_packet<IO, N, G>(
    io: &mut IO,
    input: &mut Input,
    context: &Context<N, G>,
) -> Result<(Box<Connect>, Option<OwnedSemaphorePermit>), Refusal>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut nothing = Output::new(ProtocolVersion::V311, None);
    let (mut room, mut has_room) = (None, true);
    let read = async {
        loop {
            if let Some((packet, _)) = input.decode().map_err(|error| unreadable(error, input))? {
                return Ok(packet);
            }
            if let Some(size) = input.wants() {
                has_room = false;
                room = Some(reserve(context, size).await?);
                has_room = true;
                input.expect(size);
            }
            match progress(io, input, &mut nothing, true).await? {
                Progress::Read(bytes) => context.observer.bytes_received(bytes),
                _ => return Err(Refusal::silent(Rejected::Lost, "closed before connect")),
            }
        }
    };
    let packet = tokio::select! {
        read = timeout(context.limits.connect_timeout, read) => match read {
            Ok(read) => read?,
            Err(_) if has_room => return Err(Refusal::silent(Rejected::Timeout, "no connect in time")),
            Err(_) => return Err(Refusal::silent(Rejected::Overload, "no room for a large connect in time")),
        },
        () = context.drain.turn() => return Err(Refusal::silent(Rejected::Unavailable, "node is stopping")),
    };
    context.observer.received(&packet);
    match packet {
        Packet::Connect(connect) => Ok((connect, room)),
        // The decoder accepts no other first packet.
        _ => Err(Refusal::silent(Rejected::BadProtocol, "first packet is not connect [MQTT-3.1.0-1]")),
    }
}

/// Waits until the budget of CONNECTs that are not admitted yet has room for `size` bytes.
async fn reserve<N, G>(context: &Context<N, G>, size: usize) -> Result<OwnedSemaphorePermit, Refusal> {
    // The semaphore is never closed. A size beyond the whole budget waits until the connect timeout.
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let room = Arc::clone(&context.connect_bytes).acquire_many_owned(size).await;
    room.map_err(|closed| Refusal::silent(Rejected::Overload, closed.to_string()))
}

/// Returns the refusal for a CONNECT that does not parse ([MQTT-3.1.4-1]).
fn unreadable(error: DecodeError, input: &Input) -> Refusal {
    match (error, input.version()) {
        // A client of another version understands the CONNACK of 3.1.1 ([MQTT-3.1.2-2] of 3.1.1).
        (DecodeError::UnsupportedVersion { .. }, _) => {
            Refusal::answered(ReasonCode::UnsupportedProtocolVersion, ProtocolVersion::V311, error.to_string())
        }
        (_, Some(ProtocolVersion::V5)) => Refusal::answered(error.reason(), ProtocolVersion::V5, error.to_string()),
        _ => Refusal::silent(Rejected::BadProtocol, error.to_string()),
    }
}

/// Checks limits and rules, authenticates the client and opens its session.
async fn admit<N: Sessions, G: Guard>(
    mut connect: Box<Connect>,
    peer: IpAddr,
    context: &Arc<Context<N, G>>,
) -> Result<Admitted<N, G>, Refusal> {
    let version = connect.protocol_version;
    let refused = |code, detail: &'static str| Refusal::answered(code, version, detail);
    if !context.sessions.is_serving() {
        return Err(refused(ReasonCode::ServerUnavailable, "node does not serve clients now"));
    }
    if connect.properties.authentication_method.is_some() {
        return Err(refused(ReasonCode::BadAuthenticationMethod, "extended authentication is not supported"));
    }
    let slot = Arc::clone(&context.slots)
        .try_acquire_owned()
        .map_err(|_| refused(ReasonCode::QuotaExceeded, "maximum number of connections is reached"))?;
    let (client_id, assigned) = client_id(&connect)?;
    tracing::Span::current().record("client_id", tracing::field::display(client_id.escape_debug()));
    // Subscribed before the rules are read, so that no change of them is missed.
    let revision = context.guard.revision();
    let username = connect.username.as_ref().map(MqttStr::as_str);
    let password = connect.password.take();
    let principal = context
        .guard
        .authenticate(username, password.as_deref(), &client_id, peer)
        .await
        .map_err(|code| refused(code, "not authenticated"))?;
    drop(password);
    let will = connect.will.take();
    if will.as_ref().is_some_and(|will| !principal.may_publish(&client_id, &will.topic, will.qos, will.retain)) {
        return Err(refused(ReasonCode::NotAuthorized, "will is not allowed"));
    }
    let expiry = session_expiry(&connect, assigned, &context.limits);
    let will_delay = will.as_ref().and_then(|will| will.properties.will_delay_interval).unwrap_or(0);
    let request = ConnectRequest {
        client_id: client_id.clone(),
        assigned,
        principal: principal.name().into(),
        version,
        clean_start: connect.clean_start,
        expiry,
        receive_maximum: connect.properties.receive_maximum.unwrap_or(u16::MAX),
        will: will.map(will_message),
        will_delay: Duration::from_secs(will_delay.into()),
    };
    let connected = context.sessions.connect(request).await.map_err(|code| refused(code, "session was not opened"))?;
    let present = connected.session_present && !connect.clean_start;
    let (connack, keep_alive) = connack(&connect, assigned.then_some(&client_id), present, expiry, &context.limits);
    let keep_alive = KeepAlive::new(keep_alive);
    let (session, events, filters) = (Owned::new(connected.session), connected.events, connected.filters);
    let parts = Parts { session, events, filters, slot, client_id, version, principal, revision, expiry, keep_alive };
    Ok(Admitted { parts, connack })
}

/// Returns the client id and whether the server assigned it ([MQTT-3.1.3-6], [MQTT-3.1.3-7]).
fn client_id(connect: &Connect) -> Result<(MqttStr, bool), Refusal> {
    let version = connect.protocol_version;
    let invalid = |detail| Refusal::answered(ReasonCode::ClientIdentifierNotValid, version, detail);
    if connect.client_id.len() > CLIENT_ID_MAX {
        return Err(invalid("client id is too long"));
    }
    if !connect.client_id.is_empty() {
        return Ok((connect.client_id.detached(), false));
    }
    if version == ProtocolVersion::V311 && !connect.clean_start {
        return Err(invalid("empty client id without clean session [MQTT-3.1.3-8]"));
    }
    let text = format!("covey-{}", Uuid::new_v4().simple());
    let assigned = MqttStr::try_from(text).map_err(|_| invalid("no client id could be assigned"))?;
    Ok((assigned, true))
}

/// Returns how long the session outlives its connection; zero for a transient session.
fn session_expiry(connect: &Connect, assigned: bool, limits: &Limits) -> Duration {
    let wanted = match (connect.protocol_version, connect.properties.session_expiry_interval) {
        (ProtocolVersion::V5, Some(seconds)) => Duration::from_secs(seconds.into()),
        (ProtocolVersion::V5, None) if !connect.clean_start && !assigned => limits.expiry_when_unset,
        (ProtocolVersion::V311, _) if !connect.clean_start => limits.expiry_max,
        _ => Duration::ZERO,
    };
    wanted.min(limits.expiry_max)
}

/// Returns the successful CONNACK and the effective keep alive in seconds; 0 is off.
fn connack(
    connect: &Connect,
    assigned: Option<&MqttStr>,
    session_present: bool,
    expiry: Duration,
    limits: &Limits,
) -> (ConnAck, u16) {
    let mut connack = ConnAck::new(session_present, ReasonCode::Success);
    if connect.protocol_version == ProtocolVersion::V311 {
        return (connack, connect.keep_alive);
    }
    let asked = connect.properties.session_expiry_interval;
    let granted = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
    let lowered = limits.keep_alive_max.filter(|max| connect.keep_alive == 0 || connect.keep_alive > *max);
    let properties = &mut connack.properties;
    properties.session_expiry_interval = (asked != Some(granted)).then_some(granted);
    properties.receive_maximum = Some(limits.receive_maximum);
    properties.maximum_packet_size = Some(limits.max_packet_size);
    properties.topic_alias_maximum = Some(limits.topic_alias_maximum);
    properties.assigned_client_identifier = assigned.cloned();
    properties.server_keep_alive = lowered;
    properties.wildcard_subscription_available = Some(true);
    properties.subscription_identifiers_available = Some(true);
    properties.shared_subscription_available = Some(false);
    (connack, lowered.unwrap_or(connect.keep_alive))
}

fn will_message(will: Will) -> Message {
    let properties = PublishProperties {
        payload_format_indicator: will.properties.payload_format_indicator,
        message_expiry_interval: will.properties.message_expiry_interval,
        topic_alias: None,
        response_topic: will.properties.response_topic,
        correlation_data: will.properties.correlation_data,
        subscription_identifiers: Vec::new(),
        content_type: will.properties.content_type,
        user_properties: will.properties.user_properties,
    };
    Message { topic: will.topic, payload: will.payload, qos: will.qos, retain: will.retain, properties }
}
