//! Operands in awkward places.

use engine::reg::{RAX, RBX, RCX, RDX, RSP};

use super::{CODE, DATA, DATA_END, code, guest};

#[test]
fn loads_stores_and_the_stack_may_cross_pages() {
    let mut guest = guest(code!(
        "lea rsi, [rsi + 0xffd]",
        "mov qword ptr [rsi], rax",
        "mov rbx, qword ptr [rsi]",
        "add qword ptr [rsi], 1",
        "mov ecx, 5",
        "lock xadd qword ptr [rsi], rcx",
        "movups xmm1, xmmword ptr [rsi - 5]",
        "movups xmmword ptr [rsi + 0xff8], xmm1",
        "push rax",
        "pop rdx",
        "call 2f",
        "hlt",
        "2: mov r12, qword ptr [rsp]",
        "ret"
    ));
    let value = 0x1122_3344_5566_7788;
    let cpu = guest.cpu();
    cpu.gpr[RAX] = value;
    cpu.gpr[RSP] = DATA + 0x5004;
    guest.run();
    let cpu = guest.cpu();
    assert_eq!((cpu.gpr[RBX], cpu.gpr[RCX], cpu.gpr[RDX]), (value, value + 1, value));
    assert_eq!((cpu.gpr[RSP], cpu.gpr[12] + 1), (DATA + 0x5004, cpu.rip));
    assert_eq!(guest.data(0xffd), value + 6);
    // 0xffd + 0xff8, where the copy of 0xff8 and on is.
    assert_eq!(guest.data(0x1ff5 + 5), value + 6);
}

#[test]
fn a_store_half_outside_faults_and_leaves_the_first_page_alone() {
    for code in [code!("mov qword ptr [rsi], rax"), code!("add qword ptr [rsi], rax"), code!("push rax")] {
        let mut guest = guest(code);
        let cpu = guest.cpu();
        (cpu.gpr[RAX], cpu.gpr[6]) = (u64::MAX, DATA_END - 4);
        if code == code!("push rax") {
            // The frame of the fault can't be pushed there, either.
            cpu.gpr[RSP] = DATA_END + 4;
            cpu.segments[engine::seg::TR].limit = 0x67;
            cpu.segments[engine::seg::TR].base = DATA + 0x12_0000;
            guest.put_data(0x12_0024, &super::STACK.to_le_bytes());
            // The page fault's gate: IST 1.
            guest.put_data(super::IDT + 14 * 16 + 4, &[1]);
        }
        guest.run();
        assert_eq!(guest.vector(), 14);
        assert_eq!((guest.cpu().cr2, guest.stack(0), guest.stack(1)), (DATA_END, 2, CODE));
        assert_eq!(guest.data(0x1f_fff8), 0);
    }
}

#[test]
fn bit_strings_reach_back_and_keep_the_flags() {
    let code = code!(
        "add rsi, 0x1000",
        "xor ebx, ebx",
        "bts qword ptr [rsi], rax",
        "setz bl",
        "setc bh",
        "bts qword ptr [rsi], rax",
        "setc ch",
        "setz cl",
        "btc dword ptr [rsi], edx",
        "btr word ptr [rsi], r8w",
        "hlt"
    );
    let mut guest = guest(code);
    let cpu = guest.cpu();
    (cpu.gpr[RAX], cpu.gpr[RDX], cpu.gpr[8]) = ((-65i64) as u64, (-1i32) as u32 as u64, 17);
    guest.put_data(0x1000, &u64::MAX.to_le_bytes());
    guest.run();
    assert_eq!((guest.data(0xff0), guest.data(0xff8)), (1 << 63, 1 << 63));
    assert_eq!(guest.data(0x1000), !(1 << 17));
    let cpu = guest.cpu();
    assert_eq!((cpu.gpr[RBX] & 0xffff, cpu.gpr[RCX] & 0xffff), (0x0001, 0x0101));
}

/// AVX2 is there and usable by the guest.
fn avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[test]
fn a_gather_keeps_what_it_loaded_before_the_fault() {
    if !avx2() {
        return;
    }
    let mut guest = guest(code!("vpgatherdd ymm0, dword ptr [rsi + ymm1*4], ymm2", "hlt"));
    guest.put_data(0, &[1u32.to_le_bytes(), 2u32.to_le_bytes(), 3u32.to_le_bytes()].concat());
    let beyond = 0x20_0000 / 4;
    let cpu = guest.cpu();
    cpu.jit.upper_used = 1;
    cpu.vectors[0] = [u64::MAX; 4];
    cpu.vectors[1] = [1 << 32, beyond << 32 | 2, 0, 1];
    // All but the second element.
    cpu.vectors[2] = [0xffff_ffff, u64::MAX, u64::MAX, u64::MAX];
    guest.run();
    assert_eq!(guest.vector(), 14);
    assert_eq!((guest.cpu().cr2, guest.stack(0), guest.stack(1)), (DATA_END, 0, CODE));
    let cpu = guest.cpu();
    assert_eq!(cpu.vectors[0][..2], [0xffff_ffff_0000_0001, 0xffff_ffff_0000_0003]);
    assert_eq!(cpu.vectors[2][0..2], [0, 0xffff_ffff_0000_0000]);
    // Without the faulting element it completes.
    cpu.vectors[1][1] = 2;
    cpu.rip = CODE;
    guest.run();
    let cpu = guest.cpu();
    assert_eq!(cpu.vectors[0], [0xffff_ffff_0000_0001, 1 << 32 | 3, 1 << 32 | 1, 1 << 32 | 2]);
    assert_eq!(cpu.vectors[2], [0; 4]);
}

#[test]
fn masked_elements_are_not_touched() {
    if !avx2() {
        return;
    }
    let mut guest = guest(code!(
        "vmaskmovps ymm0, ymm1, ymmword ptr [rsi]",
        "vmaskmovps ymmword ptr [rsi], ymm1, ymm2",
        "vpmaskmovd ymmword ptr [rsi], ymm3, ymm2",
        "hlt"
    ));
    guest.put_data(0x1f_fff0, &[0x11; 16]);
    let cpu = guest.cpu();
    cpu.jit.upper_used = 1;
    cpu.gpr[6] = DATA_END - 16;
    cpu.vectors[1] = [1 << 63, 1 << 31, 0, 0];
    cpu.vectors[2] = [u64::from_le_bytes([0x22; 8]); 4];
    // The first element beyond the end.
    cpu.vectors[3] = [0, 0, 1 << 31, 0];
    guest.run();
    assert_eq!(guest.vector(), 14);
    assert_eq!((guest.cpu().cr2, guest.stack(0)), (DATA_END, 2));
    assert_eq!(guest.cpu().vectors[0], [0x1111_1111 << 32, 0x1111_1111, 0, 0]);
    assert_eq!(
        (guest.data(0x1f_fff0), guest.data(0x1f_fff8)),
        (0x2222_2222_1111_1111, 0x1111_1111_2222_2222)
    );
}
