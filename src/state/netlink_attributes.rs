//! The attributes in the bytes of a netlink message (linux/netlink.h).

/// The length of an attribute's header.
pub const HEADER: usize = 4;

/// The flag of an attribute that holds attributes (NLA_F_NESTED).
pub const NESTED: u16 = 1 << 15;

/// The bits of an attribute's type that are its number (NLA_TYPE_MASK).
const NUMBER: u16 = !(NESTED | 1 << 14);

/// The attributes in the bytes of a message, each with its number. Iteration ends at the first that
/// is cut off.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (number, whole) = self.next_whole()?;
        Some((number, &whole[HEADER..]))
    }
}

impl<'a> Attributes<'a> {
    /// The number of the next attribute, and its bytes with the header and without the padding.
    fn next_whole(&mut self) -> Option<(u16, &'a [u8])> {
        let header = self.0.get(..HEADER)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let whole = self.0.get(..length).filter(|whole| whole.len() >= HEADER)?;
        self.0 = self.0.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
        Some((u16::from_ne_bytes([header[2], header[3]]) & NUMBER, whole))
    }

    /// The value of the attribute `number`.
    pub fn get(&self, number: u16) -> Option<&'a [u8]> {
        Attributes(self.0).find(|(other, _)| *other == number).map(|(_, value)| value)
    }

    /// The value of the attribute `number`, a text up to a NUL. None if it is not in UTF-8.
    pub fn text(&self, number: u16) -> Option<String> {
        let value = self.get(number)?.split(|byte| *byte == 0).next()?;
        String::from_utf8(value.to_vec()).ok()
    }

    /// The value of the attribute `number`, a number of 32 bits.
    pub fn u32(&self, number: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(number)?.try_into().ok()?))
    }

    /// The value of the attribute `number`, a number of 64 bits.
    pub fn u64(&self, number: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(number)?.try_into().ok()?))
    }

    /// The attributes but those of these numbers, as bytes; each is as it was.
    pub fn without(&self, numbers: &[u16]) -> Vec<u8> {
        let (mut rest, mut kept) = (Attributes(self.0), Vec::with_capacity(self.0.len()));
        while let Some((number, whole)) = rest.next_whole() {
            if !numbers.contains(&number) {
                kept.extend(whole);
                kept.resize(kept.len().next_multiple_of(HEADER), 0);
            }
        }
        kept
    }

    /// The attributes as bytes, with another value for each for which `change` returns one.
    pub fn changed(&self, mut change: impl FnMut(u16, &'a [u8]) -> Option<Vec<u8>>) -> Vec<u8> {
        let (mut rest, mut all) = (Attributes(self.0), Vec::with_capacity(self.0.len()));
        while let Some((number, whole)) = rest.next_whole() {
            let flags = u16::from_ne_bytes([whole[2], whole[3]]) & !NUMBER;
            match change(number, &whole[HEADER..]) {
                Some(value) => push(&mut all, number | flags, &value),
                None => push(&mut all, number | flags, &whole[HEADER..]),
            }
        }
        all
    }

    /// Whether the bytes are attributes to their end.
    pub fn are_whole(mut self) -> bool {
        while self.next_whole().is_some() {}
        self.0.is_empty()
    }
}

/// Appends an attribute to `payload`.
pub fn push(payload: &mut Vec<u8>, number: u16, value: &[u8]) {
    // The kernel refuses a value that is too long, whatever the number says.
    let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
    payload.extend(length.to_ne_bytes());
    payload.extend(number.to_ne_bytes());
    payload.extend(value);
    payload.resize(payload.len().next_multiple_of(HEADER), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_gone_and_the_rest_is_as_it_was() {
        let mut bytes = Vec::new();
        push(&mut bytes, 1, b"ab\0");
        let first = bytes.len();
        push(&mut bytes, 2 | NESTED, &[7; 8]);
        assert_eq!(Attributes(&bytes).without(&[9]), bytes);
        assert_eq!(Attributes(&bytes).changed(|_, _| None), bytes);
        let longer = Attributes(&bytes).changed(|n, v| (n == 1).then(|| [v, v].concat()));
        assert_eq!(Attributes(&longer).get(1), Some(&b"ab\0ab\0"[..]));
        assert_eq!(Attributes(&longer).without(&[1]), bytes[first..]);
        assert_eq!(Attributes(&bytes).without(&[1]), bytes[first..]);
        assert_eq!(Attributes(&bytes).without(&[2]), bytes[..first]);
        assert!(Attributes(&bytes).are_whole());
        assert!(!Attributes(&bytes[..bytes.len() - 1]).are_whole());
        assert!(!Attributes(&[3, 0, 1, 0]).are_whole(), "shorter than its header");
    }
}
