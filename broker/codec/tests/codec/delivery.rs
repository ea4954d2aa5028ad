//! A PUBLISH that is encoded once for many receivers equals one that is encoded for each.

use bytes::BytesMut;
use covey_codec::packet::Publish;
use covey_codec::{Delivery, EncodeError, EncodedPublish, Packet, PacketId, ProtocolVersion, QoS, encode};
use proptest::prelude::*;

use crate::strategy;

fn as_received(message: &Publish, delivery: &Delivery<'_>) -> Packet {
    let mut publish = message.clone();
    publish.dup = delivery.dup;
    publish.qos = delivery.qos;
    publish.retain = delivery.retain;
    publish.packet_id = delivery.packet_id;
    publish.properties.message_expiry_interval = delivery.message_expiry_interval;
    publish.properties.subscription_identifiers = delivery.subscription_identifiers.to_vec();
    publish.properties.topic_alias = None;
    Packet::Publish(publish)
}

proptest! {
    #[test]
    fn shared_publish_equals_one_encoded_for_each_receiver(
        message in strategy::publish(strategy::From::Client),
        receivers in prop::collection::vec(strategy::publish(strategy::From::Server), 1..4),
        version in strategy::version(),
    ) {
        let shared = EncodedPublish::new(&message, version).unwrap();
        for receiver in &receivers {
            let delivery = Delivery {
                dup: receiver.dup,
                qos: receiver.qos,
                retain: receiver.retain,
                packet_id: receiver.packet_id,
                message_expiry_interval: receiver.properties.message_expiry_interval,
                subscription_identifiers: &receiver.properties.subscription_identifiers,
            };
            let mut expected = BytesMut::new();
            encode(&as_received(&message, &delivery), version, &mut expected).unwrap();
            let mut out = BytesMut::new();
            shared.write(&delivery, &mut out).unwrap();
            let mut head = BytesMut::new();
            shared.write_head(&delivery, &mut head).unwrap();
            head.extend_from_slice(shared.payload());
            prop_assert_eq!(&out, &expected);
            prop_assert_eq!(&head, &expected);
            prop_assert_eq!(shared.encoded_len(&delivery), Ok(expected.len()));
        }
    }
}

#[test]
fn packet_id_and_qos_have_to_agree() {
    let shared = EncodedPublish::new(&Publish::default(), ProtocolVersion::V5).unwrap();
    let mut out = BytesMut::new();
    let without = Delivery { qos: QoS::AtLeastOnce, ..Delivery::default() };
    let with = Delivery { packet_id: PacketId::new(1), ..Delivery::default() };
    assert_eq!(shared.write(&without, &mut out), Err(EncodeError::PacketId));
    assert_eq!(shared.write(&with, &mut out), Err(EncodeError::PacketId));
    assert!(out.is_empty());
}
