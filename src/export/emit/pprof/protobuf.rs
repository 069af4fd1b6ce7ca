//! Values → protobuf's wire format, as far as the messages beside this file need it.
//!
//! A field with its default value is left out, but in a list; numbers in a list are packed. This is what `prost` writes;
//! its derive would add six crates to every build, for seven messages that are only ever written.
#![forbid(unsafe_code)]

/// A set of numbered fields; [`message!`] makes one of a struct.
pub(super) trait Message {
    /// Appends the fields that differ from their default, in the order of their numbers.
    fn encode(&self, out: &mut Vec<u8>);

    /// Replaces or extends a field by what was read; an unknown number is an error.
    #[cfg(test)]
    fn merge(&mut self, number: u32, value: Wire<'_>) -> Option<()>;
}

/// A value that a field may have.
pub(super) trait Field {
    /// Appends the number of the field and the value.
    fn write(&self, number: u32, out: &mut Vec<u8>);

    /// Takes over what was read; `None` where it has another wire type.
    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()>;
}

/// Declares a message: `number: name: Type`, ascending.
macro_rules! message {
    ($(#[$meta:meta])* $visible:vis struct $name:ident { $($number:literal: $field:ident: $kind:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq)]
        $visible struct $name {
            $(pub $field: $kind,)*
        }

        impl $crate::export::emit::pprof::protobuf::Message for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::export::emit::pprof::protobuf::Field::write(&self.$field, $number, out);)*
            }

            #[cfg(test)]
            fn merge(&mut self, number: u32, value: $crate::export::emit::pprof::protobuf::Wire<'_>) -> Option<()> {
                match number {
                    $($number => $crate::export::emit::pprof::protobuf::Field::read(&mut self.$field, value),)*
                    _ => None,
                }
            }
        }
    };
}
pub(super) use message;

/// Wire types: what follows a field's number.
const VARINT: u32 = 0;
const DELIMITED: u32 = 2;

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn key(number: u32, wire_type: u32, out: &mut Vec<u8>) {
    varint(u64::from(number << 3 | wire_type), out);
}

/// Appends a value with its length in front, which is known only when it is written.
fn delimited(number: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    key(number, DELIMITED, out);
    let begin = out.len();
    write(out);
    let end = out.len();
    varint((end - begin) as u64, out);
    let length_bytes = out.len() - end;
    out[begin..].rotate_right(length_bytes);
}

impl Field for u64 {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        if *self != 0 {
            key(number, VARINT, out);
            varint(*self, out);
        }
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let Wire::Varint(value) = value else { return None };
        *self = value;
        Some(())
    }
}

impl Field for i64 {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        (*self as u64).write(number, out);
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let mut unsigned = 0u64;
        unsigned.read(value)?;
        *self = unsigned as i64;
        Some(())
    }
}

impl Field for bool {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        u64::from(*self).write(number, out);
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let mut unsigned = 0u64;
        unsigned.read(value)?;
        *self = unsigned != 0;
        Some(())
    }
}

impl Field for Vec<u64> {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        if !self.is_empty() {
            delimited(number, out, |out| self.iter().for_each(|&value| varint(value, out)));
        }
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let Wire::Delimited(mut bytes) = value else { return None };
        while !bytes.is_empty() {
            self.push(read_varint(&mut bytes)?);
        }
        Some(())
    }
}

impl Field for Vec<i64> {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        if !self.is_empty() {
            delimited(number, out, |out| self.iter().for_each(|&value| varint(value as u64, out)));
        }
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let mut unsigned = Vec::<u64>::new();
        unsigned.read(value)?;
        self.extend(unsigned.into_iter().map(|value| value as i64));
        Some(())
    }
}

impl Field for Vec<String> {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        for text in self {
            delimited(number, out, |out| out.extend_from_slice(text.as_bytes()));
        }
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let Wire::Delimited(bytes) = value else { return None };
        self.push(String::from_utf8(bytes.to_vec()).ok()?);
        Some(())
    }
}

impl<M: Message + Default> Field for Option<M> {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        if let Some(message) = self {
            delimited(number, out, |out| message.encode(out));
        }
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let Wire::Delimited(bytes) = value else { return None };
        *self = Some(decode(bytes)?);
        Some(())
    }
}

impl<M: Message + Default> Field for Vec<M> {
    fn write(&self, number: u32, out: &mut Vec<u8>) {
        for message in self {
            delimited(number, out, |out| message.encode(out));
        }
    }

    #[cfg(test)]
    fn read(&mut self, value: Wire<'_>) -> Option<()> {
        let Wire::Delimited(bytes) = value else { return None };
        self.push(decode(bytes)?);
        Some(())
    }
}

/// What follows a field's number.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Delimited(&'a [u8]),
}

/// Reads a message back; `None` where anything about it is not as this file writes it.
#[cfg(test)]
pub(super) fn decode<M: Message + Default>(mut bytes: &[u8]) -> Option<M> {
    let mut message = M::default();
    while !bytes.is_empty() {
        let key = u32::try_from(read_varint(&mut bytes)?).ok()?;
        let value = match key & 7 {
            VARINT => Wire::Varint(read_varint(&mut bytes)?),
            DELIMITED => {
                let length = usize::try_from(read_varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Wire::Delimited(value)
            }
            _ => return None,
        };
        message.merge(key >> 3, value)?;
    }
    Some(message)
}

#[cfg(test)]
fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn bytes(message: &impl Message) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
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
            assert_eq!(decode::<Outer>(&bytes(&message)), Some(message));
        }
    }
}
