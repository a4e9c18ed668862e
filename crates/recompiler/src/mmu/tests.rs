use super::*;
use crate::cpu::{Cpu, control, flag};
use crate::exception::{Exception, Exec};
use crate::testing::{RAM, cpu};

const ROOT: u64 = 0x10000;

fn long(cpu: &mut Cpu) {
    cpu.cr0 |= control::CR0_PE | control::CR0_PG | control::CR0_WP;
    cpu.cr4 |= control::CR4_PAE;
    cpu.efer |= control::EFER_LMA | control::EFER_LME | control::EFER_NXE;
    cpu.cr3 = ROOT;
}

/// Maps linear `0x40_0000 + index * 4096` in 4-level tables that allow everything above.
fn map(cpu: &mut Cpu, index: u64, entry: u64) {
    cpu.poke(ROOT, 8, 0x11007);
    cpu.poke(0x11000, 8, 0x12007);
    cpu.poke(0x12010, 8, 0x13007);
    cpu.poke(0x13000 + index * 8, 8, entry);
}

const AT: u64 = 0x40_0000;
const READ: Access = Access { write: false, fetch: false, user: false, smap_override: false };
const WRITE: Access = Access { write: true, ..READ };
const FETCH: Access = Access { fetch: true, ..READ };
const USER: Access = Access { user: true, ..READ };
const USER_WRITE: Access = Access { write: true, ..USER };
const USER_FETCH: Access = Access { fetch: true, ..USER };

fn code(result: Exec<Translation>) -> Option<u32> {
    let fault = result.err()?;
    assert_eq!(fault.vector, 14);
    fault.error
}

#[test]
fn four_levels_translate_and_mark() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0x5107);
    cpu.cr4 |= control::CR4_PGE;
    let found = translate(&mut cpu, AT + 0x123, READ).unwrap();
    let expected =
        Translation { gpa: 0x5123, page_size: 4096, global: true, user: true, writable: true, dirty: false };
    assert_eq!(found, expected);
    assert_eq!([cpu.look(ROOT, 8), cpu.look(0x12010, 8), cpu.look(0x13000, 8)], [0x11027, 0x13027, 0x5127]);
    assert!(translate(&mut cpu, AT, WRITE).unwrap().dirty);
    assert_eq!(cpu.look(0x13000, 8), 0x5167);
    assert!(translate(&mut cpu, AT, READ).unwrap().dirty);
}

#[test]
fn large_pages_keep_their_offset_and_refuse_low_bits() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0);
    cpu.poke(0x12018, 8, 0x20_0083);
    let found = translate(&mut cpu, 0x7f_fff8, READ).unwrap();
    assert_eq!((found.gpa, found.page_size), (0x3f_fff8, 1 << 21));
    cpu.poke(0x12018, 8, 0x20_2083);
    assert_eq!(code(translate(&mut cpu, 0x7f_fff8, READ)), Some(9));
    cpu.poke(0x11008, 8, 0x4000_0083);
    let found = translate(&mut cpu, 0x7fff_fff8, READ).unwrap();
    assert_eq!((found.gpa, found.page_size), (0x7fff_fff8, 1 << 30));
    cpu.paging.gigabyte_pages = false;
    assert_eq!(code(translate(&mut cpu, 0x7fff_fff8, READ)), Some(9));
}

#[test]
fn faults_tell_what_was_wrong_and_mark_nothing() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0x5001);
    assert_eq!(code(translate(&mut cpu, AT, USER)), Some(5));
    assert_eq!(code(translate(&mut cpu, AT, WRITE)), Some(3));
    assert_eq!(code(translate(&mut cpu, AT, USER_WRITE)), Some(7));
    assert_eq!(code(translate(&mut cpu, AT, USER_FETCH)), Some(0x15));
    assert_eq!(code(translate(&mut cpu, AT + 0x1000, USER_WRITE)), Some(6));
    assert_eq!(translate(&mut cpu, AT + 0x1008, READ), Err(Exception::page_fault(AT + 0x1008, 0)));
    assert_eq!(cpu.look(ROOT, 8), 0x11007);
    // Supervisor stores pass without WP.
    cpu.cr0 &= !control::CR0_WP;
    assert!(translate(&mut cpu, AT, WRITE).unwrap().writable);
    assert_eq!(code(translate(&mut cpu, AT, USER_WRITE)), Some(7));
    // Beyond MAXPHYADDR (48 bits in these tests' CPUID).
    map(&mut cpu, 0, 0x5001 | 1 << 50);
    assert_eq!(code(translate(&mut cpu, AT, READ)), Some(9));
    // Tables outside of RAM read as ones.
    cpu.cr3 = RAM * 4;
    assert_eq!(code(translate(&mut cpu, AT, READ)), Some(9));
}

#[test]
fn no_execute_smep_and_smap() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0x5007 | 1 << 63);
    assert_eq!(code(translate(&mut cpu, AT, FETCH)), Some(0x11));
    cpu.efer &= !control::EFER_NXE;
    assert_eq!(code(translate(&mut cpu, AT, READ)), Some(9));
    assert_eq!(code(translate(&mut cpu, AT, FETCH)), Some(9));
    map(&mut cpu, 0, 0x5007);
    assert!(translate(&mut cpu, AT, FETCH).is_ok());
    cpu.cr4 |= control::CR4_SMEP;
    assert_eq!(code(translate(&mut cpu, AT, FETCH)), Some(0x11));
    assert!(translate(&mut cpu, AT, READ).is_ok());
    assert!(translate(&mut cpu, AT, USER_FETCH).is_ok());
    cpu.cr4 |= control::CR4_SMAP;
    assert_eq!(code(translate(&mut cpu, AT, READ)), Some(1));
    assert!(translate(&mut cpu, AT, Access { smap_override: true, ..WRITE }).is_ok());
    assert!(translate(&mut cpu, AT, USER_WRITE).is_ok());
}

#[test]
fn pae_uses_the_cached_pointers() {
    let mut cpu = cpu();
    cpu.cr0 |= control::CR0_PE | control::CR0_PG;
    cpu.cr4 |= control::CR4_PAE;
    cpu.poke(ROOT + 0x20, 8, 0x12001);
    cpu.poke(ROOT + 0x38, 8, 0x12001);
    cpu.poke(0x12010, 8, 0x13007);
    cpu.poke(0x13000, 8, 0x6003);
    cpu.pdptes = read_pdptes(&cpu, ROOT + 0x20).unwrap();
    cpu.cr3 = 0;
    assert_eq!(translate(&mut cpu, AT | 4, READ).unwrap().gpa, 0x6004);
    assert_eq!(translate(&mut cpu, 0xc000_0000 | AT, READ).unwrap().gpa, 0x6000);
    assert_eq!(code(translate(&mut cpu, 0x4000_0000 | AT, READ)), Some(0));
    // Bits 62–52 are reserved here, not ignored.
    cpu.poke(0x13000, 8, 0x6003 | 1 << 55);
    assert_eq!(code(translate(&mut cpu, AT, READ)), Some(9));
    cpu.poke(ROOT + 0x20, 8, 0x12003);
    assert!(read_pdptes(&cpu, ROOT + 0x20).is_none());
}

#[test]
fn two_levels_with_and_without_large_pages() {
    let mut cpu = cpu();
    cpu.cr0 |= control::CR0_PE | control::CR0_PG;
    cpu.cr3 = ROOT;
    cpu.poke(ROOT + 4, 4, 0x12007);
    cpu.poke(0x12000 + 5 * 4, 4, 0x7007);
    assert_eq!(translate(&mut cpu, AT + 0x5008, WRITE).unwrap().gpa, 0x7008);
    assert_eq!([cpu.look(ROOT + 4, 4), cpu.look(0x12014, 4)], [0x12027, 0x7067]);
    // Bit 7 is ignored without PSE.
    cpu.poke(ROOT + 4, 4, 0x12087);
    assert_eq!(translate(&mut cpu, AT + 0x5008, WRITE).unwrap().gpa, 0x7008);
    cpu.cr4 |= control::CR4_PSE;
    cpu.poke(ROOT + 4, 4, 0x80_0083 | 3 << 13);
    let found = translate(&mut cpu, AT + 0x5008, READ).unwrap();
    assert_eq!((found.gpa, found.page_size), (0x3_0080_5008, 1 << 22));
    cpu.poke(ROOT + 4, 4, 0x80_0083 | 1 << 21);
    assert_eq!(code(translate(&mut cpu, AT, READ)), Some(9));
}

#[test]
fn linear_accesses_cross_pages_all_or_nothing() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0x5007);
    map(&mut cpu, 1, 0x9007);
    let mode = AccessMode::Supervisor;
    cpu.write_value(AT + 0xffc, mode, 8, 0x1122_3344_5566_7788).unwrap();
    assert_eq!([cpu.look(0x5ffc, 4), cpu.look(0x9000, 4)], [0x5566_7788, 0x1122_3344]);
    assert_eq!(cpu.read_value(AT + 0xffc, mode, 8).unwrap(), 0x1122_3344_5566_7788);
    let fault = cpu.write_value(AT + 0x1ffe, mode, 4, u64::MAX).unwrap_err();
    assert_eq!(fault, Exception::page_fault(AT + 0x2000, 2));
    assert_eq!(cpu.look(0x9ffe, 2), 0);
    let mut block = vec![7; 6000];
    cpu.write_linear(AT, mode, &block).unwrap();
    block.fill(0);
    cpu.read_linear(AT, mode, &mut block).unwrap();
    assert!(block.iter().all(|&b| b == 7));
}

#[test]
fn the_tlb_is_filled_with_what_stores_may_do() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0x5007);
    let class = TlbClass::User;
    let tags = |cpu: &Cpu| {
        let entry = cpu.tlb.entry(class, AT);
        (entry.read == AT, entry.write == AT)
    };
    assert_eq!(fill_tlb(&mut cpu, AT, false, class), Ok(Filled::Ram));
    assert_eq!(tags(&cpu), (true, false));
    assert_eq!(fill_tlb(&mut cpu, AT, true, class), Ok(Filled::Ram));
    assert_eq!(tags(&cpu), (true, true));
    // Pages with translated code take no direct stores.

    cpu.shared.services.memory.code().mask(0x5000).unwrap().store(1, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(fill_tlb(&mut cpu, AT, true, class), Ok(Filled::Ram));
    assert_eq!(tags(&cpu), (true, false));
    map(&mut cpu, 1, RAM | 7);
    assert_eq!(fill_tlb(&mut cpu, AT + 0x1234, false, class), Ok(Filled::NotRam(RAM + 0x234)));
    map(&mut cpu, 2, 0xfee0_0003);
    assert_eq!(fill_tlb(&mut cpu, AT + 0x2030, false, TlbClass::Supervisor), Ok(Filled::NotRam(0xfee0_0030)));
    // The APIC's version register; nobody claimed the other page.
    assert_ne!(cpu.read_value(AT + 0x2030, AccessMode::Supervisor, 4), Ok(u64::from(u32::MAX)));
    assert_eq!(cpu.read_value(AT + 0x1000, AccessMode::Current, 4), Ok(u64::from(u32::MAX)));
}

#[test]
fn privilege_modes_differ_under_smap() {
    let mut cpu = cpu();
    long(&mut cpu);
    cpu.cr4 |= control::CR4_SMAP;
    map(&mut cpu, 0, 0x5007);
    assert!(cpu.read_value(AT, AccessMode::Current, 4).is_err());
    cpu.rflags |= flag::AC;
    assert!(cpu.read_value(AT, AccessMode::Current, 4).is_ok());
    assert!(cpu.read_value(AT, AccessMode::Supervisor, 4).is_err());
    assert!(cpu.read_value(AT, AccessMode::Level(3), 4).is_ok());
    cpu.cpl = 3;
    assert!(cpu.read_value(AT, AccessMode::Current, 4).is_ok());
}

#[test]
fn fetch_stops_at_a_page_that_is_not_executable() {
    let mut cpu = cpu();
    long(&mut cpu);
    map(&mut cpu, 0, 0x5003);
    map(&mut cpu, 1, 0x6003 | 1 << 63);
    cpu.poke(0x5ffd, 4, 0xffc3_9090);
    let mut buffer = [0; 15];
    cpu.segments[engine::seg::CS].access |= engine::Segment::LONG;
    let got = fetch(&mut cpu, AT + 0xffd, &mut buffer);
    assert_eq!(got, Fetched { len: 3, fault: Some(Exception::page_fault(AT + 0x1000, 0x11)) });
    assert_eq!(buffer[..3], [0x90, 0x90, 0xc3]);
    assert_eq!(fetch(&mut cpu, AT, &mut buffer), Fetched { len: 15, fault: None });
}

#[test]
fn segments_limit_accesses() {
    use crate::testing::protected;
    use engine::{Segment, seg};
    let mut cpu = protected();
    let gp = Err(Exception::gp(0));
    let data = |limit, access| Segment { base: 0x100, limit, access, selector: 0x10 };
    cpu.segments[seg::DS] = data(0xfff, 0x93);
    assert_eq!(cpu.linear_address(seg::DS, 0xffc, 4, true), Ok(0x10fc));
    assert_eq!(cpu.linear_address(seg::DS, 0xffd, 4, false), gp);
    assert_eq!(cpu.linear_address(seg::DS, u64::from(u32::MAX), 2, false), gp);
    // Read-only, then expand-down.
    cpu.segments[seg::DS] = data(0xfff, 0x91);
    assert_eq!(cpu.linear_address(seg::DS, 0, 4, true), gp);
    cpu.segments[seg::DS] = data(0xfff, 0x97);
    assert_eq!(cpu.linear_address(seg::DS, 0xfff, 4, false), gp);
    assert_eq!(cpu.linear_address(seg::DS, 0x1000, 4, true), Ok(0x1100));
    assert_eq!(cpu.linear_address(seg::DS, 0xfffd, 4, true), gp);
    cpu.segments[seg::DS].access |= Segment::BIG;
    assert_eq!(cpu.linear_address(seg::DS, 0xffff_fffc, 4, true), Ok(0xfc));
    // Code can't be written, and read only if it says so.
    assert_eq!(cpu.linear_address(seg::CS, 0, 4, true), gp);
    cpu.segments[seg::CS].access &= !2;
    assert_eq!(cpu.linear_address(seg::CS, 0, 4, false), gp);
    cpu.segments[seg::SS].access = Segment::UNUSABLE;
    assert_eq!(cpu.linear_address(seg::SS, 0, 4, false), Err(Exception::with(12, 0)));
    crate::testing::go_long(&mut cpu, 0);
    cpu.segments[seg::FS].base = 0x1000;
    assert_eq!(cpu.linear_address(seg::DS, 5, 4, true), Ok(5));
    assert_eq!(cpu.linear_address(seg::FS, 5, 4, true), Ok(0x1005));
    assert_eq!(cpu.linear_address(seg::DS, 0x7fff_ffff_fffd, 4, true), gp);
    assert_eq!(cpu.linear_address(seg::SS, 1 << 47, 1, true), Err(Exception::with(12, 0)));
}
