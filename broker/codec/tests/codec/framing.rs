//! Framing of packets, and refusals before a packet is complete.

use bytes::BytesMut;
use covey_codec::packet::{Ack, Connect, Disconnect, Publish};
use covey_codec::{
    DecodeError, Decoder, EncodeError, MqttStr, Packet, PacketId, ProtocolVersion, QoS, ReasonCode, encode,
};

use crate::corpus::{On, decoder};

#[test]
fn packets_that_arrive_together_come_out_one_by_one() {
    let packets = [
        Packet::PingReq,
        Packet::PubAck(Ack::success(PacketId::new(7).unwrap())),
        Packet::Publish(Publish { topic: MqttStr::new("a/b").unwrap(), payload: "x".into(), ..Publish::default() }),
        Packet::Disconnect(Disconnect::new(ReasonCode::NORMAL_DISCONNECTION)),
    ];
    for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
        let mut bytes = BytesMut::new();
        for packet in &packets {
            let before = bytes.len();
            encode(packet, version, &mut bytes).unwrap();
            assert_eq!(bytes.len() - before, packet.encoded_len(version).unwrap());
        }
        let mut decoder = decoder(version, On::Client);
        for packet in &packets {
            assert_eq!(decoder.decode(&mut bytes).unwrap().as_ref(), Some(packet));
        }
        assert_eq!(decoder.decode(&mut bytes), Ok(None));
    }
}

#[test]
fn packet_above_the_limit_is_refused_when_its_length_is_known() {
    let mut decoder = Decoder::client(ProtocolVersion::V5, 100);
    let mut bytes = BytesMut::from(&[0x30, 0x63][..]);
    assert_eq!(decoder.decode(&mut bytes), Err(DecodeError::TooLarge { size: 101, limit: 100 }));
    let mut decoder = Decoder::client(ProtocolVersion::V5, 101);
    assert_eq!(decoder.decode(&mut bytes), Ok(None));
}

#[test]
fn wrong_packet_type_is_refused_by_its_first_byte() {
    let mut decoder = Decoder::new(100);
    let error = decoder.decode(&mut BytesMut::from("GET / HTTP/1.1\r\n")).unwrap_err();
    assert_eq!(error.clause(), "MQTT-3.1.0-1");
    assert_eq!(decoder.version(), None);
}

#[test]
fn version_is_known_even_where_the_connect_is_refused_behind_it() {
    let mut decoder = Decoder::new(100);
    let mut bytes = BytesMut::from(&b"\x10\x0e\x00\x04MQTT\x05\x03\x00\x3c\x00\x00\x01c"[..]);
    assert_eq!(decoder.decode(&mut bytes).unwrap_err().reason(), ReasonCode::MalformedPacket);
    assert_eq!(decoder.version(), Some(ProtocolVersion::V5));
}

#[test]
fn what_the_wire_cannot_say_is_not_written() {
    let mut out = BytesMut::from("before");
    let version = ProtocolVersion::V311;
    let topic = MqttStr::new("a").unwrap();
    let id = PacketId::new(1);
    let mut connect = Connect::new(version, topic.clone());
    connect.password = Some(vec![0; 65_536].into());
    for (packet, error) in [
        (Packet::Connect(Box::new(connect.clone())), EncodeError::TooLong),
        (
            Packet::Publish(Publish { topic: topic.clone(), qos: QoS::AtLeastOnce, ..Publish::default() }),
            EncodeError::PacketId,
        ),
        (Packet::Publish(Publish { topic: topic.clone(), packet_id: id, ..Publish::default() }), EncodeError::PacketId),
        (
            Packet::Publish(Publish { topic, payload: vec![0; 268_435_453].into(), ..Publish::default() }),
            EncodeError::TooLong,
        ),
    ] {
        assert_eq!(encode(&packet, version, &mut out), Err(error));
        assert_eq!(packet.encoded_len(version), Err(error));
    }
    connect.password = None;
    let other = encode(&Packet::Connect(Box::new(connect)), ProtocolVersion::V5, &mut out);
    assert_eq!(other, Err(EncodeError::NotInVersion));
    assert_eq!(&out[..], b"before");
}

#[test]
fn strings_are_as_long_as_their_length_can_say() {
    assert!(MqttStr::new(&"x".repeat(65_535)).is_ok());
    assert!(MqttStr::new(&"x".repeat(65_536)).is_err());
    assert!(MqttStr::new("a\0").is_err());
}

#[test]
fn text_and_payload_share_the_read_buffer() {
    let mut bytes = BytesMut::from(&b"\x30\x09\x00\x03a/bdata"[..]);
    let inside = bytes.as_ptr_range();
    let packet = decoder(ProtocolVersion::V311, On::Client).decode(&mut bytes).unwrap().unwrap();
    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
    assert!(inside.contains(&publish.topic.as_bytes().as_ptr()));
    assert!(inside.contains(&publish.payload.as_ptr()));
    assert!(!inside.contains(&publish.topic.detached().as_bytes().as_ptr()));
}

/// Returns a CONNECT of client id `c` with this many empty user properties.
fn connect_with(version: ProtocolVersion, user_properties: usize) -> BytesMut {
    let mut connect = Connect::new(version, MqttStr::new("c").unwrap());
    connect.properties.user_properties = vec![(MqttStr::default(), MqttStr::default()); user_properties];
    let mut bytes = BytesMut::new();
    encode(&Packet::Connect(Box::new(connect)), version, &mut bytes).unwrap();
    bytes
}

#[test]
fn connect_above_its_own_limit_is_refused_when_its_version_is_known() {
    let mut whole = connect_with(ProtocolVersion::V5, 40);
    let mut decoder = Decoder::new(1000).with_connect_limit(100);
    for length in 0..10 {
        assert_eq!(decoder.decode(&mut BytesMut::from(&whole[..length])), Ok(None), "{length} bytes");
    }
    let size = whole.len();
    let refused = Err(DecodeError::TooLarge { size, limit: 100 });
    assert_eq!(decoder.decode(&mut BytesMut::from(&whole[..10])), refused);
    assert_eq!(decoder.version(), Some(ProtocolVersion::V5));
    assert_eq!(Decoder::announced(&whole[..3]), Some(size));
    let mut decoder = Decoder::new(1000).with_connect_limit(size);
    assert!(decoder.decode(&mut whole).unwrap().is_some());
    // Other packets have their own limit.
    let mut publish = BytesMut::from(&[0x30, 0xc8, 0x01][..]);
    assert_eq!(decoder.decode(&mut publish), Ok(None));
}

#[test]
fn only_forwarded_user_properties_are_kept_and_they_are_counted() {
    let mut decoder = Decoder::new(10_000).with_forwarded_user_properties(2);
    let packet = decoder.decode(&mut connect_with(ProtocolVersion::V5, 100)).unwrap().unwrap();
    let Packet::Connect(connect) = packet else { panic!("{packet:?}") };
    assert_eq!(connect.properties.user_properties, []);
    let publish = |count: usize| {
        let mut publish = Publish { topic: MqttStr::new("a").unwrap(), ..Publish::default() };
        publish.properties.user_properties = vec![(MqttStr::default(), MqttStr::default()); count];
        let mut bytes = BytesMut::new();
        encode(&Packet::Publish(publish), ProtocolVersion::V5, &mut bytes).unwrap();
        bytes
    };
    let packet = decoder.decode(&mut publish(2)).unwrap().unwrap();
    let Packet::Publish(publish_of_two) = packet else { panic!("{packet:?}") };
    assert_eq!(publish_of_two.properties.user_properties.len(), 2);
    // A property that is not kept is still checked: this value contains U+0000.
    let mut subscribe = BytesMut::from(&b"\x82\x0d\x00\x01\x06\x26\x00\x00\x00\x01\x00\x00\x01a\x00"[..]);
    let mut checking = Decoder::new(10_000).with_forwarded_user_properties(2);
    checking.decode(&mut connect_with(ProtocolVersion::V5, 0)).unwrap();
    assert_eq!(checking.decode(&mut subscribe).unwrap_err().clause(), "MQTT-1.5.4-2");
    let error = decoder.decode(&mut publish(3)).unwrap_err();
    assert_eq!(error, DecodeError::TooManyUserProperties { max: 2 });
    assert_eq!(error.reason(), ReasonCode::QuotaExceeded);
}
