//! Writes and reads whole numbers in LEB128: seven bits a byte, the lowest first.
//!
//! Pure functions for any thread.
#![forbid(unsafe_code)]

/// Appends a number: one byte below 128, ten at most.
pub(crate) fn pack(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes the first number away; `None` at the end.
pub(crate) fn unpack(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        let mut packed = Vec::new();
        numbers.iter().for_each(|&number| pack(&mut packed, number));
        let mut rest = &packed[..];
        assert_eq!(std::iter::from_fn(|| unpack(&mut rest)).collect::<Vec<_>>(), numbers);
        assert_eq!(packed.len(), 3 + 2 + 2 + 5 + 10 + 10);
    }
}
