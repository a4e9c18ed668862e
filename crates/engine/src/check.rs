//! Which vCPU states can be.

use crate::{Segment, VcpuState, seg};

/// CR0: PE, MP, EM, TS, ET, NE, WP, AM, NW, CD, PG (Intel SDM vol. 3, 2.5).
const CR0: u64 = 0xe005_003f;
const CR0_PE: u64 = 1;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_PG: u64 = 1 << 31;
/// CR4 up to OSXMMEXCPT, UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP: what engines offer.
const CR4: u64 = 0x0037_0fff;
const CR4_PAE: u64 = 1 << 5;
const CR4_PCIDE: u64 = 1 << 17;
/// CR3: physical addresses have 52 bits.
const CR3: u64 = (1 << 52) - 1;
/// EFER: SCE, LME, LMA, NXE (Intel SDM vol. 3, 2.2.1).
const EFER: u64 = 0xd01;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS without the reserved bits (Intel SDM vol. 1, 3.4.3).
const RFLAGS: u64 = 0x003f_7fd7;
const RFLAGS_FIXED: u64 = 2;
const RFLAGS_VM: u64 = 1 << 17;
/// [`Segment::access`] has no other bits.
const ACCESS: u32 = 0x1_f0ff;

fn canonical(address: u64) -> bool {
    let upper = address as i64 >> 47;
    upper == 0 || upper == -1
}

impl VcpuState {
    /// Refuses what no processor can be in, for states that come from outside; the answer says what
    /// is wrong. VM entry checks the same (Intel SDM vol. 3, 27.3.1).
    pub fn check(&self) -> Result<(), &'static str> {
        self.check_control()?;
        self.check_segments()?;
        let long = self.efer & EFER_LMA != 0;
        if self.rflags & !RFLAGS != 0 || self.rflags & RFLAGS_FIXED == 0 {
            return Err("RFLAGS has reserved bits, or bit 1 clear");
        }
        if self.rflags & RFLAGS_VM != 0 && (long || self.cr0 & CR0_PE == 0) {
            return Err("RFLAGS.VM outside of 32-bit protected mode");
        }
        if long && !canonical(self.rip) {
            return Err("RIP is not canonical");
        }
        if !long && self.rip >> 32 != 0 {
            return Err("RIP has more than 32 bits outside of long mode");
        }
        if (self.dr[6] | self.dr[7]) >> 32 != 0 {
            return Err("DR6 and DR7 have 32 bits");
        }
        Ok(())
    }

    fn check_control(&self) -> Result<(), &'static str> {
        if self.cr0 & !CR0 != 0 {
            return Err("CR0 has reserved bits");
        }
        if self.cr0 & (CR0_PG | CR0_PE) == CR0_PG {
            return Err("CR0.PG without CR0.PE");
        }
        if self.cr0 & (CR0_NW | CR0_CD) == CR0_NW {
            return Err("CR0.NW without CR0.CD");
        }
        if self.cr3 & !CR3 != 0 {
            return Err("CR3 has reserved bits");
        }
        if self.cr4 & !CR4 != 0 {
            return Err("CR4 has reserved bits");
        }
        if self.efer & !EFER != 0 {
            return Err("EFER has reserved bits");
        }
        let active = self.efer & EFER_LMA != 0;
        if active != (self.efer & EFER_LME != 0 && self.cr0 & CR0_PG != 0) {
            return Err("EFER.LMA is not what EFER.LME and CR0.PG make it");
        }
        if active && self.cr4 & CR4_PAE == 0 {
            return Err("long mode without CR4.PAE");
        }
        if !active && self.cr4 & CR4_PCIDE != 0 {
            return Err("CR4.PCIDE outside of long mode");
        }
        Ok(())
    }

    fn check_segments(&self) -> Result<(), &'static str> {
        if self.segments.iter().any(|s| s.access & !ACCESS != 0) {
            return Err("a segment's access rights have reserved bits");
        }
        if self.segments.iter().any(|s| !canonical(s.base))
            || !canonical(self.gdtr.base)
            || !canonical(self.idtr.base)
        {
            return Err("a segment's or table's base is not canonical");
        }
        let Some(code) = self.segments.get(seg::CS) else { return Ok(()) };
        if code.access & Segment::UNUSABLE != 0 {
            return Err("CS is not usable");
        }
        if code.access & Segment::LONG != 0 && (self.efer & EFER_LMA == 0 || code.access & Segment::BIG != 0)
        {
            return Err("CS is 64-bit outside of long mode, or 32-bit at once");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut VcpuState)) -> &'static str {
        let mut state = VcpuState::reset(0);
        change(&mut state);
        state.check().unwrap_err()
    }

    #[test]
    fn states_of_processors_pass_and_others_are_named() {
        assert_eq!(VcpuState::reset(1).check(), Ok(()));
        let mut long = VcpuState::reset(0);
        (long.cr0, long.cr4, long.efer) = (0x8000_0031, 0x20, 0x500);
        long.segments[seg::CS].access = 0xa09b;
        long.rip = 0xffff_ffff_8100_0000;
        assert_eq!(long.check(), Ok(()));
        assert_eq!(refused(|s| s.cr0 = 0x8000_0010), "CR0.PG without CR0.PE");
        assert_eq!(refused(|s| s.cr4 = 1 << 12), "CR4 has reserved bits");
        assert_eq!(refused(|s| s.efer = 0x400), "EFER.LMA is not what EFER.LME and CR0.PG make it");
        assert_eq!(refused(|s| s.rflags = 0), "RFLAGS has reserved bits, or bit 1 clear");
        assert_eq!(refused(|s| s.rip = 1 << 40), "RIP has more than 32 bits outside of long mode");
        assert_eq!(refused(|s| s.segments[0].base = 1 << 50), "a segment's or table's base is not canonical");
        long.segments[seg::CS].access |= Segment::BIG;
        assert!(long.check().is_err());
    }
}
