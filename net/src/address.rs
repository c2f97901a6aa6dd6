//! Where clients reach a node, as nodes tell each other and their clients: host and port, as text.

use std::net::{IpAddr, SocketAddr};

use logdrive_raft::limits::ADDRESS_BYTES_MAX;
use logdrive_raft::wire::{Decode, DecodeError, Encode, Reader, Writer};

/// Writes a length (u16) and the address. One that is too long is left out, as if there were none.
pub(crate) fn encode_address(address: &str, out: &mut Writer<'_>) {
    let address = if address.len() <= ADDRESS_BYTES_MAX {
        address
    } else {
        ""
    };
    let length = u16::try_from(address.len()).expect("checked above");
    length.encode(out);
    out.raw(address.as_bytes());
}

/// Reads what [`encode_address`] wrote. Whether somebody is there is for whoever dials it.
pub(crate) fn decode_address(input: &mut Reader<'_>) -> Result<String, DecodeError> {
    let length = u16::decode(input)?;
    if usize::from(length) > ADDRESS_BYTES_MAX {
        return Err(DecodeError::TooLarge {
            what: "address",
            value: u64::from(length),
            max: ADDRESS_BYTES_MAX as u64,
        });
    }
    let bytes = input.raw(usize::from(length))?;
    // It ends up in log lines.
    match bytes.iter().find(|byte| !byte.is_ascii_graphic()) {
        Some(byte) => Err(DecodeError::Invalid {
            what: "byte of an address",
            value: u64::from(*byte),
        }),
        None => Ok(bytes.iter().map(|byte| char::from(*byte)).collect()),
    }
}

/// The address at which somebody else reaches a node that says `address` of itself and was met at `met`:
/// who listens on every interface cannot know by which one it is seen.
pub(crate) fn as_seen(address: &str, met: IpAddr) -> String {
    match address.parse::<SocketAddr>() {
        Ok(own) if own.ip().is_unspecified() => {
            SocketAddr::new(met.to_canonical(), own.port()).to_string()
        }
        _ => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    fn encoded(address: &str) -> BytesMut {
        let mut bytes = BytesMut::new();
        encode_address(address, &mut Writer::new(&mut bytes));
        bytes
    }

    #[test]
    fn an_address_comes_back_and_nothing_else_does() {
        let longest = "h".repeat(ADDRESS_BYTES_MAX);
        for address in ["", "127.0.0.1:9", "[::1]:9", "n1.example:7000", &longest] {
            let bytes = encoded(address);
            let mut input = Reader::new(&bytes);
            assert_eq!(decode_address(&mut input).unwrap(), address);
            assert_eq!(input.left(), 0);
        }
        assert_eq!(encoded(&"h".repeat(ADDRESS_BYTES_MAX + 1)), encoded(""));
        let long = [&[0, 1][..], &[b'h'; 256]].concat();
        for bad in [
            &b"\x02\0h"[..],
            b"\x01\0\n",
            b"\x01\0\xff",
            b"\x01\0 ",
            &long,
        ] {
            decode_address(&mut Reader::new(bad)).unwrap_err();
        }
    }

    #[test]
    fn who_listens_everywhere_is_found_where_it_was_met() {
        let met = "::ffff:10.0.0.7".parse().unwrap();
        assert_eq!(as_seen("0.0.0.0:70", met), "10.0.0.7:70");
        assert_eq!(
            as_seen("[::]:70", "fd00::1".parse().unwrap()),
            "[fd00::1]:70"
        );
        assert_eq!(as_seen("10.0.0.8:70", met), "10.0.0.8:70");
        assert_eq!(as_seen("n1.example:70", met), "n1.example:70");
    }
}
