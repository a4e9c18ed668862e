//! CPUID: the VM's table, with what depends on this vCPU's state put in.

use engine::{CpuidLeaf, reg};

use super::Flow;
use crate::cpu::{Cpu, control};
use crate::exception::Exec;

/// CPUID.1:ECX.OSXSAVE and CPUID.1:EDX.APIC.
const OSXSAVE: u32 = 1 << 27;
const APIC: u32 = 1 << 9;

/// CPUID.
pub fn cpuid(cpu: &mut Cpu) -> Exec<Flow> {
    let answer = query(cpu, cpu.gpr[reg::RAX] as u32, cpu.gpr[reg::RCX] as u32);
    cpu.gpr[reg::RAX] = u64::from(answer.eax);
    cpu.gpr[reg::RBX] = u64::from(answer.ebx);
    cpu.gpr[reg::RCX] = u64::from(answer.ecx);
    cpu.gpr[reg::RDX] = u64::from(answer.edx);
    Ok(Flow::Next)
}

/// What CPUID answers on this vCPU now.
pub fn query(cpu: &Cpu, leaf: u32, sub: u32) -> CpuidLeaf {
    let (leaf, sub, mut answer) = find(cpu, leaf, sub);
    let id = cpu.apic.id();
    match leaf {
        1 => {
            answer.ebx = answer.ebx & 0x00ff_ffff | id << 24;
            answer.ecx &= !OSXSAVE;
            if cpu.cr4 & control::CR4_OSXSAVE != 0 {
                answer.ecx |= OSXSAVE;
            }
            // The bit follows IA32_APIC_BASE (Intel SDM vol. 3, 11.4.3).
            if cpu.apic.base() & 1 << 11 == 0 {
                answer.edx &= !APIC;
            }
        }
        0xb | 0x1f => answer.edx = id,
        0xd if sub == 0 => answer.ebx = standard_size(cpu, cpu.xcr0),
        0xd if sub == 1 && answer.eax & 2 != 0 => answer.ebx = compacted_size(cpu, cpu.xcr0),
        0x8000_001e => answer.eax = id,
        _ => {}
    }
    answer
}

/// The table's answer, and which leaf it is. Leaves past the last basic one read as the last on
/// Intel processors (SDM vol. 2, CPUID) and as zeros on AMD's.
fn find(cpu: &Cpu, leaf: u32, sub: u32) -> (u32, u32, CpuidLeaf) {
    let table = &cpu.shared.config.cpuid.leaves;
    let has = |leaf: u32| table.iter().any(|l| l.0 == leaf);
    let last = cpu.cpuid_leaf(0, 0).eax;
    let range_end = match leaf >> 16 {
        0 => last,
        _ => cpu.cpuid_leaf(leaf & 0xffff_0000, 0).eax,
    };
    let known = leaf <= range_end && (leaf >> 16 == 0 || range_end >> 16 == leaf >> 16);
    let leaf = if known || cpu.is_amd() { leaf } else { last };
    if !known && cpu.is_amd() || !has(leaf) {
        return (leaf, sub, CpuidLeaf::default());
    }
    if let Some(found) = table.iter().find(|l| l.0 == leaf && l.1 == sub) {
        return *found;
    }
    // A leaf without sub-leaves does not look at ECX; one with them reads as zeros past the last,
    // but topology leaves still echo the level (SDM vol. 2, CPUID leaf 0BH).
    let indexed = table.iter().any(|l| l.0 == leaf && l.1 != 0) || matches!(leaf, 4 | 7 | 0xb | 0xd | 0x1f);
    let ecx = if matches!(leaf, 0xb | 0x1f) { sub & 0xff } else { 0 };
    if indexed {
        (leaf, sub, CpuidLeaf { ecx, ..CpuidLeaf::default() })
    } else {
        (leaf, 0, cpu.cpuid_leaf(leaf, 0))
    }
}

/// Bytes of the standard XSAVE area for the components in `mask` (SDM vol. 1, 13.4).
pub fn standard_size(cpu: &Cpu, mask: u64) -> u32 {
    extended(mask).map(|i| cpu.cpuid_leaf(0xd, i)).map(|l| l.ebx.saturating_add(l.eax)).fold(576, u32::max)
}

/// Bytes of the compacted area for the components in `mask`.
pub fn compacted_size(cpu: &Cpu, mask: u64) -> u32 {
    extended(mask).map(|i| cpu.cpuid_leaf(0xd, i)).fold(576, |size, leaf| {
        let start = if leaf.ecx & 2 != 0 { (size + 63) & !63 } else { size };
        start.saturating_add(leaf.eax)
    })
}

fn extended(mask: u64) -> impl Iterator<Item = u32> {
    (2..63).filter(move |i| mask >> i & 1 != 0)
}
