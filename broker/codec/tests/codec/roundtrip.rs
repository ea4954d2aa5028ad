//! Round trips of every packet of both versions and both directions.

use bytes::BytesMut;
use covey_codec::encode;
use proptest::prelude::*;

use crate::corpus::read;
use crate::strategy;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_packet_is_read_back_as_it_was_written(sample in strategy::sample()) {
        let mut out = BytesMut::new();
        encode(&sample.packet, sample.version, &mut out).unwrap();
        prop_assert_eq!(sample.packet.encoded_len(sample.version), Ok(out.len()));
        prop_assert_eq!(read(sample.version, sample.on, &out), Ok(sample.packet));
    }
}
