//! Structs → protobuf messages, encoded and decoded by `prost`.
//!
//! `prost`'s derive would add five crates to every build for these seven messages, so [`message!`] calls the functions
//! that the derive calls.

use prost::DecodeError;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType};

/// Type of a field; a field with its default value is left out, and numbers in a list are packed.
pub(super) trait Field {
    /// Appends the tag of the field and the value.
    fn encode(&self, tag: u32, buffer: &mut impl BufMut);

    /// Replaces or extends the value by a decoded one.
    fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError>;

    /// Returns the length of the encoded field, bytes.
    fn encoded_len(&self, tag: u32) -> usize;
}

/// Declares a message: `number: name: Type`, ascending.
macro_rules! message {
    ($(#[$meta:meta])* $visible:vis struct $name:ident { $($number:literal: $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        $visible struct $name {
            $(pub $field: $kind,)*
        }

        impl prost::Message for $name {
            fn encode_raw(&self, buffer: &mut impl prost::bytes::BufMut) {
                $($crate::export::emit::pprof::protobuf::Field::encode(&self.$field, $number, buffer);)*
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: prost::encoding::WireType,
                buffer: &mut impl prost::bytes::Buf,
                context: prost::encoding::DecodeContext,
            ) -> Result<(), prost::DecodeError> {
                match tag {
                    $($number => $crate::export::emit::pprof::protobuf::Field::merge(
                        &mut self.$field, wire_type, buffer, context,
                    ),)*
                    _ => prost::encoding::skip_field(wire_type, tag, buffer, context),
                }
            }

            fn encoded_len(&self) -> usize {
                0 $(+ $crate::export::emit::pprof::protobuf::Field::encoded_len(&self.$field, $number))*
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }

        list!($name, message, encode_repeated, encoded_len_repeated);
        optional!($name);
    };
}

/// Implements [`Field`] for a type: how `value` is encoded under `tag` into `buffer`, what is merged into, and the length.
macro_rules! field {
    (
        $kind:ty, |$value:ident, $tag:ident, $buffer:ident|
        encode $encode:expr;
        merge $merge:path, $into:expr;
        length $length:expr
    ) => {
        impl $crate::export::emit::pprof::protobuf::Field for $kind {
            fn encode(&self, $tag: u32, $buffer: &mut impl prost::bytes::BufMut) {
                let $value = self;
                $encode
            }

            fn merge(
                &mut self,
                wire_type: prost::encoding::WireType,
                buffer: &mut impl prost::bytes::Buf,
                context: prost::encoding::DecodeContext,
            ) -> Result<(), prost::DecodeError> {
                let $value = self;
                $merge(wire_type, $into, buffer, context)
            }

            fn encoded_len(&self, $tag: u32) -> usize {
                let $value = self;
                $length
            }
        }
    };
}

/// Implements [`Field`] for a number and for a packed list of it.
macro_rules! number {
    ($kind:ty, $module:ident) => {
        field!($kind, |value, tag, buffer|
            encode if *value != <$kind>::default() { prost::encoding::$module::encode(tag, value, buffer) };
            merge prost::encoding::$module::merge, value;
            length if *value == <$kind>::default() { 0 } else { prost::encoding::$module::encoded_len(tag, value) }
        );
        list!($kind, $module, encode_packed, encoded_len_packed);
    };
}

/// Implements [`Field`] for a list.
macro_rules! list {
    ($kind:ty, $module:ident, $encode:ident, $encoded_len:ident) => {
        field!(Vec<$kind>, |value, tag, buffer|
            encode prost::encoding::$module::$encode(tag, value, buffer);
            merge prost::encoding::$module::merge_repeated, value;
            length prost::encoding::$module::$encoded_len(tag, value)
        );
    };
}

/// Implements [`Field`] for an optional message.
macro_rules! optional {
    ($kind:ty) => {
        field!(Option<$kind>, |value, tag, buffer|
            encode if let Some(message) = value { prost::encoding::message::encode(tag, message, buffer) };
            merge prost::encoding::message::merge, value.get_or_insert_default();
            length value.as_ref().map_or(0, |message| prost::encoding::message::encoded_len(tag, message))
        );
    };
}

pub(super) use {field, list, message, optional};

number!(u64, uint64);
number!(i64, int64);
number!(bool, bool);
list!(String, string, encode_repeated, encoded_len_repeated);

#[cfg(test)]
mod tests {
    use prost::Message as _;

    message! {
        struct Inner {
            1: text: Vec<String>,
        }
    }

    message! {
        struct Outer {
            1: number: u64,
            2: signed: i64,
            3: flag: bool,
            4: numbers: Vec<u64>,
            5: signeds: Vec<i64>,
            6: inner: Option<Inner>,
            16: inners: Vec<Inner>,
        }
    }

    fn bytes(message: &impl prost::Message) -> Vec<u8> {
        message.encode_to_vec()
    }

    /// The bytes of <https://protobuf.dev/programming-guides/encoding/>.
    #[test]
    fn values_are_encoded_as_the_documentation_of_protobuf_has_them() {
        assert_eq!(bytes(&Outer { number: 150, ..Outer::default() }), [0x08, 0x96, 0x01]);
        let minus_two = [0x10, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
        assert_eq!(bytes(&Outer { signed: -2, ..Outer::default() }), minus_two);
        assert_eq!(bytes(&Outer { flag: true, ..Outer::default() }), [0x18, 0x01]);
        let packed = [0x22, 0x06, 0x03, 0x8e, 0x02, 0x9e, 0xa7, 0x05];
        assert_eq!(bytes(&Outer { numbers: vec![3, 270, 86_942], ..Outer::default() }), packed);
        let testing = Inner { text: vec!["testing".to_owned()] };
        assert_eq!(bytes(&testing), [0x0a, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67]);
        let nested = bytes(&Outer { inner: Some(testing), ..Outer::default() });
        assert_eq!(nested[..2], [0x32, 0x09]);
        // A number above 15 takes two bytes, and an empty message or text is there all the same.
        let empty = vec![Inner::default(), Inner { text: vec![String::new()] }];
        let empty = bytes(&Outer { inners: empty, ..Outer::default() });
        assert_eq!(empty, [0x82, 0x01, 0x00, 0x82, 0x01, 0x02, 0x0a, 0x00]);
        assert!(bytes(&Outer::default()).is_empty());
    }

    #[test]
    fn what_is_written_is_read_back_with_lengths_of_every_size() {
        for length in [0, 1, 127, 128, 16_383, 16_384, 2_097_152] {
            let inner = Inner { text: vec!["x".repeat(length), "y".to_owned()] };
            let message = Outer {
                number: u64::MAX,
                signed: i64::MIN,
                flag: true,
                numbers: (0..length as u64)
                    .map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15))
                    .take(1_000)
                    .collect(),
                signeds: vec![0, -1, i64::MAX],
                inner: Some(inner.clone()),
                inners: vec![inner, Inner::default()],
            };
            assert_eq!(Outer::decode(&*bytes(&message)).unwrap(), message);
        }
    }
}
