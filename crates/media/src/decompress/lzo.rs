//! LZO1X. There is no specification; the byte sequences are those that Linux documents in
//! `Documentation/staging/lzo.rst`, version 0.

use super::block::copy_back;
use crate::{Error, Result};

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<usize> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first as usize)
    }

    fn word(&mut self) -> Option<usize> {
        Some(self.byte()? | self.byte()? << 8)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    /// A length whose field is the low `bits` of an instruction. Zero continues: each further zero
    /// adds 255, the first other byte ends it.
    fn length(&mut self, instruction: usize, bits: u32) -> Option<usize> {
        let mask = (1 << bits) - 1;
        let mut length = instruction & mask;
        if length == 0 {
            length = mask;
            loop {
                match self.byte()? {
                    0 => length = length.checked_add(255)?,
                    last => break Some(length + last),
                }
            }
        } else {
            Some(length)
        }
    }
}

/// What the instruction before did, which changes what 0 to 15 mean.
#[derive(PartialEq)]
enum Last {
    /// A copy without literals after it.
    Nothing,
    /// A copy with one to three literals.
    Few,
    /// A run of literals.
    Run,
}

enum Step {
    /// Literals to copy.
    Literals(usize),
    /// Distance, length, literals after it.
    Copy(usize, usize, usize),
    End,
}

/// A block of LZO1X. Nothing may follow its end mark but padding.
pub fn lzo1x(input: &[u8], max: usize) -> Result<Vec<u8>> {
    let bad = || Error::corrupt("lzo", "a block ends too early or points before its start");
    let more = || Error::corrupt("lzo", format!("a block holds more than {max} bytes"));
    let mut output: Vec<u8> = Vec::with_capacity(max);
    let mut input = Input { bytes: input };
    let mut last = Last::Nothing;
    // The first byte may be literals only. 17 would be an end mark: an empty block.
    if let Some(&first) = input.bytes.first().filter(|first| **first > 17) {
        input.byte();
        let len = first as usize - 17;
        literals(&mut input, &mut output, len, max).ok_or_else(bad)?.then_some(()).ok_or_else(more)?;
        last = if len < 4 { Last::Few } else { Last::Run };
    }
    loop {
        match step(&mut input, &last).ok_or_else(bad)? {
            Step::End => return Ok(output),
            Step::Literals(len) => {
                literals(&mut input, &mut output, len, max)
                    .ok_or_else(bad)?
                    .then_some(())
                    .ok_or_else(more)?;
                last = Last::Run;
            }
            Step::Copy(distance, len, after) => {
                if len > max - output.len() {
                    return Err(more());
                }
                copy_back(&mut output, distance, len).ok_or_else(bad)?;
                literals(&mut input, &mut output, after, max)
                    .ok_or_else(bad)?
                    .then_some(())
                    .ok_or_else(more)?;
                last = if after == 0 { Last::Nothing } else { Last::Few };
            }
        }
    }
}

/// `None`: the input ends. `Some(false)`: too much output.
fn literals(input: &mut Input, output: &mut Vec<u8>, len: usize, max: usize) -> Option<bool> {
    let taken = input.take(len)?;
    if len > max - output.len() {
        return Some(false);
    }
    output.extend_from_slice(taken);
    Some(true)
}

fn step(input: &mut Input, last: &Last) -> Option<Step> {
    let instruction = input.byte()?;
    Some(match instruction {
        0..16 => match last {
            Last::Nothing => Step::Literals(input.length(instruction, 4)?.checked_add(3)?),
            Last::Few => Step::Copy((input.byte()? << 2) + (instruction >> 2) + 1, 2, instruction & 3),
            Last::Run => Step::Copy((input.byte()? << 2) + (instruction >> 2) + 2049, 3, instruction & 3),
        },
        16..32 => {
            let len = input.length(instruction, 3)?.checked_add(2)?;
            let word = input.word()?;
            let distance = 16384 + ((instruction & 8) << 11) + (word >> 2);
            if distance == 16384 { Step::End } else { Step::Copy(distance, len, word & 3) }
        }
        32..64 => {
            let len = input.length(instruction, 5)?.checked_add(2)?;
            let word = input.word()?;
            Step::Copy((word >> 2) + 1, len, word & 3)
        }
        64..128 => {
            let distance = (input.byte()? << 3) + (instruction >> 2 & 7) + 1;
            Step::Copy(distance, 3 + (instruction >> 5 & 1), instruction & 3)
        }
        _ => {
            let distance = (input.byte()? << 3) + (instruction >> 2 & 7) + 1;
            Step::Copy(distance, 5 + (instruction >> 5 & 3), instruction & 3)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction() {
        let end = [17, 0, 0];
        assert_eq!(lzo1x(&end, 0).unwrap(), b"");
        // Four literals at the start; 7 bytes from 4 back and one literal; 2 bytes from 1 back.
        let packed = [&[21, b'a', b'b', b'c', b'd', 0b1100_1101, 0, b'X', 0b0000_0000, 0][..], &end].concat();
        assert_eq!(lzo1x(&packed, 100).unwrap(), b"abcdabcdabcXXX");
        assert_eq!(lzo1x(&packed, 14).unwrap().len(), 14);
        assert!(lzo1x(&packed, 13).unwrap_err().to_string().contains("more than 13 bytes"));
        assert!(lzo1x(&packed[..packed.len() - 1], 100).is_err());
        // 300 literals by a continued length (15 + 255 + 27 + 3), a long copy by 32 (31 + 255 + 2 + 2).
        let long: Vec<u8> = (0..300).map(|at| at as u8).collect();
        let packed = [&[0, 0, 27][..], &long, &[32, 0, 2, 3, 0], &end].concat();
        let plain = lzo1x(&packed, 1000);
        assert!(plain.is_err(), "the literal after the copy is missing");
        let packed = [&[0, 0, 27][..], &long, &[32, 0, 2, 0, 0], &end].concat();
        let plain = lzo1x(&packed, 1000).unwrap();
        assert_eq!(&plain[..300], &long[..]);
        assert_eq!(plain[300..], [43; 290]);
        assert!(lzo1x(&[21, 1, 2, 3, 4, 0b0100_0000, 9], 100).is_err(), "before the start");
    }
}
