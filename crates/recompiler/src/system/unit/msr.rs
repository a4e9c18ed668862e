use engine::{reg, seg};

use super::GP;
use crate::cpu::{Cpu, control};
use crate::exception::Exec;
use crate::system::features::Reg;
use crate::system::msr::{export, import, index::*, read, write};
use crate::testing::*;

#[test]
fn registers_hold_what_was_written() {
    let mut cpu = long();
    for (msr, value) in [
        (STAR, 0x0023_0008_1234_5678),
        (LSTAR, 0xffff_8000_0000_1000),
        (CSTAR, 0x1000),
        (FMASK, 0x4_7700),
        (FS_BASE, 0x7fff_f000),
        (GS_BASE, 0xffff_8880_0000_0000),
        (KERNEL_GS_BASE, 0x5000),
        (SYSENTER_CS, 0x10),
        (SYSENTER_ESP, 0xffff_8000_0000_2000),
        (SYSENTER_EIP, 0x9000),
        (TSC_AUX, 3),
        (PAT, 0x0007_0406_0007_0401),
        (MTRR_DEF_TYPE, 0xc06),
        (MTRR_PHYSBASE0, 0xc000_0000),
        (MTRR_PHYSMASK7, 0xff_c000_0800),
        (MTRR_FIX64K, 0x0606_0606_0606_0606),
        (MTRR_FIX4K_LAST, 0x0505_0505_0505_0505),
        (SYSENTER_CS, 0),
    ] {
        cpu.gpr[reg::RCX] = u64::from(msr);
        cpu.gpr[reg::RAX] = value & 0xffff_ffff | 0xabcd << 32;
        cpu.gpr[reg::RDX] = value >> 32;
        cpu.run(&[0x0f, 0x30]).unwrap();
        cpu.run(&[0x0f, 0x32]).unwrap();
        assert_eq!(cpu.gpr[reg::RDX] << 32 | cpu.gpr[reg::RAX], value, "{msr:x}");
        assert_eq!(cpu.gpr[reg::RAX] >> 32, 0);
    }
    assert_eq!(cpu.segments[seg::FS].base, 0x7fff_f000);
    go_long(&mut cpu, 3);
    assert_eq!(cpu.run(&[0x0f, 0x32]), Err(GP));
    assert_eq!(cpu.run(&[0x0f, 0x30]), Err(GP));
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let mut cpu = long();
    for (msr, value) in [
        (LSTAR, 1 << 47),
        (GS_BASE, 1 << 63),
        (SYSENTER_EIP, 1 << 50),
        (FMASK, 1 << 32),
        (TSC_AUX, 1 << 32),
        (PAT, 2),
        (MTRR_DEF_TYPE, 0x100),
        (MTRR_DEF_TYPE, 2),
        (MTRR_PHYSBASE0, 1 << 40),
        (MTRR_PHYSBASE0, 0x103),
        (MTRR_PHYSBASE0 + 1, 0x7ff),
        (MTRR_FIX4K_FIRST, 7),
        (MTRRCAP, 0),
        (EFER, 1 << 12),
        (EFER, 2),
        (DEBUGCTL, 2),
        (FEATURE_CONTROL, 5),
        (MCG_CAP, 0),
        (0x802, 0),
        (0x1234, 0),
        (0xc001_0015, 0),
    ] {
        assert_eq!(write(&mut cpu, msr, value), Err(GP), "{msr:x} {value:x}");
    }
    for msr in [0x800, 0x1234, PRED_CMD, SPEC_CTRL, 0xc001_0015, 0x400, 0x4b56_4d00, 0x4000_0000] {
        assert_eq!(read(&cpu, msr), Err(GP), "{msr:x}");
    }
}

#[test]
fn unknown_registers_may_be_tolerated() {
    let mut cpu = cpu_with(0x756e_6547, |config| config.strict_msr = false);
    write(&mut cpu, 0x1234, 5).unwrap();
    assert_eq!(read(&cpu, 0x1234), Ok(0));
    assert_eq!(write(&mut cpu, PAT, 2), Err(GP), "known ones are still checked");
}

fn with_bit(leaf: u32, register: Reg, bit: u32) -> Box<Cpu> {
    cpu_with(0x756e_6547, |config| {
        for l in config.cpuid.leaves.iter_mut().filter(|l| l.0 == leaf && l.1 == 0) {
            let value = match register {
                Reg::A => &mut l.2.eax,
                Reg::B => &mut l.2.ebx,
                Reg::C => &mut l.2.ecx,
                Reg::D => &mut l.2.edx,
            };
            *value |= 1 << bit;
        }
    })
}

#[test]
fn speculation_control_follows_cpuid() {
    let mut cpu = with_bit(7, Reg::D, 26);
    write(&mut cpu, SPEC_CTRL, 1).unwrap();
    assert_eq!(read(&cpu, SPEC_CTRL), Ok(1));
    assert_eq!(write(&mut cpu, SPEC_CTRL, 1 << 20), Err(GP));
    write(&mut cpu, PRED_CMD, 1).unwrap();
    assert_eq!(write(&mut cpu, PRED_CMD, 2), Err(GP));
    assert_eq!(write(&mut cpu, FLUSH_CMD, 1), Err(GP));
    assert_eq!(read(&cpu, PRED_CMD), Err(GP), "write-only");
}

#[test]
fn efer() {
    use control::*;
    let mut cpu = protected();
    write(&mut cpu, EFER, EFER_LME | EFER_SCE | EFER_NXE | EFER_LMA).unwrap();
    assert_eq!(cpu.efer, EFER_LME | EFER_SCE | EFER_NXE, "LMA is the processor's");
    cpu.cr0 |= CR0_PG;
    cpu.efer |= EFER_LMA;
    assert_eq!(write(&mut cpu, EFER, EFER_SCE), Err(GP), "LME with paging on");
    write(&mut cpu, EFER, EFER_LME).unwrap();
    assert_eq!(cpu.efer, EFER_LME | EFER_LMA);
}

fn near(value: Exec<u64>, expected: u64) -> bool {
    value.unwrap().wrapping_sub(expected) < 1 << 36
}

#[test]
fn time_stamp_counter_and_its_adjustment() {
    let mut cpu = long();
    write(&mut cpu, TSC, 1 << 50).unwrap();
    assert!(near(read(&cpu, TSC), 1 << 50));
    let adjust = read(&cpu, TSC_ADJUST).unwrap();
    write(&mut cpu, TSC_ADJUST, adjust.wrapping_add(1 << 40)).unwrap();
    assert!(near(read(&cpu, TSC), (1 << 50) + (1 << 40)));
    write(&mut cpu, TSC, 0).unwrap();
    assert!(near(read(&cpu, TSC), 0));
    let now = read(&cpu, TSC_ADJUST).unwrap();
    assert!(adjust.wrapping_sub(1 << 50).wrapping_sub(now) < 1 << 36, "follows the counter");
}

#[test]
fn vendors_have_their_own() {
    let mut amd = cpu_of(0x6874_7541);
    assert_eq!(read(&amd, 0xc001_1029), Ok(2));
    write(&mut amd, 0xc001_1029, 0).unwrap();
    assert_eq!(read(&amd, 0xc001_1029), Ok(2), "LFENCE stays serializing");
    write(&mut amd, 0xc001_0015, 0x0100_0011).unwrap();
    assert_eq!(read(&amd, 0xc001_0015), Ok(0x0100_0011));
    write(&mut amd, 0xc001_0010, 1 << 21).unwrap();
    assert_eq!(read(&amd, 0xc001_0010), Ok(0));
    assert_eq!(read(&amd, MISC_ENABLE), Err(GP));
    let mut intel = cpu();
    write(&mut intel, MISC_ENABLE, 0).unwrap();
    assert_eq!(read(&intel, MISC_ENABLE), Ok(0x1800));
    write(&mut intel, BIOS_SIGN_ID, 0).unwrap();
    assert_eq!(read(&intel, BIOS_SIGN_ID), Ok(1 << 32));
}

#[test]
fn the_apic_is_reached_by_its_registers() {
    let mut cpu = long();
    assert_eq!(read(&cpu, 0x802), Err(GP));
    write(&mut cpu, APIC_BASE, 0xfee0_0d00).unwrap();
    assert_eq!(read(&cpu, 0x803), Ok(0x5_0014));
    assert_eq!(write(&mut cpu, APIC_BASE, 0xfee0_0900), Err(GP));
    write(&mut cpu, 0x80f, 0x1ff).unwrap();
    write(&mut cpu, 0x832, 0x4_0040).unwrap();
    write(&mut cpu, TSC_DEADLINE, 1).unwrap();
    assert_eq!(cpu.apic.acknowledge(), Some(0x40), "a deadline that has passed");
}

#[test]
fn counters_agree_after_a_state_was_loaded() {
    let mut cpu = long();
    let list = export(&cpu);
    std::thread::sleep(std::time::Duration::from_millis(2));
    import(&mut cpu, &list).unwrap();
    assert_eq!(cpu.tsc_offset, 0, "as on the vCPUs whose state nobody touched");
    // Two vCPUs of another VM, of which the guest has set one ahead.
    let saved = read(&cpu, TSC).unwrap() + (1 << 55);
    import(&mut cpu, &[(TSC, saved), (TSC_ADJUST, 0)]).unwrap();
    let first = cpu.tsc_offset;
    import(&mut cpu, &[(TSC, saved + 5000), (TSC_ADJUST, 0)]).unwrap();
    assert_eq!(cpu.tsc_offset, first);
    import(&mut cpu, &[(TSC, saved + (1 << 50)), (TSC_ADJUST, 1 << 50)]).unwrap();
    assert_eq!(cpu.tsc_offset, first + (1 << 50));
    assert_eq!(read(&cpu, TSC_ADJUST), Ok(1 << 50));
}

#[test]
fn what_is_exported_can_be_imported() {
    let mut cpu = long();
    for (msr, value) in [
        (LSTAR, 0x1000),
        (KERNEL_GS_BASE, 0x2000),
        (PAT, 6),
        (MTRR_DEF_TYPE, 0x806),
        (TSC_AUX, 9),
        (TSC, 1 << 60),
    ] {
        write(&mut cpu, msr, value).unwrap();
    }
    let mut list = export(&cpu);
    assert!(list.windows(2).all(|w| w[0].0 < w[1].0));
    let mut other = long();
    list.push((0x4b56_4d01, 77));
    list.push((MTRRCAP, 1));
    import(&mut other, &list).unwrap();
    assert!(near(read(&other, TSC), 1 << 60));
    let fixed = |cpu: &Cpu| export(cpu).into_iter().filter(|m| m.0 != TSC).collect::<Vec<_>>();
    assert_eq!(fixed(&other), fixed(&cpu));
    assert!(import(&mut other, &[(PAT, 2)]).is_err());
}
