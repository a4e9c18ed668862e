use engine::{Segment, reg, seg};

use super::{GP, UD};
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, vector};
use crate::system::Flow;
use crate::testing::*;

const TO_CR0: &[u8] = &[0x0f, 0x22, 0xc0];
const TO_CR3: &[u8] = &[0x0f, 0x22, 0xd8];
const TO_CR4: &[u8] = &[0x0f, 0x22, 0xe0];
const TO_CR8: &[u8] = &[0x44, 0x0f, 0x22, 0xc0];
const FROM_CR8: &[u8] = &[0x44, 0x0f, 0x20, 0xc0];
const CLI: &[u8] = &[0xfa];
const STI: &[u8] = &[0xfb];
const PUSHF: &[u8] = &[0x9c];
const POPF: &[u8] = &[0x9d];

fn with(cpu: &mut Cpu, rax: u64, bytes: &[u8]) -> crate::exception::Exec<Flow> {
    cpu.gpr[reg::RAX] = rax;
    cpu.run(bytes)
}

#[test]
fn cr0_refuses_what_no_processor_can_be_in() {
    use control::*;
    let mut cpu = protected();
    for bad in [CR0_PG, CR0_PE | CR0_NW] {
        assert_eq!(with(&mut cpu, bad, TO_CR0), Err(GP), "{bad:x}");
    }
    with(&mut cpu, CR0_PE | 0x1000, TO_CR0).unwrap();
    assert_eq!(cpu.cr0, CR0_PE | CR0_ET, "bits that do not exist stay clear, ET stays set");
    cpu.at_level(3);
    assert_eq!(with(&mut cpu, CR0_PE, TO_CR0), Err(GP));
    assert_eq!(cpu.run(&[0x0f, 0x22, 0xc8]), Err(UD), "CR1, before the privilege");
}

#[test]
fn long_mode_comes_and_goes_with_paging() {
    use control::*;
    let mut cpu = protected();
    cpu.efer |= EFER_LME;
    assert_eq!(with(&mut cpu, CR0_PE | CR0_PG, TO_CR0), Err(GP), "without PAE");
    with(&mut cpu, CR4_PAE, TO_CR4).unwrap();
    with(&mut cpu, CR0_PE | CR0_PG, TO_CR0).unwrap();
    assert_eq!(cpu.efer, EFER_LME | EFER_LMA);
    assert_eq!(with(&mut cpu, 0, TO_CR4), Err(GP), "PAE must stay");
    cpu.segments[seg::CS].access |= Segment::LONG;
    cpu.segments[seg::CS].access &= !Segment::BIG;
    assert_eq!(with(&mut cpu, CR0_PE, TO_CR0), Err(GP), "from 64-bit code");
    assert_eq!(with(&mut cpu, 1 << 32 | CR0_PE | CR0_PG, TO_CR0), Err(GP));
    assert_eq!(with(&mut cpu, 1 << 40, TO_CR3), Err(GP), "past the physical width");
    cpu.segments[seg::CS].access &= !Segment::LONG;
    cpu.segments[seg::CS].access |= Segment::BIG;
    with(&mut cpu, CR0_PE, TO_CR0).unwrap();
    assert_eq!(cpu.efer, EFER_LME);
}

#[test]
fn pae_pointers_are_loaded_and_checked() {
    use control::*;
    let mut cpu = protected();
    cpu.poke(0x4000, 8, 0x5001);
    cpu.poke(0x4008, 8, 0x6003);
    with(&mut cpu, 0x4000, TO_CR3).unwrap();
    with(&mut cpu, CR4_PAE, TO_CR4).unwrap();
    assert_eq!(with(&mut cpu, CR0_PE | CR0_PG, TO_CR0), Err(GP), "bit 1 of the second is reserved");
    assert_eq!(cpu.cr0 & CR0_PG, 0);
    cpu.poke(0x4008, 8, 0x6000);
    with(&mut cpu, CR0_PE | CR0_PG, TO_CR0).unwrap();
    assert_eq!(cpu.pdptes, [0x5001, 0x6000, 0, 0]);
    cpu.poke(0x4020, 8, 0x7001);
    with(&mut cpu, 0x4020, TO_CR3).unwrap();
    assert_eq!(cpu.pdptes, [0x7001, 0, 0, 0]);
    cpu.poke(0x4038, 8, 1 << 50 | 1);
    assert_eq!(with(&mut cpu, 0x4020, TO_CR3), Err(GP));
    cpu.poke(0x4038, 8, 0x8001);
    with(&mut cpu, CR0_PE | CR0_PG | CR0_CD, TO_CR0).unwrap();
    assert_eq!(cpu.pdptes[3], 0x8001, "a change of CD loads them too");
}

#[test]
fn cr4_has_the_bits_that_cpuid_promises() {
    use control::*;
    let mut cpu = cpu_with(0x756e_6547, |config| {
        for leaf in &mut config.cpuid.leaves {
            if leaf.0 == 7 {
                leaf.2.ebx = !(1 << 20);
            }
        }
    });
    set_up(&mut cpu);
    with(&mut cpu, CR4_SMEP | CR4_PGE | CR4_OSFXSR, TO_CR4).unwrap();
    for bad in [CR4_SMAP, 1 << 12, 1 << 13, CR4_PCIDE, 1 << 15] {
        assert_eq!(with(&mut cpu, bad, TO_CR4), Err(GP), "{bad:x}");
    }
    assert_eq!(cpu.cr4, CR4_SMEP | CR4_PGE | CR4_OSFXSR);
}

#[test]
fn cr8_is_the_task_priority() {
    let mut cpu = long();
    with(&mut cpu, 9, TO_CR8).unwrap();
    assert_eq!(cpu.apic.cr8(), 9);
    with(&mut cpu, 0, FROM_CR8).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 9);
    assert_eq!(with(&mut cpu, 16, TO_CR8), Err(GP));
}

#[test]
fn debug_registers() {
    let mut cpu = long();
    with(&mut cpu, 0xffff_ffff, &[0x0f, 0x23, 0xf0]).unwrap();
    assert_eq!(cpu.dr[6], 0xffff_efff);
    with(&mut cpu, 0x5ff, &[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!(cpu.dr[7], 0x5ff);
    assert_eq!(with(&mut cpu, 1 << 32, &[0x0f, 0x23, 0xf8]), Err(GP));
    with(&mut cpu, 0x1234, &[0x0f, 0x23, 0xe0]).unwrap();
    assert_eq!(cpu.dr[6], 0xffff_0ff0 | 0x1234 & 0xe00f, "DR4 is DR6");
    cpu.cr4 |= control::CR4_DE;
    assert_eq!(cpu.run(&[0x0f, 0x21, 0xe0]), Err(UD));
    with(&mut cpu, 1 << 13, &[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!(cpu.run(&[0x0f, 0x21, 0xf0]), Err(Exception::plain(vector::DB)), "general detect");
    assert_eq!((cpu.dr[6] >> 13 & 1, cpu.dr[7] >> 13 & 1), (1, 0));
    cpu.run(&[0x0f, 0x21, 0xf0]).unwrap();
    go_long(&mut cpu, 3);
    assert_eq!(cpu.run(&[0x0f, 0x21, 0xf0]), Err(GP));
}

#[test]
fn machine_status_word() {
    let mut cpu = protected();
    with(&mut cpu, 0xe, &[0x0f, 0x01, 0xf0]).unwrap();
    assert_eq!(cpu.cr0 & 0xf, 0xf, "LMSW can't clear PE");
    cpu.run(&[0x0f, 0x06]).unwrap();
    assert_eq!(cpu.cr0 & 0xf, 7);
    cpu.at_level(3);
    cpu.gpr[reg::RBX] = 0x4000;
    cpu.run(&[0x0f, 0x01, 0x23]).unwrap();
    assert_eq!(cpu.look(0x4000, 4), cpu.cr0 & 0xffff);
    cpu.cr4 |= control::CR4_UMIP;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0x23]), Err(GP));
    assert_eq!(cpu.run(&[0x0f, 0x06]), Err(GP));
}

#[test]
fn the_interrupt_flag_and_its_virtual_forms() {
    let mut cpu = protected();
    cpu.run(STI).unwrap();
    assert!(cpu.rflags & flag::IF != 0 && cpu.shadow);
    cpu.shadow = false;
    cpu.run(STI).unwrap();
    assert!(!cpu.shadow, "it was on already");
    cpu.at_level(3);
    assert_eq!(cpu.run(CLI), Err(GP));
    cpu.rflags |= flag::IOPL;
    cpu.run(CLI).unwrap();
    assert_eq!(cpu.rflags & flag::IF, 0);
    cpu.rflags = 2;
    cpu.cr4 |= control::CR4_PVI;
    cpu.run(STI).unwrap();
    assert_eq!(cpu.rflags, 2 | flag::VIF);
    cpu.run(CLI).unwrap();
    cpu.rflags |= flag::VIP;
    assert_eq!(cpu.run(STI), Err(GP));
}

fn virtual_8086(iopl: u64) -> Box<Cpu> {
    let mut cpu = protected();
    cpu.rflags = 2 | flag::VM | iopl << 12;
    cpu.cpl = 3;
    for segment in &mut cpu.segments[..6] {
        *segment = Segment { base: 0x10000, limit: 0xffff, access: 0xf3, selector: 0x1000 };
    }
    cpu.gpr[reg::RSP] = 0x800;
    cpu
}

#[test]
fn flag_pushes_in_virtual_8086_mode() {
    let mut cpu = virtual_8086(0);
    assert_eq!(cpu.run(PUSHF), Err(GP));
    assert_eq!(cpu.run(POPF), Err(GP));
    cpu.cr4 |= control::CR4_VME;
    cpu.rflags |= flag::VIF;
    cpu.run(PUSHF).unwrap();
    assert_eq!(cpu.look(0x107fe, 2), 0x3202, "IF shows VIF, IOPL 3");
    assert_eq!(cpu.run(&[0x66, 0x9c]), Err(GP), "no 32-bit form");
    cpu.poke(0x107fe, 2, 0x0001);
    cpu.run(POPF).unwrap();
    assert_eq!(cpu.rflags, 3 | flag::VM);
    cpu.rflags |= flag::VIP;
    cpu.gpr[reg::RSP] = 0x7fe;
    cpu.poke(0x107fe, 2, flag::IF);
    assert_eq!(cpu.run(POPF), Err(GP));
    let mut cpu = virtual_8086(3);
    cpu.poke(0x10800, 2, flag::IF);
    cpu.run(POPF).unwrap();
    assert_eq!(cpu.rflags, 2 | flag::VM | flag::IOPL | flag::IF);
}

#[test]
fn popf_by_privilege_and_size() {
    let all = 0xffff_ffff & !flag::TF;
    let mut cpu = protected();
    cpu.poke(STACK0, 4, all);
    cpu.run(POPF).unwrap();
    let user = flag::CF | flag::PF | flag::AF | flag::ZF | flag::SF | flag::DF | flag::OF | flag::NT;
    assert_eq!(cpu.rflags, 2 | user | flag::AC | flag::ID | flag::IF | flag::IOPL);
    assert_eq!(cpu.gpr[reg::RSP], STACK0 + 4);
    let mut cpu = protected();
    cpu.at_level(3);
    cpu.poke(STACK3, 4, all);
    cpu.run(POPF).unwrap();
    assert_eq!(cpu.rflags, 2 | user | flag::AC | flag::ID);
    cpu.gpr[reg::RSP] = STACK3;
    cpu.poke(STACK3, 4, 0);
    cpu.run(&[0x66, 0x9d]).unwrap();
    assert_eq!(cpu.rflags, 2 | flag::AC | flag::ID, "16 bits only");
    assert_eq!(cpu.gpr[reg::RSP], STACK3 + 2);
    cpu.rflags |= flag::RF;
    cpu.run(PUSHF).unwrap();
    assert_eq!(cpu.look(STACK3 - 2, 4), 2 | flag::AC | flag::ID, "RF reads 0");
}

#[test]
fn smap_instructions_only_at_cpl_0() {
    let mut cpu = long();
    cpu.run(&[0x0f, 0x01, 0xcb]).unwrap();
    assert_ne!(cpu.rflags & flag::AC, 0);
    cpu.run(&[0x0f, 0x01, 0xca]).unwrap();
    assert_eq!(cpu.rflags & flag::AC, 0);
    go_long(&mut cpu, 3);
    assert_eq!(cpu.run(&[0x0f, 0x01, 0xcb]), Err(UD));
}

#[test]
fn time_stamps() {
    let mut cpu = long();
    cpu.tsc_offset = 5u64.wrapping_sub(crate::apic::host_tsc());
    cpu.msr.tsc_aux = 0x77;
    cpu.gpr[reg::RCX] = u64::MAX;
    cpu.run(&[0x0f, 0x01, 0xf9]).unwrap();
    assert_eq!((cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]), (0x77, 0));
    assert!(cpu.gpr[reg::RAX] >= 5);
    cpu.run(&[0xf3, 0x0f, 0xc7, 0xf8]).unwrap();
    assert_eq!(cpu.gpr[reg::RAX], 0x77);
    go_long(&mut cpu, 3);
    cpu.run(&[0x0f, 0x31]).unwrap();
    cpu.cr4 |= control::CR4_TSD;
    assert_eq!(cpu.run(&[0x0f, 0x31]), Err(GP));
    assert_eq!(cpu.run(&[0x0f, 0x33]), Err(GP), "no counters");
}

#[test]
fn extended_control_register() {
    let mut cpu = long();
    let xsetbv: &[u8] = &[0x0f, 0x01, 0xd1];
    let set = |cpu: &mut Cpu, value: u64| {
        (cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]) = (0, 0);
        with(cpu, value, xsetbv)
    };
    assert_eq!(set(&mut cpu, 7), Err(UD));
    cpu.cr4 |= control::CR4_OSXSAVE;
    for bad in [0, 2, 5, 15] {
        assert_eq!(set(&mut cpu, bad), Err(GP), "{bad}");
    }
    set(&mut cpu, 7).unwrap();
    cpu.run(&[0x0f, 0x01, 0xd0]).unwrap();
    assert_eq!((cpu.gpr[reg::RAX], cpu.xcr0), (7, 7));
    cpu.gpr[reg::RCX] = 2;
    assert_eq!(cpu.run(&[0x0f, 0x01, 0xd0]), Err(GP));
    go_long(&mut cpu, 3);
    assert_eq!(set(&mut cpu, 1), Err(GP));
}

#[test]
fn cpuid_shows_live_state() {
    let mut cpu = long();
    let ask = |cpu: &mut Cpu, leaf: u64, sub: u64| {
        cpu.gpr[reg::RCX] = sub;
        with(cpu, leaf, &[0x0f, 0xa2]).unwrap();
        [cpu.gpr[reg::RAX], cpu.gpr[reg::RBX], cpu.gpr[reg::RCX], cpu.gpr[reg::RDX]]
    };
    assert_eq!(ask(&mut cpu, 1, 0)[2] >> 27 & 1, 0);
    assert_eq!(ask(&mut cpu, 0xd, 0), [7, 576, 832, 0]);
    cpu.cr4 |= control::CR4_OSXSAVE;
    cpu.xcr0 = 7;
    assert_eq!(ask(&mut cpu, 1, 0)[2] >> 27 & 1, 1);
    assert_eq!(ask(&mut cpu, 0xd, 0), [7, 832, 832, 0]);
    assert_eq!(ask(&mut cpu, 0xd, 1)[1], 832);
    assert_eq!(ask(&mut cpu, 0xd, 9), [0; 4]);
    assert_eq!(ask(&mut cpu, 1, 0)[3] >> 9 & 1, 1);
    cpu.apic.set_base(0xfee0_0100).unwrap();
    assert_eq!(ask(&mut cpu, 1, 5)[3] >> 9 & 1, 0, "ECX does not matter there");
    assert_eq!(ask(&mut cpu, 0x30, 0), [7, 832, 832, 0], "as the last basic leaf");
    let mut amd = cpu_of(0x6874_7541);
    assert_eq!(ask(&mut amd, 0x30, 0), [0; 4]);
}

#[test]
fn halting_and_cache_instructions() {
    let mut cpu = long();
    assert_eq!(cpu.run(&[0xf4]), Ok(Flow::Halt));
    for bytes in [&[0x0f, 0x08][..], &[0x0f, 0x09], &[0xf3, 0x0f, 0x09]] {
        assert_eq!(cpu.run(bytes), Ok(Flow::Next));
    }
    cpu.gpr[reg::RBX] = 0x4000;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x3b]), Ok(Flow::Next), "clflush");
    cpu.gpr[reg::RBX] = 1 << 63;
    assert_eq!(cpu.run(&[0x0f, 0xae, 0x3b]), Err(GP));
    assert_eq!(cpu.run(&[0x0f, 0x01, 0x3b]), Ok(Flow::Next), "invlpg of no address");
    go_long(&mut cpu, 3);
    for bytes in [&[0xf4][..], &[0x0f, 0x08], &[0x0f, 0x09], &[0x0f, 0x01, 0x3b]] {
        assert_eq!(cpu.run(bytes), Err(GP));
    }
    // MONITOR, MWAIT, RSM, UD0–UD2.
    for bytes in
        [&[0x0f, 0x01, 0xc8][..], &[0x0f, 0x01, 0xc9], &[0x0f, 0xaa], &[0x0f, 0x0b], &[0x0f, 0xb9, 0xc0]]
    {
        assert_eq!(cpu.run(bytes), Err(UD), "{bytes:x?}");
    }
}
