//! Which arithmetic flags are live where.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, RflagsBits};

/// All six arithmetic flags, in iced's encoding.
pub const ALL: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// Flags that the instruction replaces whatever its operands are.
fn killed(insn: &Instruction) -> u32 {
    let counted = matches!(
        insn.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Shld
            | Mnemonic::Shrd
    );
    if counted {
        // A count of 0 leaves all flags alone (SDM vol. 2, SAL/SAR/SHL/SHR).
        let last = insn.op_count() - 1;
        let constant = insn.op_kind(last) == OpKind::Immediate8 && insn.immediate8() & 31 != 0;
        // The D0/D1 forms have an implicit count of 1, which iced shows as an immediate.
        if !constant {
            return 0;
        }
    }
    // The manuals leave flags undefined that processors leave alone here; guests see the same.
    let keeps_undefined = matches!(
        insn.mnemonic(),
        Mnemonic::Bt
            | Mnemonic::Bts
            | Mnemonic::Btr
            | Mnemonic::Btc
            | Mnemonic::Bsf
            | Mnemonic::Bsr
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Rcl
            | Mnemonic::Rcr
    );
    let undefined = if keeps_undefined { insn.rflags_undefined() } else { 0 };
    insn.rflags_modified() & !undefined & ALL
}

/// Flags live before `insn`, if `after` are live after it.
pub fn live_before(insn: &Instruction, after: u32) -> u32 {
    (after & !killed(insn)) | (insn.rflags_read() & ALL)
}

/// Whether the instruction neither reads nor writes arithmetic flags and can't leave the block:
/// looking for the next writer may go on behind it.
pub fn transparent(insn: &Instruction) -> bool {
    insn.code() != Code::INVALID && insn.flow_control() == iced_x86::FlowControl::Next
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn one(bytes: &[u8]) -> Instruction {
        Decoder::new(64, bytes, DecoderOptions::NONE).decode()
    }

    #[test]
    fn add_kills_and_adc_reads() {
        assert_eq!(live_before(&one(&[0x01, 0xd8]), ALL), 0);
        assert_eq!(live_before(&one(&[0x11, 0xd8]), ALL), RflagsBits::CF);
        assert_eq!(live_before(&one(&[0x89, 0xd8]), ALL), ALL);
        assert_eq!(live_before(&one(&[0xff, 0xc0]), ALL), RflagsBits::CF);
    }

    #[test]
    fn shifts_by_a_possible_zero_keep_flags_alive() {
        assert_eq!(live_before(&one(&[0xd3, 0xe0]), ALL), ALL);
        assert_eq!(live_before(&one(&[0xc1, 0xe0, 0x20]), ALL), ALL);
        assert_eq!(live_before(&one(&[0xc1, 0xe0, 0x03]), ALL), 0);
        assert_eq!(live_before(&one(&[0xd1, 0xe0]), ALL), 0);
    }
}
