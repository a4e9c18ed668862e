//! RDMSR and WRMSR: what Linux, FreeBSD, SeaBIOS and OVMF touch. Numbers and layouts are from
//! Intel SDM vol. 4 and AMD APM vol. 2, appendix A.

use std::sync::atomic::Ordering;

use engine::{reg, seg};

use super::Flow;
use super::control::{guest_tsc, privileged};
use super::features::{canonical, feature};
use crate::apic::X2APIC_MSRS;
use crate::cpu::{Cpu, control};
use crate::exception::{Exception, Exec};

/// MSR numbers.
pub mod index {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const EBL_CR_POWERON: u32 = 0x2a;
    pub const FEATURE_CONTROL: u32 = 0x3a;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_UPDT_TRIG: u32 = 0x79;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const PLATFORM_INFO: u32 = 0xce;
    pub const MTRRCAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const FLUSH_CMD: u32 = 0x10b;
    pub const MISC_FEATURES_ENABLES: u32 = 0x140;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    pub const LAST_BRANCH_FROM: u32 = 0x1db;
    pub const LAST_INT_TO: u32 = 0x1de;
    pub const MTRR_PHYSBASE0: u32 = 0x200;
    pub const MTRR_PHYSMASK7: u32 = 0x20f;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K_80000: u32 = 0x258;
    pub const MTRR_FIX16K_A0000: u32 = 0x259;
    pub const MTRR_FIX4K_FIRST: u32 = 0x268;
    pub const MTRR_FIX4K_LAST: u32 = 0x26f;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const RAPL_POWER_UNIT: u32 = 0x606;
    pub const PKG_ENERGY_STATUS: u32 = 0x611;
    pub const DRAM_ENERGY_STATUS: u32 = 0x619;
    pub const PP0_ENERGY_STATUS: u32 = 0x639;
    pub const PP1_ENERGY_STATUS: u32 = 0x641;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// Reset value of IA32_PAT (SDM vol. 3, table 12-12).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// MTRRCAP: 8 variable ranges, fixed ranges, write-combining.
const MTRR_CAP: u64 = 8 | 1 << 8 | 1 << 10;
/// MISC_ENABLE: fast strings; no branch trace store (11), no PEBS (12), both read-only.
const MISC_ENABLE_RESET: u64 = 1 | MISC_ENABLE_READ_ONLY;
const MISC_ENABLE_READ_ONLY: u64 = 1 << 11 | 1 << 12;

/// RDMSR.
pub fn rdmsr(cpu: &mut Cpu) -> Exec<Flow> {
    privileged(cpu)?;
    let value = read(cpu, cpu.gpr[reg::RCX] as u32)?;
    cpu.gpr[reg::RAX] = value & 0xffff_ffff;
    cpu.gpr[reg::RDX] = value >> 32;
    Ok(Flow::Next)
}

/// WRMSR.
pub fn wrmsr(cpu: &mut Cpu) -> Exec<Flow> {
    privileged(cpu)?;
    let value = cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX] & 0xffff_ffff;
    write(cpu, cpu.gpr[reg::RCX] as u32, value)?;
    Ok(Flow::Next)
}

/// An MSR that the guest's processor does not have.
fn unknown(cpu: &Cpu) -> Exec<()> {
    if cpu.shared.config.strict_msr { Err(Exception::gp(0)) } else { Ok(()) }
}

/// #GP unless `legal`.
fn require(legal: bool) -> Exec<()> {
    if legal { Ok(()) } else { Err(Exception::gp(0)) }
}

/// Value of an MSR, or #GP.
pub fn read(cpu: &Cpu, msr: u32) -> Exec<u64> {
    use index::*;
    Ok(match msr {
        TSC => guest_tsc(cpu),
        APIC_BASE => cpu.apic.base(),
        SYSENTER_CS..=SYSENTER_EIP => cpu.msr.sysenter[(msr - SYSENTER_CS) as usize],
        EFER => cpu.efer,
        STAR if long_mode(cpu) => cpu.msr.star,
        LSTAR if long_mode(cpu) => cpu.msr.lstar,
        CSTAR if long_mode(cpu) => cpu.msr.cstar,
        FMASK if long_mode(cpu) => cpu.msr.fmask,
        FS_BASE if long_mode(cpu) => cpu.segments[seg::FS].base,
        GS_BASE if long_mode(cpu) => cpu.segments[seg::GS].base,
        KERNEL_GS_BASE if long_mode(cpu) => cpu.msr.kernel_gs_base,
        TSC_AUX if has_tsc_aux(cpu) => cpu.msr.tsc_aux,
        TSC_DEADLINE if cpu.has(feature::TSC_DEADLINE) => cpu.apic.tsc_deadline(),
        _ if X2APIC_MSRS.contains(&msr) => cpu.apic.read_msr(msr)?,
        _ => match initial(cpu, msr) {
            Some(initial) => cpu.msrs.get(&msr).copied().unwrap_or(initial),
            None => unknown(cpu).map(|()| 0)?,
        },
    })
}

fn long_mode(cpu: &Cpu) -> bool {
    cpu.has(feature::LONG_MODE)
}

fn has_tsc_aux(cpu: &Cpu) -> bool {
    cpu.has(feature::RDTSCP) || cpu.has(feature::RDPID)
}

fn has_spec_ctrl(cpu: &Cpu) -> bool {
    use feature::*;
    [SPEC_CTRL, STIBP, SSBD, AMD_IBRS, AMD_STIBP, AMD_SSBD].into_iter().any(|f| cpu.has(f))
}

/// Value after power-on of the MSRs that just hold it; `None` for those that don't exist.
fn initial(cpu: &Cpu, msr: u32) -> Option<u64> {
    use index::*;
    let amd = cpu.is_amd();
    let when = |exists: bool, value: u64| exists.then_some(value);
    match msr {
        TSC_ADJUST => when(cpu.has(feature::TSC_ADJUST), 0),
        SPEC_CTRL => when(has_spec_ctrl(cpu), 0),
        // The revision of a current microcode is not known; this one is what KVM guests see.
        BIOS_SIGN_ID => Some(if amd { 0x0100_0065 } else { 1 << 32 }),
        MTRRCAP => Some(MTRR_CAP),
        MTRR_PHYSBASE0..=MTRR_PHYSMASK7 | MTRR_DEF_TYPE => Some(0),
        MTRR_FIX64K | MTRR_FIX16K_80000 | MTRR_FIX16K_A0000 => Some(0),
        MTRR_FIX4K_FIRST..=MTRR_FIX4K_LAST => Some(0),
        PAT => Some(PAT_RESET),
        // No error banks.
        MCG_CAP | MCG_STATUS => Some(0),
        DEBUGCTL | LAST_BRANCH_FROM..=LAST_INT_TO => Some(0),
        XSS => when(cpu.has(feature::XSAVES), 0),
        _ if amd => initial_amd(msr),
        _ => initial_intel(cpu, msr),
    }
}

fn initial_intel(cpu: &Cpu, msr: u32) -> Option<u64> {
    use index::*;
    match msr {
        PLATFORM_ID | EBL_CR_POWERON | PLATFORM_INFO | MISC_FEATURES_ENABLES => Some(0),
        // Locked, without VMX.
        FEATURE_CONTROL => Some(1),
        MISC_ENABLE => Some(MISC_ENABLE_RESET),
        ARCH_CAPABILITIES if cpu.has(feature::ARCH_CAPABILITIES) => Some(engine::ARCH_CAPABILITIES),
        // Units of 1/8 W, 1/65536 J and 1/1024 s, as bhyve has it; the counters stand still.
        RAPL_POWER_UNIT => Some(0x000a_1003),
        PKG_ENERGY_STATUS | DRAM_ENERGY_STATUS | PP0_ENERGY_STATUS | PP1_ENERGY_STATUS => Some(0),
        _ => None,
    }
}

/// Registers of AMD families 0Fh to 1Ah.
fn initial_amd(msr: u32) -> Option<u64> {
    match msr {
        // SYSCFG, IORRs, TOP_MEM, TOP_MEM2: everything as the chipset decodes it.
        0xc001_0010 | 0xc001_0016..=0xc001_0019 | 0xc001_001a | 0xc001_001d => Some(0),
        // HWCR: the TSC counts at P0 (24), INVD is WBINVD (4).
        0xc001_0015 => Some(0x0100_0010),
        // NB_CFG, INT_PENDING_MSG, MMIO configuration base.
        0xc001_001f | 0xc001_0055 | 0xc001_0058 => Some(0),
        // P-state limit, control, status, definitions.
        0xc001_0061..=0xc001_006b => Some(0),
        // SMM_BASE, SMM_ADDR, SMM_MASK; VM_CR with SVM disabled and locked.
        0xc001_0111..=0xc001_0113 => Some(0),
        0xc001_0114 => Some(1 << 4 | 1 << 3),
        // LS_CFG, IC_CFG, DC_CFG, BU_CFG.
        0xc001_1020..=0xc001_1023 => Some(0),
        // DE_CFG: LFENCE is serializing.
        0xc001_1029 => Some(1 << 1),
        // BU_CFG2.
        0xc001_102a => Some(0),
        _ => None,
    }
}

/// Writes an MSR, or #GP.
pub fn write(cpu: &mut Cpu, msr: u32, value: u64) -> Exec<()> {
    use index::*;
    match msr {
        TSC => set_tsc(cpu, value),
        TSC_ADJUST if cpu.has(feature::TSC_ADJUST) => {
            let old = cpu.msrs.insert(TSC_ADJUST, value).unwrap_or(0);
            cpu.tsc_offset = cpu.tsc_offset.wrapping_add(value.wrapping_sub(old));
        }
        APIC_BASE => {
            let before = cpu.apic.mmio_page();
            cpu.apic.set_base(value)?;
            if cpu.apic.mmio_page() != before {
                cpu.tlb.flush_all();
            }
        }
        SYSENTER_CS => cpu.msr.sysenter[0] = value,
        SYSENTER_ESP | SYSENTER_EIP => {
            require(canonical(value))?;
            cpu.msr.sysenter[(msr - SYSENTER_CS) as usize] = value;
        }
        EFER => set_efer(cpu, value)?,
        STAR | LSTAR | CSTAR | FMASK | FS_BASE | GS_BASE | KERNEL_GS_BASE if long_mode(cpu) => {
            write_long_mode(cpu, msr, value)?;
        }
        TSC_AUX if has_tsc_aux(cpu) => {
            require(value >> 32 == 0)?;
            cpu.msr.tsc_aux = value;
        }
        TSC_DEADLINE if cpu.has(feature::TSC_DEADLINE) => {
            cpu.apic.set_tsc_deadline(value, guest_tsc(cpu));
        }
        _ if X2APIC_MSRS.contains(&msr) => cpu.apic.write_msr(msr, value)?,
        PRED_CMD | FLUSH_CMD | BIOS_UPDT_TRIG | 0xc001_0020 => write_command(cpu, msr, value)?,
        _ if initial(cpu, msr).is_some() => {
            if let Some(kept) = checked(cpu, msr, value)? {
                cpu.msrs.insert(msr, kept);
            }
        }
        _ => unknown(cpu)?,
    }
    Ok(())
}

/// IA32_TSC: the adjustment moves along (SDM vol. 3, 18.17.3).
fn set_tsc(cpu: &mut Cpu, value: u64) {
    let delta = value.wrapping_sub(guest_tsc(cpu));
    cpu.tsc_offset = cpu.tsc_offset.wrapping_add(delta);
    if cpu.has(feature::TSC_ADJUST) {
        let adjust = cpu.msrs.entry(index::TSC_ADJUST).or_insert(0);
        *adjust = adjust.wrapping_add(delta);
    }
}

fn write_long_mode(cpu: &mut Cpu, msr: u32, value: u64) -> Exec<()> {
    use index::*;
    match msr {
        STAR => {}
        FMASK => require(value >> 32 == 0)?,
        _ => require(canonical(value))?,
    }
    match msr {
        STAR => cpu.msr.star = value,
        LSTAR => cpu.msr.lstar = value,
        CSTAR => cpu.msr.cstar = value,
        FMASK => cpu.msr.fmask = value,
        FS_BASE => cpu.segments[seg::FS].base = value,
        GS_BASE => cpu.segments[seg::GS].base = value,
        _ => cpu.msr.kernel_gs_base = value,
    }
    Ok(())
}

/// Write-only command registers. What they flush is not observable here: the host does its own.
fn write_command(cpu: &Cpu, msr: u32, value: u64) -> Exec<()> {
    use index::*;
    match msr {
        PRED_CMD if cpu.has(feature::SPEC_CTRL) || cpu.has(feature::AMD_IBPB) => require(value & !1 == 0),
        FLUSH_CMD if cpu.has(feature::FLUSH_L1D) => require(value & !1 == 0),
        // Microcode updates are not taken; the revision stays, which loaders check.
        BIOS_UPDT_TRIG if !cpu.is_amd() => Ok(()),
        0xc001_0020 if cpu.is_amd() => Ok(()),
        _ => unknown(cpu),
    }
}

/// IA32_EFER (SDM vol. 3, 2.2.1; APM vol. 2, 3.1.7).
fn set_efer(cpu: &mut Cpu, value: u64) -> Exec<()> {
    use control::*;
    let mut valid = EFER_LMA;
    for (bit, feature) in
        [(EFER_SCE, feature::SYSCALL), (EFER_LME, feature::LONG_MODE), (EFER_NXE, feature::NX)]
    {
        if cpu.has(feature) {
            valid |= bit;
        }
    }
    // Fast FXSAVE (AMD).
    if cpu.has(feature::FXSR_OPT) {
        valid |= 1 << 14;
    }
    require(value & !valid == 0)?;
    require((value ^ cpu.efer) & EFER_LME == 0 || cpu.cr0 & CR0_PG == 0)?;
    let value = value & !EFER_LMA | cpu.efer & EFER_LMA;
    if (value ^ cpu.efer) & EFER_NXE != 0 {
        cpu.tlb.flush_all();
    }
    cpu.efer = value;
    Ok(())
}

/// Whether each byte of `value` is a memory type; `extra`: UC- (7) counts, as in PAT.
fn memory_types(value: u64, extra: bool) -> bool {
    value.to_le_bytes().iter().all(|t| matches!(t, 0 | 1 | 4 | 5 | 6) || extra && *t == 7)
}

/// The value that a holding MSR takes, `None` if it ignores writes; #GP for reserved bits.
fn checked(cpu: &Cpu, msr: u32, value: u64) -> Exec<Option<u64>> {
    use index::*;
    let legal = match msr {
        MTRRCAP | ARCH_CAPABILITIES | PLATFORM_ID | PLATFORM_INFO | FEATURE_CONTROL | RAPL_POWER_UNIT => {
            false
        }
        PKG_ENERGY_STATUS | DRAM_ENERGY_STATUS | PP0_ENERGY_STATUS | PP1_ENERGY_STATUS => false,
        MCG_CAP => false,
        // Loaders write 0 before they read the revision; it is not kept.
        BIOS_SIGN_ID | LAST_BRANCH_FROM..=LAST_INT_TO | EBL_CR_POWERON => return Ok(None),
        MTRR_PHYSBASE0..=MTRR_PHYSMASK7 => {
            let reserved = !cpu.physical_mask() | if msr & 1 == 0 { 0xf00 } else { 0x7ff };
            value & reserved == 0 && (msr & 1 != 0 || memory_types(value & 0xff, false))
        }
        MTRR_FIX64K..=MTRR_FIX4K_LAST => memory_types(value, false),
        MTRR_DEF_TYPE => value & !0xcff == 0 && memory_types(value & 0xff, false),
        PAT => memory_types(value, true),
        MISC_ENABLE => {
            return Ok(Some(value & !MISC_ENABLE_READ_ONLY | MISC_ENABLE_READ_ONLY));
        }
        // IBRS, STIBP, SSBD, BHI_DIS_S.
        SPEC_CTRL => value & !0x407 == 0,
        // There is no branch record, no branch single-step, no CPUID faulting.
        DEBUGCTL | MISC_FEATURES_ENABLES | XSS => value == 0,
        MCG_STATUS => value & !7 == 0,
        // What the chipset does not decode by these registers can't be turned on.
        0xc001_0010..=0xc001_ffff => return Ok(amd_kept(msr, value)),
        _ => true,
    };
    require(legal)?;
    Ok(Some(value))
}

/// AMD's configuration registers keep what has no effect anyway.
fn amd_kept(msr: u32, value: u64) -> Option<u64> {
    match msr {
        // HWCR, LS_CFG to BU_CFG, DE_CFG (LFENCE stays serializing), BU_CFG2.
        0xc001_0015 | 0xc001_1020..=0xc001_1023 | 0xc001_102a => Some(value),
        0xc001_1029 => Some(value | 1 << 1),
        _ => None,
    }
}

/// MSRs that [`engine::VcpuState`] has no place for, for its list.
pub fn export(cpu: &Cpu) -> Vec<(u32, u64)> {
    use index::*;
    let mut list = vec![TSC, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, PAT, MTRR_DEF_TYPE];
    if long_mode(cpu) {
        list.extend([STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE]);
    }
    if has_tsc_aux(cpu) {
        list.push(TSC_AUX);
    }
    if cpu.has(feature::TSC_DEADLINE) {
        list.push(TSC_DEADLINE);
    }
    list.extend(cpu.msrs.keys());
    list.sort_unstable();
    list.dedup();
    list.into_iter().filter_map(|msr| Some((msr, read(cpu, msr).ok()?))).collect()
}

/// Takes an exported list, after the APIC was restored. MSRs that this processor does not have are
/// left out (another engine may know more), values that it can't hold are an error.
pub fn import(cpu: &mut Cpu, list: &[(u32, u64)]) -> Result<(), &'static str> {
    use index::*;
    cpu.msrs.clear();
    // First, for the deadline is relative to it.
    if let Some((_, tsc)) = list.iter().find(|(msr, _)| *msr == TSC) {
        let adjust = list.iter().find(|(msr, _)| *msr == TSC_ADJUST).map_or(0, |m| m.1);
        cpu.tsc_offset = synchronized(cpu, tsc.wrapping_sub(adjust)).wrapping_add(adjust);
    }
    for &(msr, value) in list {
        match msr {
            TSC => {}
            // Held by other fields of the state.
            EFER | APIC_BASE | FS_BASE | GS_BASE => {}
            TSC_ADJUST => {
                cpu.msrs.insert(msr, value);
            }
            // The APIC's own state says when; 0 here means only that it is not running.
            TSC_DEADLINE if value == 0 => {}
            _ if X2APIC_MSRS.contains(&msr) => {}
            _ if read_only(msr) || initial(cpu, msr).is_none() && read(cpu, msr).is_err() => {}
            _ => write(cpu, msr, value).map_err(|_| "value of an MSR")?,
        }
    }
    Ok(())
}

/// The offset of a TSC that read `tsc`. The vCPUs' counters are saved and loaded one after the
/// other, yet must agree afterwards; so what is within a second of the last one loaded is the same.
fn synchronized(cpu: &Cpu, tsc: u64) -> u64 {
    let base = &cpu.shared.tsc_base;
    let (last, new) = (base.load(Ordering::SeqCst), tsc.wrapping_sub(crate::apic::host_tsc()));
    if (new.wrapping_sub(last) as i64).unsigned_abs() < engine::host_tsc_hz() {
        return last;
    }
    base.store(new, Ordering::SeqCst);
    new
}

fn read_only(msr: u32) -> bool {
    use index::*;
    matches!(
        msr,
        MTRRCAP
            | ARCH_CAPABILITIES
            | PLATFORM_ID
            | PLATFORM_INFO
            | FEATURE_CONTROL
            | RAPL_POWER_UNIT
            | MCG_CAP
            | BIOS_SIGN_ID
            | PKG_ENERGY_STATUS
            | DRAM_ENERGY_STATUS
            | PP0_ENERGY_STATUS
            | PP1_ENERGY_STATUS
    )
}
