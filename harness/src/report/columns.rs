//! Long lists of numbers in few letters: differences, run lengths, base64 VLQ as in source maps.

use serde::{Serialize, Serializer};

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// Bits of a digit; one more says that another digit follows.
const BITS: u32 = 5;

/// A list of numbers, each a difference from what could be expected, most of them the same as the one before: pairs of a
/// number and how often it comes.
#[derive(Clone, Default)]
pub(super) struct Column {
    text: String,
    last: Option<(i64, u64)>,
}

impl Column {
    pub fn push(&mut self, number: i64) {
        match &mut self.last {
            Some((last, times)) if *last == number => *times += 1,
            last => {
                if let Some((number, times)) = last.replace((number, 1)) {
                    write(&mut self.text, number, times);
                }
            }
        }
    }
}

impl Serialize for Column {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = self.text.clone();
        if let Some((number, times)) = self.last {
            write(&mut text, number, times);
        }
        serializer.serialize_str(&text)
    }
}

fn write(text: &mut String, number: i64, times: u64) {
    // The sign is the lowest bit.
    digits(text, (number as u64) << 1 ^ (number >> 63) as u64);
    digits(text, times);
}

fn digits(text: &mut String, mut number: u64) {
    loop {
        let low = number & ((1 << BITS) - 1);
        number >>= BITS;
        let more = u64::from(number != 0) << BITS;
        text.push(char::from(DIGITS[(low | more) as usize]));
        if number == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the page's own decoder does.
    fn decode(text: &str) -> Vec<i64> {
        let mut numbers = Vec::new();
        let mut digits = text.bytes().map(|letter| DIGITS.iter().position(|&digit| digit == letter).unwrap());
        let mut next = || {
            let (mut number, mut shift) = (0_u64, 0);
            loop {
                let digit = digits.next()? as u64;
                number |= (digit & 31) << shift;
                shift += 5;
                if digit < 32 {
                    return Some(number);
                }
            }
        };
        while let (Some(number), Some(times)) = (next(), next()) {
            let number = (number >> 1) as i64 ^ -((number & 1) as i64);
            numbers.extend((0..times).map(|_| number));
        }
        numbers
    }

    #[test]
    fn a_column_holds_what_was_pushed() {
        let numbers = [0, 0, 0, 1, -1, -1, 31, 32, -33, i64::MAX, i64::MIN, i64::MIN, 0];
        let mut column = Column::default();
        numbers.iter().for_each(|&number| column.push(number));
        let text = serde_json::to_value(&column).unwrap();
        assert_eq!(decode(text.as_str().unwrap()), numbers);
        assert_eq!(serde_json::to_value(Column::default()).unwrap(), "");
    }

    #[test]
    fn what_repeats_takes_no_room() {
        let mut column = Column::default();
        (0..1_000_000).for_each(|_| column.push(0));
        assert!(serde_json::to_value(&column).unwrap().as_str().unwrap().len() < 8);
    }
}
