//! Strategies that generate valid packets.

use bytes::Bytes;
use covey_codec::packet::*;
use covey_codec::{MqttStr, ReasonCode};
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

use crate::corpus::On;

/// A packet and the position where it is allowed.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) version: ProtocolVersion,
    pub(crate) on: On,
    pub(crate) packet: Packet,
}

/// Sender of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Server,
}

pub(crate) fn version() -> impl Strategy<Value = ProtocolVersion> {
    select(vec![ProtocolVersion::V311, ProtocolVersion::V5])
}

/// Generates any packet of either side in either version.
pub(crate) fn sample() -> impl Strategy<Value = Sample> {
    (version(), select(vec![On::New, On::Client, On::Server])).prop_flat_map(|(version, on)| {
        let packet = match on {
            On::New => connect(version).prop_map(|connect| Packet::Connect(Box::new(connect))).boxed(),
            On::Client => from_client().boxed(),
            On::Server => from_server(version).boxed(),
        };
        packet
            .prop_map(move |packet| Sample {
                version,
                on,
                packet: if version == ProtocolVersion::V311 { without_v5(packet) } else { packet },
            })
            .prop_filter("not in 3.1.1", move |sample| {
                version == ProtocolVersion::V5
                    || !matches!((on, &sample.packet), (_, Packet::Auth(_)) | (On::Server, Packet::Disconnect(_)))
            })
    })
}

fn from_client() -> Union<BoxedStrategy<Packet>> {
    let mut all = both(From::Client);
    all.extend([
        subscribe().prop_map(Packet::Subscribe).boxed(),
        unsubscribe().prop_map(Packet::Unsubscribe).boxed(),
        Just(Packet::PingReq).boxed(),
    ]);
    Union::new(all)
}

fn from_server(version: ProtocolVersion) -> Union<BoxedStrategy<Packet>> {
    let mut all = both(From::Server);
    all.extend([
        connack(version).prop_map(|ack| Packet::ConnAck(Box::new(ack))).boxed(),
        suback(version).prop_map(Packet::SubAck).boxed(),
        unsuback().prop_map(Packet::UnsubAck).boxed(),
        Just(Packet::PingResp).boxed(),
    ]);
    Union::new(all)
}

fn both(from: From) -> Vec<BoxedStrategy<Packet>> {
    let mut answers = vec![0x00, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
    if from == From::Server {
        answers.push(0x10);
    }
    vec![
        publish(from).prop_map(Packet::Publish).boxed(),
        ack(&answers).prop_map(Packet::PubAck).boxed(),
        ack(&answers).prop_map(Packet::PubRec).boxed(),
        ack(&[0x00, 0x92]).prop_map(Packet::PubRel).boxed(),
        ack(&[0x00, 0x92]).prop_map(Packet::PubComp).boxed(),
        disconnect(from).prop_map(Packet::Disconnect).boxed(),
        auth(from).prop_map(Packet::Auth).boxed(),
    ]
}

/// Reduces a packet to what MQTT 3.1.1 can express.
fn without_v5(mut packet: Packet) -> Packet {
    match &mut packet {
        Packet::Publish(publish) => {
            publish.properties = PublishProperties::default();
            if publish.topic.is_empty() {
                publish.topic = MqttStr::new("t").unwrap();
            }
        }
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubRel(ack) | Packet::PubComp(ack) => {
            *ack = Ack::success(ack.packet_id);
        }
        Packet::Subscribe(subscribe) => {
            subscribe.properties = SubscribeProperties::default();
            for subscription in &mut subscribe.subscriptions {
                subscription.options =
                    SubscriptionOptions { qos: subscription.options.qos, ..SubscriptionOptions::default() };
            }
        }
        Packet::SubAck(ack) => ack.properties = AckProperties::default(),
        Packet::Unsubscribe(unsubscribe) => unsubscribe.properties = UnsubscribeProperties::default(),
        Packet::UnsubAck(ack) => *ack = UnsubAck { reasons: Vec::new(), properties: AckProperties::default(), ..*ack },
        Packet::Disconnect(disconnect) => *disconnect = Disconnect::new(ReasonCode::NORMAL_DISCONNECTION),
        _ => {}
    }
    packet
}

fn text() -> impl Strategy<Value = MqttStr> {
    "[a-z]{0,6}|\\PC{0,12}|[\u{1}-\u{10ffff}]{0,3}".prop_map(|text| MqttStr::try_from(text).unwrap())
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn topic() -> impl Strategy<Value = MqttStr> {
    "[a-zäß部/$ ]{1,16}".prop_map(|name| MqttStr::try_from(name).unwrap())
}

fn filter() -> impl Strategy<Value = MqttStr> {
    "([a-z部]{0,4}/|\\+/){0,3}([a-z]{1,4}|\\+|#)".prop_map(|name| MqttStr::try_from(name).unwrap())
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_map(|id| PacketId::new(id).unwrap())
}

fn user() -> impl Strategy<Value = UserProperties> {
    prop::collection::vec((text(), text()), 0..3)
}

fn reason(codes: &[u8]) -> impl Strategy<Value = ReasonCode> + use<> {
    select(codes.iter().map(|code| ReasonCode::try_from(*code).unwrap()).collect::<Vec<_>>())
}

fn reasons(codes: &[u8]) -> impl Strategy<Value = Vec<ReasonCode>> + use<> {
    prop::collection::vec(reason(codes), 1..5)
}

fn qos() -> impl Strategy<Value = QoS> {
    select(vec![QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce])
}

fn payload_format() -> impl Strategy<Value = PayloadFormat> {
    select(vec![PayloadFormat::Bytes, PayloadFormat::Utf8])
}

fn subscription_identifier() -> impl Strategy<Value = u32> {
    prop_oneof![1..=300_u32, 1..=268_435_455_u32]
}

fn ack_properties() -> impl Strategy<Value = AckProperties> {
    (of(text()), user()).prop_map(|(reason_string, user_properties)| AckProperties { reason_string, user_properties })
}

fn ack(codes: &[u8]) -> impl Strategy<Value = Ack> + use<> {
    (packet_id(), reason(codes), ack_properties()).prop_map(|(packet_id, reason, properties)| Ack {
        packet_id,
        reason,
        properties,
    })
}

pub(crate) fn publish(from: From) -> impl Strategy<Value = Publish> {
    let identifiers = if from == From::Server { 0..3 } else { 0..1 };
    let properties = (
        of(payload_format()),
        of(any::<u32>()),
        of(1..=u16::MAX),
        of(topic()),
        of(bytes()),
        prop::collection::vec(subscription_identifier(), identifiers),
        of(text()),
        user(),
    );
    (any::<bool>(), qos(), any::<bool>(), topic(), any::<bool>(), packet_id(), properties, bytes()).prop_map(
        |(dup, qos, retain, topic, named, packet_id, properties, payload)| {
            let above_0 = qos != QoS::AtMostOnce;
            let properties = PublishProperties {
                payload_format_indicator: properties.0,
                message_expiry_interval: properties.1,
                topic_alias: properties.2,
                response_topic: properties.3,
                correlation_data: properties.4,
                subscription_identifiers: properties.5,
                content_type: properties.6,
                user_properties: properties.7,
            };
            let topic = if named || properties.topic_alias.is_none() { topic } else { MqttStr::default() };
            Publish {
                dup: dup && above_0,
                qos,
                retain,
                topic,
                packet_id: above_0.then_some(packet_id),
                properties,
                payload,
            }
        },
    )
}

fn connect(version: ProtocolVersion) -> impl Strategy<Value = Connect> {
    let v5 = version == ProtocolVersion::V5;
    let properties = if v5 { connect_properties().boxed() } else { Just(ConnectProperties::default()).boxed() };
    (any::<bool>(), any::<u16>(), text(), of(will(version)), of(text()), of(bytes()), properties).prop_map(
        move |(clean_start, keep_alive, client_id, will, username, password, properties)| Connect {
            protocol_version: version,
            clean_start,
            keep_alive,
            client_id,
            will,
            password: password.filter(|_| v5 || username.is_some()),
            username,
            properties,
        },
    )
}

fn connect_properties() -> impl Strategy<Value = ConnectProperties> {
    (
        of(any::<u32>()),
        of(1..=u16::MAX),
        of(1..=u32::MAX),
        of(any::<u16>()),
        of(any::<bool>()),
        of(any::<bool>()),
        user(),
        of((text(), of(bytes()))),
    )
        .prop_map(|found| {
            let (authentication_method, authentication_data) = found.7.unzip();
            ConnectProperties {
                session_expiry_interval: found.0,
                receive_maximum: found.1,
                maximum_packet_size: found.2,
                topic_alias_maximum: found.3,
                request_response_information: found.4,
                request_problem_information: found.5,
                user_properties: found.6,
                authentication_method,
                authentication_data: authentication_data.flatten(),
            }
        })
}

fn will(version: ProtocolVersion) -> impl Strategy<Value = Will> {
    let properties =
        (of(any::<u32>()), of(payload_format()), of(any::<u32>()), of(text()), of(topic()), of(bytes()), user())
            .prop_map(move |found| match version {
                ProtocolVersion::V311 => WillProperties::default(),
                ProtocolVersion::V5 => WillProperties {
                    will_delay_interval: found.0,
                    payload_format_indicator: found.1,
                    message_expiry_interval: found.2,
                    content_type: found.3,
                    response_topic: found.4,
                    correlation_data: found.5,
                    user_properties: found.6,
                },
            });
    (topic(), bytes(), qos(), any::<bool>(), properties).prop_map(|(topic, payload, qos, retain, properties)| Will {
        topic,
        payload,
        qos,
        retain,
        properties,
    })
}

fn connack(version: ProtocolVersion) -> BoxedStrategy<ConnAck> {
    if version == ProtocolVersion::V311 {
        return (any::<bool>(), reason(&[0x00, 0x84, 0x85, 0x86, 0x87, 0x88]))
            .prop_map(|(present, reason)| ConnAck::new(present && !reason.is_error(), reason))
            .boxed();
    }
    let codes = [
        0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95, 0x97, 0x99, 0x9a,
        0x9b, 0x9c, 0x9d, 0x9f,
    ];
    (any::<bool>(), reason(&codes), connack_properties())
        .prop_map(|(present, reason, properties)| ConnAck {
            session_present: present && !reason.is_error(),
            reason,
            properties,
        })
        .boxed()
}

fn connack_properties() -> impl Strategy<Value = ConnAckProperties> {
    let numbers = (
        of(any::<u32>()),
        of(1..=u16::MAX),
        of(select(vec![QoS::AtMostOnce, QoS::AtLeastOnce])),
        of(1..=u32::MAX),
        of(any::<u16>()),
        of(any::<u16>()),
    );
    let flags = (of(any::<bool>()), of(any::<bool>()), of(any::<bool>()), of(any::<bool>()));
    let texts = (of(text()), of(text()), of(text()), of(text()), of(text()), of(bytes()), user());
    (numbers, flags, texts).prop_map(|(numbers, flags, texts)| ConnAckProperties {
        session_expiry_interval: numbers.0,
        receive_maximum: numbers.1,
        maximum_qos: numbers.2,
        retain_available: flags.0,
        maximum_packet_size: numbers.3,
        assigned_client_identifier: texts.0,
        topic_alias_maximum: numbers.4,
        reason_string: texts.1,
        user_properties: texts.6,
        wildcard_subscription_available: flags.1,
        subscription_identifiers_available: flags.2,
        shared_subscription_available: flags.3,
        server_keep_alive: numbers.5,
        response_information: texts.2,
        server_reference: texts.3,
        authentication_method: texts.4,
        authentication_data: texts.5,
    })
}

fn subscription() -> impl Strategy<Value = Subscription> {
    let handling = select(vec![RetainHandling::Send, RetainHandling::SendIfNew, RetainHandling::DoNotSend]);
    (filter(), any::<bool>(), qos(), any::<bool>(), any::<bool>(), handling).prop_map(
        |(filter, shared, qos, no_local, retain_as_published, retain_handling)| Subscription {
            filter: if shared { MqttStr::try_from(format!("$share/g/{filter}")).unwrap() } else { filter },
            options: SubscriptionOptions { qos, no_local: no_local && !shared, retain_as_published, retain_handling },
        },
    )
}

fn subscribe() -> impl Strategy<Value = Subscribe> {
    let properties = (of(subscription_identifier()), user()).prop_map(|(subscription_identifier, user_properties)| {
        SubscribeProperties { subscription_identifier, user_properties }
    });
    (packet_id(), properties, prop::collection::vec(subscription(), 1..4))
        .prop_map(|(packet_id, properties, subscriptions)| Subscribe { packet_id, properties, subscriptions })
}

fn unsubscribe() -> impl Strategy<Value = Unsubscribe> {
    (packet_id(), user(), prop::collection::vec(filter(), 1..4)).prop_map(|(packet_id, user_properties, filters)| {
        Unsubscribe { packet_id, properties: UnsubscribeProperties { user_properties }, filters }
    })
}

fn suback(version: ProtocolVersion) -> impl Strategy<Value = SubAck> {
    let codes: &[u8] = match version {
        ProtocolVersion::V311 => &[0x00, 0x01, 0x02, 0x80],
        ProtocolVersion::V5 => &[0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2],
    };
    (packet_id(), ack_properties(), reasons(codes)).prop_map(|(packet_id, properties, reasons)| SubAck {
        packet_id,
        properties,
        reasons,
    })
}

fn unsuback() -> impl Strategy<Value = UnsubAck> {
    (packet_id(), ack_properties(), reasons(&[0x00, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91]))
        .prop_map(|(packet_id, properties, reasons)| UnsubAck { packet_id, properties, reasons })
}

fn disconnect(from: From) -> impl Strategy<Value = Disconnect> {
    let mut codes = vec![0x00, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
    codes.extend_from_slice(match from {
        From::Client => &[0x04],
        From::Server => &[0x87, 0x89, 0x8b, 0x8d, 0x8e, 0x8f, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2],
    });
    (reason(&codes), of(any::<u32>()), of(text()), user(), of(text())).prop_map(
        move |(reason, expiry, reason_string, user_properties, reference)| Disconnect {
            reason,
            properties: DisconnectProperties {
                session_expiry_interval: expiry.filter(|_| from == From::Client),
                reason_string,
                user_properties,
                server_reference: reference.filter(|_| from == From::Server),
            },
        },
    )
}

fn auth(from: From) -> impl Strategy<Value = Auth> {
    let codes: &[u8] = if from == From::Client { &[0x18, 0x19] } else { &[0x00, 0x18] };
    (reason(codes), text(), of(bytes()), of(text()), user()).prop_map(
        |(reason, method, authentication_data, reason_string, user_properties)| Auth {
            reason,
            properties: AuthProperties {
                authentication_method: Some(method),
                authentication_data,
                reason_string,
                user_properties,
            },
        },
    )
}
